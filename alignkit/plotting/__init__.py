"""Pictures of lines between networks and of aligned units. matplotlib is imported only when one is drawn."""
