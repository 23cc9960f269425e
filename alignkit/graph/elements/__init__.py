"""Elements of a graph's symmetry group, and how they act on tensors."""
