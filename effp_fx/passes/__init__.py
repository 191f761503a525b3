"""Passes over a captured graph: FX in, FX out, each by itself; none imports another."""
