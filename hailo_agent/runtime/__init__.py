"""The container runtime, on the other side of a directory of CDI files: what can be injected."""
