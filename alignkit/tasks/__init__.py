"""A model with data and a loss, and the loss on the line between two networks."""
