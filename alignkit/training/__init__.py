"""Training of aligners on sets of networks."""
