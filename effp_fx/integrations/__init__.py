"""Sessions attached to the training loops of other tools; each attaches a session and nothing more."""
