"""`transport_tensors`: steering vectors, probes and sparse autoencoders carried from one network to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource, weights_of
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.attachments import read_attachments
from alignkit.jobs.fold import Folded
from alignkit.jobs.passage import Passage, alignment_sections
from alignkit.jobs.solve import SolverLike
from alignkit.reports import Check, Facts, Report, Section, Table
from alignkit.solver.solution import Solution
from alignkit.text import Explained, plural

UNREAD = 1e-6
"""A smaller share of a tensor, which nothing reads, is rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class TransportedTensors(Explained):
    """Tensors that stand on axes of a network, on those of another one.

    Attributes:
        tensors: The tensors for B, in the dtypes that they had for A.
        layouts: The layout of each, in the notation of the graph.
        alignment: Brings B, folded where the graph has folds, to A.
        solution: How it was solved; None where the alignment was given.
        unread: Of some tensors the part of their size that is a mean over the units of a stream. Norms subtract it,
            so that nothing reads it, and B does not have it.
        constants: What has to be added to what some tensors read in B, because the shift of the norm, or the bias
            of values, that they read is another one than that of A: to the bias of a probe. The shape is that of the
            tensor without the axis it reads.
    """

    tensors: dict[str, Tensor]
    layouts: Mapping[str, str]
    alignment: Alignment
    solution: Solution | None
    unread: Mapping[str, float]
    constants: Mapping[str, Tensor]

    def __repr__(self) -> str:
        return f"TransportedTensors({plural(len(self.tensors), 'tensor')})"

    def explain(self) -> str:
        """Say in a few lines what was carried, and how the networks were aligned."""
        how = "The networks were aligned before." if self.solution is None else self.solution.explain()
        lines = [how, *(f"{name}: {text}" for name, text in self.layouts.items())]
        for name, share in self.unread.items():
            lines.append(f"{name}: {100 * share:.2g} % of its size is a mean that norms subtract. It was left out.")
        reads = "the shift or bias that it reads is another one. Add its constant to what it gives."
        lines += [f"{name}: {reads}" for name in self.constants]
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        solved = {} if self.solution is None else self.solution.facts()
        return {
            **solved,
            "layouts": dict(self.layouts),
            "unread": dict(self.unread),
            "constants": sorted(self.constants),
        }

    @check_arguments
    def report(
        self,
        title: str = "Tensors carried to another network",
        *,
        pair: Pair | None = None,
        check: Check = None,
        facts: Facts = None,
    ) -> Report:
        """List what was carried, with pictures of the alignment where one was solved."""
        sections = alignment_sections(title, self.alignment, self.solution, pair, check, facts)
        rows = tuple((name, text, f"{self.unread.get(name, 0):.2g}") for name, text in self.layouts.items())
        table = Section("Tensors", (Table(("tensor", "layout", "share that nothing reads"), rows),))
        return Report(title, (*sections[:1], table, *sections[1:]))


@check_arguments
def transport_tensors(
    pair: Pair | SymmetryGraph,
    a: WeightsSource | Folded | None = None,
    b: WeightsSource | Folded | None = None,
    *,
    tensors: Mapping[str, Tensor] | str | Path,
    layouts: str | Mapping[str, str],
    model: nn.Module | None = None,
    alignment: Alignment | Solution | None = None,
    solver: SolverLike = "weight_matching",
    **arguments: Any,
) -> TransportedTensors:
    """Carry tensors that stand on axes of network A to network B: steering vectors, probes, sparse autoencoders.

    They do for B what they did for A, as far as the networks agree. Networks are given as they were trained: they are
    folded and balanced here where the graph needs it, and what comes back fits B as it is.

    Args:
        pair: The two networks, ``graph.bind(a, b)``; or a graph, with them beside it.
        a: The network that the tensors belong to, if ``pair`` is a graph: a module, a state dict or a checkpoint path;
            or what `alignkit.fold` made of it.
        b: The network that they are carried to, if ``pair`` is a graph. Both are left as they are.
        tensors: The tensors by name, or a file of them.
        layouts: What each axis of each tensor is, one word an axis, in the notation of graphs: ``"."`` for an axis that
            stays, a group, or ``"@fc2.weight:1"`` for one that is like axis 1 of a tensor of A, or ``"@layers.3"`` for
            the units that come out of a module of A: ``{"probe.weight": ". @layers.3", "probe.bias": "."}``. Where
            writing and reading differ, as behind a norm with a gain, the tensor says which it is. One word alone stands
            for every axis that is as long.
        model: A module of the architecture, for words that name modules; where A is not one.
        alignment: Aligns B to A, both as `alignkit.fold` leaves them. None: it is solved.
        solver: Solver of the alignment, as in `alignkit.solve`.
        arguments: Further arguments of `alignkit.solve`: a task, a device, a seed, options.

    Raises:
        MergeError: A layout names nothing of the network or fits no tensor, it is not clear what an axis is like, or a
            result overflows its dtype.
        SpecError: A layout cannot be read.
        ShapeMismatchError: A layout contradicts the shape of its tensor.
        BindError: The networks do not fit the graph.
        FoldError: The networks cannot be folded.
        AlignmentError: The alignment belongs to another graph, or tensors of whole numbers would change signs.
        SolverError: The solver is unknown or failed.
    """
    carried = weights_of(tensors)
    way = Passage.between("transport_tensors", pair, a, b, alignment, model, solver=solver, **arguments)
    attached = read_attachments(way.graph, carried, layouts, way.output_place)
    shares = {
        name: way.changes_a.mean_share(attached.graph.tensors[name], tensor.detach().cpu().double(), likes)
        for (name, tensor), likes in zip(carried.items(), attached.likes.values(), strict=True)
        if likes
    }
    unread = {name: share for name, share in shares.items() if share > UNREAD}
    moved = way.carry(attached, carried)
    constants = way.constants(attached, carried, moved)
    notation = {name: node.notation() for name, node in attached.graph.tensors.items()}
    return TransportedTensors(moved, notation, way.alignment, way.solution, unread, constants)
