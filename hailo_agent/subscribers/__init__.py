"""Whoever follows device events by gRPC on the agent's own socket, and the client for that."""
