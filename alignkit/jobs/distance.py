"""How far two networks are apart once symmetries are undone, and whether they are one and the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.dtypes import coarser_dtype
from alignkit.checkpoints.fit import is_counter, is_number
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.elements.element import flipped, order_of
from alignkit.graph.owned import ReadOnly
from alignkit.graph.parts import as_tensors, common_parts
from alignkit.graph.phases import phases_in
from alignkit.graph.stored import StoredNetwork
from alignkit.jobs.fold import fold
from alignkit.jobs.solve import SolverLike, bound_pair, completed, solve
from alignkit.reports import Facts, Report, Section, Table
from alignkit.reports.sections import number
from alignkit.rewriting import NearNetwork, WideWeights, balance_weights, bring_near
from alignkit.solver.solution import Solution
from alignkit.text import Explained, dtype_name, list_some


@dataclass(frozen=True)
class TensorDistance:
    """One tensor of two networks: ``|A - B|^2`` in float64 as the weights were given, ``|A - P # B|^2`` aligned.

    ``largest`` is the largest difference of an element after alignment, relative to the largest of either tensor. Whole
    numbers and truth values have no distance: theirs is 0, and ``largest`` is 1 where an element differs. ``dtype`` is
    that of A. Where that of B is another, it is the coarser one, the tensor is ``mixed``, and what rounding to it
    explains does not count in ``largest``.
    """

    before: float
    after: float
    largest: float
    dtype: str
    mixed: bool = False


SLIGHTLY = 0.99
"""Share of the squared distance that is order, from which one network is called a changed copy of the other. Networks
that were trained apart stay below 0.5."""
NEARLY = 1e-3
"""A matrix whose entries are that near to 0, 1 and -1 permutes units and changes signs; it does not rotate them."""
ROUNDING = 4
"""Differences of so many units in the last place are rounding of networks that were rotated in their own dtype."""
RESIDUE = 1e-12
"""Part of the largest weight of a network that folding, balancing and rotating may leave where nothing should be."""
BALANCED = {
    "scaled": "scales",
    "monomial": "scales",
    "invertible": "invertible matrices",
    "complex_planes": "scales of planes",
    "half_periods": "phases",
}
"""What balancing takes out of a space of a kind."""


@dataclass(frozen=True, eq=False)
class Distance(Explained):
    """How far two networks are apart, by the first name of each tensor.

    They are folded and balanced first, where their graph has folds and balances. Up to ``tolerance``, a relative
    difference of an element, networks count as the same. ``undone`` says what made them differ then, in words:
    permutation, signs, scales, phases, rotation and others; nothing where they were equal as they were given.
    """

    tensors: Mapping[str, TensorDistance]
    solution: Solution
    tolerance: float
    undone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", ReadOnly(self.tensors))

    @property
    def before(self) -> float:
        """``||A - B||^2`` over all tensors, as the weights were given."""
        return sum(tensor.before for tensor in self.tensors.values())

    @property
    def after(self) -> float:
        """``||A - P # B||^2`` over all tensors."""
        return sum(tensor.after for tensor in self.tensors.values())

    @property
    def same(self) -> bool:
        """Whether B is A up to symmetries, every element within the tolerance; `alignment` is the proof.

        False says that the solver found no such order. Solvers with ``exact_on_permuted_copies`` always find it unless
        units are alike.
        """
        return self.differs is None

    @property
    def differs(self) -> str | None:
        """Name of the tensor with the largest relative difference beyond the tolerance, or None."""
        name = max(self.tensors, key=lambda n: self.tensors[n].largest, default=None)
        return name if name is not None and self.tensors[name].largest > self.tolerance else None

    @property
    def alignment(self) -> Alignment:
        """The order of B's units that brings it closest to A."""
        return self.solution.alignment

    @property
    def verdict(self) -> str:
        """What the two networks are to each other, in a few words."""
        if not self.same:
            return f"not the same, most in {self.differs}"
        *most, last = self.undone or ("",)
        words = f"{', '.join(most)} and {last}" if most else last
        rounded = list_some(sorted({tensor.dtype for tensor in self.tensors.values() if tensor.mixed}))
        if rounded:
            words += f"{' and ' if words else ''}rounding to {rounded}"
        if words:
            return f"the same up to {words}"
        return "the same once they are folded" if self.solution.graph.folds else "the same as they are"

    @property
    def rounding(self) -> str | None:
        """The dtype whose rounding is all that makes the networks differ; None where they are the same, or it is not.

        Networks that were rotated and rounded to 16 bits do not come back within a tolerance of 1e-6.
        """
        floats = {n: t for n, t in self.tensors.items() if t.dtype.startswith(("float", "bfloat"))}
        units = {
            name: tensor.largest / torch.finfo(getattr(torch, tensor.dtype)).eps for name, tensor in floats.items()
        }
        worst = max(units, key=lambda name: units[name], default=None)
        others = (tensor.largest for name, tensor in self.tensors.items() if name not in floats)
        if self.same or worst is None or units[worst] > ROUNDING or any(others):
            return None
        return floats[worst].dtype

    @property
    def order_share(self) -> float | None:
        """Part of the squared distance that alignment takes away, from 0 to 1; None where there is no distance."""
        return max(0.0, 1 - self.after / self.before) if self.before else None

    def explain(self) -> str:
        """Say in a few lines how far the networks are apart and what they are to each other."""
        lines = [
            f"Squared distance {self.before:.6g}, after alignment {self.after:.6g} ({self.solution.solver}).",
            f"The networks are {self.verdict} (tolerance {self.tolerance:g}).",
        ]
        if not self.same and self.order_share:
            share = f"{100 * min(self.order_share, 0.9999):.{2 if self.order_share > 0.9 else 0}f} %"
            meaning = ": B is A reordered and slightly changed" if self.order_share > SLIGHTLY else ""
            lines.append(f"Order of units explains {share} of the squared distance{meaning}.")
        if self.rounding is not None:
            largest = max(tensor.largest for tensor in self.tensors.values())
            lines.append(
                f"No element differs by more than rounding to {self.rounding} does: {largest:.1g}, relatively."
            )
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """Return what was measured as plain values, as JSON takes them."""
        return {
            "solver": self.solution.solver,
            "squared_distance_before": self.before,
            "squared_distance_after": self.after,
            "order_share": self.order_share,
            "same": self.same,
            "differs": self.differs,
            "undone": list(self.undone),
            "moved": dict(self.solution.moved),
            "tensors": {name: vars(tensor) for name, tensor in self.tensors.items()},
        }

    @check_arguments
    def report(self, title: str = "Two networks", *, pair: Pair | None = None, facts: Facts = None) -> Report:
        """Say how far the networks are apart, with the tensors in which they differ."""
        summary = {**(facts or {}), "the networks are": self.verdict, "tolerance": f"{self.tolerance:g}"}
        header = ("tensor", "squared distance before", "after", "largest relative difference")
        rows = tuple((n, number(t.before), number(t.after), number(t.largest)) for n, t in self.tensors.items())
        solved = self.solution.report(title, pair=pair, facts=summary)
        kept = tuple(section for section in solved.sections if section.title != "Function check")
        return Report(title, (*kept, Section("Tensors", (Table(header, rows),))))

    def __repr__(self) -> str:
        return f"Distance(squared {self.before:.6g} -> {self.after:.6g}, {self.verdict})"


@check_arguments
def distance(
    pair: Pair | SymmetryGraph,
    a: WeightsSource | None = None,
    b: WeightsSource | None = None,
    *,
    solver: SolverLike = "weight_matching",
    tolerance: float = 1e-6,
    **arguments: Any,
) -> Distance:
    """Measure how far B is from A before and after its units are aligned.

    Where the graph has folds and balances the networks are folded and balanced first, so that two that differ by gains,
    shifts and scales count as the same.

    Args:
        pair: The two networks, ``graph.bind(a, b)``; or a graph, with them beside it.
        a: Reference network, if ``pair`` is a graph: a module, a state dict or a checkpoint path. Pairs that were bound
            with ``memory=`` stay on disk.
        b: The network to compare, if ``pair`` is a graph.
        solver: Solver that aligns them, as in `alignkit.solve`.
        tolerance: Networks count as the same when no element differs by more than this, relative to the largest
            element of its tensor. Where their dtypes differ, and where units were rotated, elements may also differ by
            what the coarser dtype rounds away, and where networks were rewritten by 1e-12 of the largest weight. Whole
            numbers and truth values have to be equal, but for counters such as ``num_batches_tracked``.
        arguments: Further arguments of `alignkit.solve`: a task, a device, a seed, options.

    Raises:
        BindError: The networks do not fit the graph.
        FoldError: A network cannot be folded.
        SolverError: The solver is unknown or failed.
    """
    bound = _folded_pair(pair, a, b)
    balanced = _balanced(bound)
    solution = completed(solve(balanced, solver=solver, **arguments))
    balanced = _near(balanced, solution.alignment)
    measured = Distance(_measure(balanced, solution.alignment), solution, tolerance)
    return replace(measured, undone=tuple(_undone(bound, balanced, measured))) if measured.same else measured


def _folded_pair(pair: Pair | SymmetryGraph, a: WeightsSource | None, b: WeightsSource | None) -> Pair:
    """Bind networks, folded where the graph has folds; `Pair`s are folded already."""
    if isinstance(pair, Pair) or a is None or b is None or not pair.folds:
        return bound_pair("distance", pair, a, b)
    left, right = (fold(side, pair, balance=False).network for side in (a, b))
    return pair.bind(left, right)


def _balanced(pair: Pair) -> Pair:
    """Return the pair with its spaces balanced, where there are any."""
    if not pair.graph.balances or pair.is_stored:
        return pair
    sides = [WideWeights(side) for side in (pair.a, pair.b)]
    for side in sides:
        balance_weights(side, pair.graph)
    left, right = (side.rounded() for side in sides)
    return Pair(pair.graph, left, right)


def _near(pair: Pair, alignment: Alignment) -> Pair:
    """Return the pair with the phases of B brought to the nearest of those of A, now that the order is known."""
    if not phases_in(pair.graph):
        return pair
    in_order_of_b = alignment.inverse()
    if isinstance(pair.a, StoredNetwork) and isinstance(pair.b, StoredNetwork):
        return Pair(pair.graph, pair.a, NearNetwork(pair.b, pair.a.under(in_order_of_b.elements)))
    side = WideWeights(pair.b)
    bring_near(side, pair.graph, in_order_of_b.apply(pair.a))
    return Pair(pair.graph, pair.a, side.rounded())


def _undone(folded: Pair, balanced: Pair, measured: Distance) -> Iterator[str]:
    """Say what the alignment of two networks that are the same does, and what balancing did to make them so."""
    graph, alignment, tolerance = folded.graph, measured.alignment, measured.tolerance
    is_moved = not alignment.is_identity
    if is_moved and any(map(graph.rotates, graph.groups)):  # rounding turns equal networks a little, too
        still = _measure(balanced, Alignment.identity(graph))
        is_moved = any(tensor.largest > tolerance for tensor in still.values())
    motions = _motions(alignment) if is_moved else set()
    yield from (word for word in ("permutation", "signs") if word in motions)
    if graph.balances and balanced is not folded:
        unlike = {name for name, tensor in _measure(folded, alignment).items() if tensor.largest > tolerance}
        kinds = {b.kind for b in graph.balances if unlike & {place.tensor for place in (*b.writes, *b.reads)}}
        yield from dict.fromkeys(word for kind, word in BALANCED.items() if kind in kinds)
    yield from (word for word in ("rotation",) if word in motions)


def _motions(alignment: Alignment) -> set[str]:
    """Return what an alignment does to units: permutation, signs, rotation."""
    motions = set()
    for name, element in alignment.elements.items():
        if alignment.graph.rotates(name):
            whole = element.round()
            if bool(((element - whole).abs() > NEARLY).any()):
                motions.add("rotation")
                continue
            element = torch.where(whole.sum(-1) < 0, ~whole.abs().argmax(-1), whole.abs().argmax(-1))
        if bool(flipped(element).any()):
            motions.add("signs")
        if not torch.equal(order_of(element), torch.arange(element.shape[-1]).expand_as(element)):
            motions.add("permutation")
    return motions


def _measure(bound: Pair, alignment: Alignment) -> dict[str, TensorDistance]:
    """Measure how far each tensor of aligned B is from that of A."""
    side_a, side_b = (as_tensors(side, bound.device) for side in (bound.a, bound.b))
    elements: dict[str, Tensor | None] = dict(alignment.elements)
    tensors, scales = {}, {}
    for name, node in bound.graph.tensors.items():
        before = after = largest = scale = 0.0
        both = side_a.dtype(name), side_b.dtype(name)
        mixed = both[0] != both[1]
        dtype = coarser_dtype(*both) if mixed else both[0]
        for left, plain, moved in common_parts(node, [(side_a, {}), (side_b, {}), (side_b, elements)]):
            if not is_number(left):
                largest = max(largest, float(not is_counter(name) and not torch.equal(left, moved)))
                continue
            left, plain, moved = (part.double() for part in (left, plain, moved))
            before += float((left - plain).square().sum())
            after += float((left - moved).square().sum())
            if left.numel():
                apart = _beyond_rounding(left, moved, dtype) if mixed else (left - moved).abs()
                largest = max(largest, float(apart.max()))
                scale = max(scale, float(left.abs().max()), float(moved.abs().max()))
        scales[name] = scale
        tensors[name] = TensorDistance(before, after, largest, dtype_name(dtype), mixed)
    rewritten = bound.graph.folds or bound.graph.balances or any(map(bound.graph.rotates, bound.graph.groups))
    residue = RESIDUE * max(scales.values(), default=0.0) if rewritten else 0.0
    return {
        name: replace(tensor, largest=max(0.0, tensor.largest - residue) / scales[name]) if scales[name] else tensor
        for name, tensor in tensors.items()
    }


def _beyond_rounding(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return by how much more elements of two tensors differ than rounding to a dtype explains.

    A number that is rounded changes by less than ``eps`` of its size, and below the smallest normal number by less than
    ``eps`` of that.
    """
    facts, sizes = torch.finfo(dtype), torch.maximum(a.abs(), b.abs())
    return ((a - b).abs() - facts.eps * sizes.clamp_min(facts.smallest_normal)).clamp_min(0)
