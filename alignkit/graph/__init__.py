"""The graph IR: groups of units, and where each acts on the tensors of a network."""

from alignkit.graph import builders
from alignkit.graph.bind import Pair
from alignkit.graph.layout import Axis, Block, Dim, Fixed, Segment, Units
from alignkit.graph.nodes import Group, TensorNode
from alignkit.graph.notation import format_layout, parse_layout
from alignkit.graph.provenance import PinnedAxis, Provenance, TracedInput
from alignkit.graph.symmetry_graph import SymmetryGraph

__all__ = [
    "Axis",
    "Block",
    "Dim",
    "Fixed",
    "Group",
    "Pair",
    "PinnedAxis",
    "Provenance",
    "Segment",
    "SymmetryGraph",
    "TensorNode",
    "TracedInput",
    "Units",
    "builders",
    "format_layout",
    "parse_layout",
]
