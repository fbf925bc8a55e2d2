"""Concurrency pieces that have never heard of Hailo: the newest value, a bell, a restart policy."""
