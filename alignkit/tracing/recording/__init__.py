"""Recording one run of a model."""
