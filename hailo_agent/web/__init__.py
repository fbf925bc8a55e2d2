"""Whoever speaks HTTP: people, probes and Prometheus. Nothing can be changed through it."""
