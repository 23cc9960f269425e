"""Graphs with one of each: a plain network, attention with families, and one that a trace made."""

from __future__ import annotations

from alignkit import SymmetryGraph
from alignkit.graph import PinnedAxis, Provenance

MLP = SymmetryGraph.from_spec(
    {"fc1.weight": "h1 .", "fc1.bias": "h1", "fc2.weight": "h2 h1", "fc2.bias": "h2", "fc3.weight": ". h2"},
    {"fc1.weight": (4, 7), "fc1.bias": (4,), "fc2.weight": (5, 4), "fc2.bias": (5,), "fc3.weight": (3, 5)},
)

ATTENTION = SymmetryGraph.from_spec(
    {
        "qkv.weight": "(heads qk[heads])+(heads qk[heads])+(heads v[heads]) model",
        "out.weight": "model (heads v[heads])",
        "scale": "",
    },
    {"qkv.weight": (4 * 8, 6), "out.weight": (6, 8), "scale": ()},
    sizes={"heads": 4},
)

TRACED = Provenance(
    "traced", "fake", (PinnedAxis("out.weight", 0, "aten.index", "block.0"),), ("aten.foo",), ("scale",)
)
