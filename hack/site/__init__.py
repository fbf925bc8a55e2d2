"""The documentation site: its links that leave docs/, and the picture that it begins with."""
