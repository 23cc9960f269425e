"""Folds, balances and phases held against the tensors and groups of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from alignkit.errors import GraphError
from alignkit.graph.nodes import TensorNode
from alignkit.graph.rewrites import AnyBalance, Fold, Gain, OutputScale, Phase, check_disjoint, uses_at
from alignkit.text import did_you_mean


def fits(tensors: Mapping[str, TensorNode], phase: Phase) -> bool:
    """Tell whether the biases of a phase are one number for each unit, and what reads units is named as a whole."""
    shapes = {name: node.shape for name, node in tensors.items()}
    for place in (phase.bias, *phase.reads):
        uses = uses_at(tensors[place.tensor], phase.group, place)
        named = sum(prod(dim.size for dim in use.block.dims) for use in uses)
        shape = shapes[place.tensor]
        others = prod(shape) // shape[place.axis]
        if not uses or named != len(place.positions(shapes)) * others:
            return False
        if place is phase.bias and (len(uses) != 1 or uses[0].unit_count != named):
            return False
    return True


def check_rewrites(
    tensors: Mapping[str, TensorNode], groups: Iterable[str], folds: Sequence[Fold], balances: Sequence[AnyBalance]
) -> None:
    """Hold folds and balances against the tensors and groups of a graph.

    Raises:
        GraphError: A tensor, axis or group does not exist, sizes differ, two folds move gains into one place, or a
            group does not act where its space is to be balanced. The message names tensor and axis.
    """
    shapes = {name: node.shape for name, node in tensors.items()}
    for rewrite in (*folds, *balances):
        rewrite.check(shapes)
    for kind, places in {
        "the folds of gains": [place for fold in folds if isinstance(fold, Gain) for place in fold.readers],
        "the folds of scales": [place for fold in folds if isinstance(fold, OutputScale) for place in fold.writers],
    }.items():
        check_disjoint(places, shapes, kind)
    known = set(groups)
    for balance in balances:
        if balance.group not in known:
            raise GraphError(
                f"a balance names the group {balance.group!r}, which is not a group of this graph."
                + did_you_mean(balance.group, known)
            )
        for place in (*balance.writes, *balance.reads):
            if not uses_at(tensors[place.tensor], balance.group, place):
                raise GraphError(f"group {balance.group!r} does not act on {place}, where it is to be balanced.")
        if isinstance(balance, Phase) and not fits(tensors, balance):
            raise GraphError(f"the phases of {balance.group!r} name positions that are not its units, each once.")
