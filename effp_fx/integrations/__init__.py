"""Attaches a Session to the training tools people use; each file needs its tool installed."""
