"""From symmetries to groups, layouts and names."""
