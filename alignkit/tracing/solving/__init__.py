"""From constraints to the symmetries that respect them."""
