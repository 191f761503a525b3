"""Benches that a user runs on a model of their own: accuracy of all methods, latency against FLOPs, compile time."""
