"""The decisions: frozen values in, frozen values out. No clock, no files, no sockets, no loop."""
