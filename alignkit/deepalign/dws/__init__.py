"""The aligner of [Navon24] on any graph."""
