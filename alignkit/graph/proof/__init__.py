"""Proof by running: symmetries, and equality of two sets of weights, measured on what a model computes."""
