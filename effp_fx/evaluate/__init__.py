"""Measures a network from the outside: how long it takes."""
