"""Trace any detector, find which of its channels stand or fall together, and cut them out exactly."""

__version__ = "0.1.0"
