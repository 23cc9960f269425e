"""The graph IR: groups of units, and where each acts on the tensors of a network."""

from alignkit.graph import builders
from alignkit.graph.layout import Axis, Block, Dim, Fixed, Segment, StackPlaces, Units
from alignkit.graph.nodes import AxisPositions, Group, PinnedAxis, Provenance, TensorNode, TracedInput
from alignkit.graph.notation import format_layout, parse_layout
from alignkit.graph.rewrites import (
    AxisOf,
    Balance,
    Blocked,
    Fold,
    Gain,
    Mean,
    OutputScale,
    Phase,
    Shift,
    Through,
    Untie,
    Zero,
)
from alignkit.graph.structure import GraphStructure
from alignkit.graph.symmetry_graph import Pair, SymmetryGraph
from alignkit.graph.uses import Use

__all__ = ["GraphStructure", "Group", "Pair", "PinnedAxis", "Provenance", "SymmetryGraph", "TensorNode", "TracedInput"]
__all__ += ["AxisOf", "Balance", "Blocked", "Fold", "Gain", "Mean", "OutputScale", "Phase", "Shift", "Through", "Untie"]
__all__ += ["Zero"]
__all__ += ["AxisPositions", "format_layout", "parse_layout"]
__all__ += ["Axis", "Block", "Dim", "Fixed", "Segment", "StackPlaces", "Units", "Use", "builders"]
