"""Networks that stay on disk, whose tensors pass through a given amount of memory in parts."""

from alignkit.graph.stored.budget import Budget, parse_memory
from alignkit.graph.stored.network import AlignedNetwork, StoredNetwork

__all__ = ["AlignedNetwork", "Budget", "StoredNetwork", "parse_memory"]
