"""The rows of a picture of a graph: one for each layer, with repeated layers folded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from alignkit.graph.layout import StackPlaces, Units
from alignkit.graph.nodes import TensorNode
from alignkit.graph.notation import mark_of, pieces_of
from alignkit.graph.structure import GraphStructure

_FOLD_FROM = 3
"""Number of equal layers in a row that are shown as one: two are as short as the row that stands for the second."""


@dataclass(frozen=True)
class Box:
    """Tensors of one layer with the same shape and layout; ``names`` are the last parts of their names."""

    names: tuple[str, ...]
    tensor: TensorNode


@dataclass(frozen=True)
class PictureRow:
    """One layer, or, where ``repeats`` says so, the last of a run of layers that look like the one above."""

    path: str
    boxes: tuple[Box, ...] = ()
    repeats: int = 0

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that act on the layer, in the order of mention; those of a stack are one name."""
        return tuple(dict.fromkeys(name for box in self.boxes for name in box.tensor.mentions))


def picture_rows(graph: GraphStructure) -> list[PictureRow]:
    """List one row for each layer, in the order of the tensors.

    Runs of three or more numbered layers that differ in nothing but groups of their own are folded: the first is
    shown, and a row with ``repeats`` stands for the others. Scalars are left out.
    """
    rows: list[PictureRow] = []
    nodes = [node for node in graph.tensors.values() if node.shape]
    for path, members in groupby(nodes, lambda node: node.name.rpartition(".")[0] or node.name):
        merged: dict[tuple[tuple[int, ...], str], Box] = {}
        for node in members:
            leaf = node.name.rpartition(".")[2] if "." in node.name else ""
            box = merged.setdefault((node.shape, node.notation()), Box((), node))
            merged[node.shape, node.notation()] = Box((*box.names, leaf), box.tensor)
        rows.append(PictureRow(path, tuple(merged.values())))
    return list(_fold(graph, rows, 0))


def _fold(graph: GraphStructure, rows: list[PictureRow], depth: int) -> Iterator[PictureRow]:
    """Fold the numbered layers whose number stands at ``depth`` of the path, then those inside of them."""
    blocks = [list(block) for _, block in groupby(rows, lambda row: row.path.split(".")[: depth + 1])]
    keys = [_signature(graph, block, depth) or number for number, block in enumerate(blocks)]
    for _, run in groupby(zip(keys, blocks, strict=True), lambda pair: pair[0]):
        alike = [block for _, block in run]
        shown = alike[:1] if len(alike) >= _FOLD_FROM else alike
        for block in shown:
            deeper = any(row.path.count(".") > depth for row in block)
            yield from _fold(graph, block, depth + 1) if deeper else block
        if len(shown) < len(alike):
            yield PictureRow(".".join(alike[-1][0].path.split(".")[: depth + 1]), repeats=len(alike) - 1)


def _signature(graph: GraphStructure, block: list[PictureRow], depth: int) -> object:
    """Collect what two numbered layers have in common when they look alike; None for a layer without a number."""
    start = block[0].path.split(".")[: depth + 1]
    if len(start) <= depth or not start[depth].isdigit():
        return None
    inside = ".".join(start) + "."
    own: dict[str, str] = {}
    for name in dict.fromkeys(name for row in block for name in row.groups):
        if all(tensor.startswith(inside) for group in graph.copies[name] for tensor in graph.tensors_of(group)):
            own[name] = f"own{len(own)}"

    def written(units: Units) -> str:
        return "" if isinstance(units, StackPlaces) else own.get(units.group, units.group)  # a stack: what is in it

    def text(tensor: TensorNode) -> str:
        pieces = (piece for axis in tensor.layout for piece in (*pieces_of(axis), " "))
        return "".join(piece if isinstance(piece, str) else mark_of(piece) + written(piece) for piece in pieces)

    boxes = [(row.path.split(".")[depth + 1 :], box.names, box.tensor) for row in block for box in row.boxes]
    facts = [(path, names, tensor.shape, text(tensor)) for path, names, tensor in boxes]
    return start[:depth], facts, [graph.mentions[name].size for name in own]
