"""Deep-Align: similarities of units from what they do and what depends on them, brought to agree over the graph."""
