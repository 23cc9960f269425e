"""How far two networks are apart once their units are in the same order, and whether they are one and the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.fit import is_counter, is_number
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import KINDS
from alignkit.graph.owned import ReadOnly
from alignkit.graph.parts import as_tensors, common_parts
from alignkit.jobs.solve import SolverLike, bound_pair, completed, solve
from alignkit.reports import Facts, Report, Section, Table
from alignkit.reports.sections import number
from alignkit.solver.solution import Solution
from alignkit.text import Explained


@dataclass(frozen=True)
class TensorDistance:
    """One tensor of two networks: ``|A - B|^2`` in float64 as the weights were given, ``|A - P # B|^2`` aligned.

    ``largest`` is the largest difference of an element after alignment, relative to the largest of either tensor. Whole
    numbers and truth values have no distance: theirs is 0, and ``largest`` is 1 where an element differs.
    """

    before: float
    after: float
    largest: float


SLIGHTLY = 0.99
"""Share of the squared distance that is order, from which one network is called a changed copy of the other. Networks
that were trained apart stay below 0.5."""


@dataclass(frozen=True, eq=False)
class Distance(Explained):
    """How far two networks are apart, by the first name of each tensor.

    Up to ``tolerance``, a relative difference of an element, networks count as the same.
    """

    tensors: Mapping[str, TensorDistance]
    solution: Solution
    tolerance: float

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
        """Whether B is A with its units moved, every element within the tolerance; `alignment` is the proof.

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
        kinds = {group.kind for group in self.solution.graph.groups.values()}
        signs, rotation = "signed" in kinds, any(KINDS[kind].rotates for kind in kinds)
        return f"the same up to {', '.join(['permutation', *['signs'] * signs, *['rotation'] * rotation])}"

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

    Args:
        pair: The two networks, ``graph.bind(a, b)``; or a graph, with them beside it.
        a: Reference network, if ``pair`` is a graph: a module, a state dict or a checkpoint path. Pairs that were bound
            with ``memory=`` stay on disk.
        b: The network to compare, if ``pair`` is a graph.
        solver: Solver that aligns them, as in `alignkit.solve`.
        tolerance: Networks count as the same when no element differs by more than this, relative to the largest
            element of its tensor. Whole numbers and truth values have to be equal, but for counters such as
            ``num_batches_tracked``.
        arguments: Further arguments of `alignkit.solve`: a task, a device, a seed, options.

    Raises:
        BindError: The networks do not fit the graph.
        SolverError: The solver is unknown or failed.
    """
    bound = bound_pair("distance", pair, a, b)
    solution = completed(solve(bound, solver=solver, **arguments))
    side_a, side_b = (as_tensors(side, bound.device) for side in (bound.a, bound.b))
    elements: dict[str, Tensor | None] = dict(solution.alignment.elements)
    tensors = {}
    for name, node in bound.graph.tensors.items():
        before = after = largest = scale = 0.0
        for left, plain, moved in common_parts(node, [(side_a, {}), (side_b, {}), (side_b, elements)]):
            if not is_number(left):
                largest = max(largest, float(not is_counter(name) and not torch.equal(left, moved)))
                continue
            left, plain, moved = (part.double() for part in (left, plain, moved))
            before += float((left - plain).square().sum())
            after += float((left - moved).square().sum())
            if left.numel():
                largest = max(largest, float((left - moved).abs().max()))
                scale = max(scale, float(left.abs().max()), float(moved.abs().max()))
        tensors[name] = TensorDistance(before, after, largest / scale if scale else largest)
    return Distance(tensors, solution, tolerance)
