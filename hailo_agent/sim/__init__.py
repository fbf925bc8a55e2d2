"""A node in a box: machine, kubelet and runtime as they really behave; tests and demo run on it."""
