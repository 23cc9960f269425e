"""Align the hidden units of neural networks."""
