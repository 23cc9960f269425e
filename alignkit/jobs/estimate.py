"""What a job would do: groups and tensors that it moves, memory and time that it needs. Nothing is solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from time import perf_counter
from typing import Any, Literal, TypeAlias

import torch

from alignkit.arguments import check_arguments
from alignkit.graph import SymmetryGraph
from alignkit.graph.description import why_fixed
from alignkit.graph.kinds import KINDS, GroupKind
from alignkit.graph.parts import PIECE
from alignkit.graph.rewrites import untied_heads
from alignkit.jobs.fold import count_folds
from alignkit.matching.assignment import linear_assignment
from alignkit.matching.similarities import room_for_similarities
from alignkit.text import Explained, list_some, plural, readable_bytes, shorten_list

Job: TypeAlias = Literal[
    "align-many", "canonical-form", "canonicalize", "check", "compare", "demo", "distance", "fold", "merge", "rotate",
    "solve", "transport", "widen",
]  # fmt: skip
SolverNames: TypeAlias = str | Sequence[str] | None

SWEEPS = 3
"""Sweeps of weight matching that an estimate assumes: transformers take one or two, deep chains ten or more."""
WRITTEN = {
    "merge": 3,
    "solve": 2,
    "transport": 2,
    "align-many": 2,
    "canonical-form": 2,
    "canonicalize": 2,
    "fold": 4,
    "rotate": 5,
    "widen": 6,
}
"""Copies of a model that are in memory while a job writes, beside those that it read; 1 for other jobs."""
LISTED = 12
"""Maximum number of tensors that the text names."""
QUICK = 0.5
"""Seconds below which an estimate says nothing: starting and reading take as long."""
LONG, LARGE_MEMORY = 10.0, 2_000_000_000
"""Seconds and bytes from which a job is large."""
_LARGE, _PROBE = 2.6, 256
"""Exponent of the time of linear assignment of related units, as measured; units of the assignment that is timed."""


@dataclass(frozen=True)
class GroupEstimate:
    """A group as an estimate shows it; ``units`` are those of all ``instances``, one in each unit of the parent.

    It moves ``tensors`` tensors, which hold ``numbers`` numbers.
    """

    name: str
    kind: GroupKind
    units: int
    instances: int
    parent: str | None
    tensors: int
    numbers: int


@dataclass(frozen=True, eq=False)
class Estimate(Explained):
    """What a job would do and take. Printed, it is the text of `explain`.

    Attributes:
        solver: The solver, None where there is none.
        memory: Bytes that the job takes beyond the program itself, estimated.
        seconds: Time that it takes on this machine, estimated within a factor of about four; None where nothing is
            known of the solver.
        basis: How ``seconds`` was estimated, or why it was not.
    """

    job: Job
    graph: SymmetryGraph
    solver: str | None
    memory: int
    seconds: float | None
    basis: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @cached_property
    def groups(self) -> tuple[GroupEstimate, ...]:
        """Groups, parents before children."""
        graph, groups = self.graph, []
        for name in graph.parents_first:
            instances, tensors, group = graph.instances(name), graph.tensors_of(name), graph.groups[name]
            numbers = sum(prod(graph.tensors[tensor].shape) for tensor in tensors)
            groups.append(
                GroupEstimate(name, group.kind, instances * group.size, instances, group.parent, len(tensors), numbers)
            )
        return tuple(groups)

    @property
    def moved(self) -> tuple[str, ...]:
        """Tensors on which some group acts."""
        return tuple(name for name, node in self.graph.tensors.items() if node.groups)

    @property
    def uncovered(self) -> dict[str, str]:
        """Tensors, scalars left out, that stay as they are, each with the reason."""
        return {name: why_fixed(self.graph, name) for name in self.graph.uncovered}

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values, as JSON takes them."""
        return {
            "job": self.job,
            "solver": self.solver,
            "reads": list(self.reads),
            "writes": list(self.writes),
            "groups": [vars(group) for group in self.groups],
            "folds": list(map(str, self.graph.folds)),
            "balanced": list(map(str, self.graph.balances)),
            "untied": untied_heads(self.graph.folds),
            "blocked": list(map(str, self.graph.blocked)),
            "tensors_moved": list(self.moved),
            "tensors_not_covered": self.uncovered,
            "memory_bytes": self.memory,
            "seconds": self.seconds,
            "seconds_basis": self.basis,
        }

    def explain(self) -> str:
        """Say what would be read, moved and written, and what it would take."""
        tensors, moved, uncovered = len(self.graph.tensors), self.moved, self.uncovered
        scalars = tensors - len(moved) - len(uncovered)
        width = max([5, *(len(group.name) for group in self.groups)])
        rows = [
            f"  {g.name:<{width}}  {g.units:>7} units  {g.tensors:>4} tensors, {g.numbers:>13,} numbers"
            + ("" if g.kind == "permutation" else f"  {KINDS[g.kind].words}")
            for g in self.groups
        ]
        lines = [
            f"Estimate of {self.job}: nothing was solved or written.",
            *(f"Reads {path}" for path in self.reads),
            *(f"Would write {path}" for path in self.writes),
            *self._plan_of_folds(),
            f"{plural(len(self.groups), 'group')}:" if rows else "No group: no unit may change its place.",
            *rows,
            f"{len(moved)} of {tensors} tensors move" + (f": {list_some(moved, LISTED)}." if moved else "."),
            *([f"{plural(scalars, 'single number')}, such as counters, stay."] if scalars else []),
            f"{len(uncovered)} {'is' if len(uncovered) == 1 else 'are'} not covered" + (":" if uncovered else "."),
            *shorten_list([f"{name}: {reason}" for name, reason in uncovered.items()], LISTED, ", see --json"),
            f"Memory: about {readable_bytes(self.memory)} beside the program.",
        ]
        return "\n".join((*lines, f"Time: {self._time}."))

    @property
    def _time(self) -> str:
        if self.seconds is None:
            return self.basis
        return f"about {self.seconds:.2g} s ({self.basis})" if self.seconds >= QUICK else "about a second or less"

    @property
    def summary(self) -> str:
        """Say the sizes in one line."""
        networks, groups = plural(len(self.reads), "network"), plural(len(self.groups), "group")
        moving = f"{len(self.moved)} of {plural(len(self.graph.tensors), 'tensor')} move"
        size = f"about {readable_bytes(self.memory)} of memory"
        return f"Plan of {self.job}: {networks}, {groups}, {moving}; {size}. Time: {self._time}."

    @property
    def is_large(self) -> bool:
        """Whether it takes long enough, or memory enough, to be told before it begins."""
        return self.memory >= LARGE_MEMORY or (self.seconds or 0.0) >= LONG

    def _plan_of_folds(self) -> list[str]:
        """Say what would be folded and balanced first, and what cannot be."""
        folds, balances = self.graph.folds, self.graph.balances
        lines = [f"Folds first: {count_folds(folds)}."] if folds else []
        lines += [f"Balances {plural(len(balances), 'space')}."] if balances else []
        for head, source in untied_heads(folds).items():
            lines.append(f"Unties {head} from {source}: {prod(self.graph.tensors[head].shape):,} numbers more.")
        return lines + shorten_list(list(map(str, self.graph.blocked)), LISTED, ", see --json")

    __str__ = explain


@check_arguments
def estimate(
    graph: SymmetryGraph,
    job: Job = "merge",
    *,
    models: int = 2,
    solver: SolverNames = "weight_matching",
    memory: int | None = None,
    bytes_each: int | None = None,
    reads: Sequence[str] = (),
    writes: Sequence[str] = (),
) -> Estimate:
    """Estimate what a job needs, from shapes alone and the speed of this machine.

    Args:
        graph: The graph of the networks.
        job: What is to be done.
        models: How many networks are read.
        solver: What aligns them, a name or several that run one after the other; None where nothing is solved.
        memory: A limit in bytes that the job keeps; it is then the memory of the estimate.
        bytes_each: Size of one network; by default that of its shapes and dtypes.
        reads: Files that are read, for the text.
        writes: Files that are written, for the text.

    Returns:
        The estimate. Its time is that of `SWEEPS` sweeps of weight matching for each pair, from the speed of one matrix
        product and one assignment that are timed now.
    """
    names = [solver] if isinstance(solver, str) else list(solver or ())
    nodes = graph.tensors.values()
    sizes = (prod(node.shape) * getattr(torch, node.dtype or "float32", torch.float32).itemsize for node in nodes)
    weight = sum(sizes) if bytes_each is None else bytes_each
    needed = memory if memory is not None else _memory(graph, job, models, weight, bool(names))
    seconds: float | None = None
    if job == "check":
        basis = "a few runs of the model, in float64; how long one takes is not known before"
    elif unknown := [name for name in names if name not in ("weight_matching", "identity")]:
        one = _matching_seconds(graph)
        basis = f"not known for {', '.join(unknown)}; weight matching alone takes about {one:.2g} s"
    else:
        pairs = {"align-many": 3 * models, "canonicalize": models - 1}.get(job, 1)
        solving = pairs * _matching_seconds(graph) * sum(name == "weight_matching" for name in names)
        moving = 2e-9 * weight * (models + WRITTEN.get(job, 0))
        seconds, each = solving + moving, "" if pairs == 1 else f" for each of {pairs} pairs"
        basis = f"{SWEEPS} sweeps assumed{each}; right within a factor of four or so"
    shown = " > ".join(names) if names else None
    return Estimate(job, graph, shown, needed, seconds, basis, tuple(map(str, reads)), tuple(map(str, writes)))


def _memory(graph: SymmetryGraph, job: Job, models: int, weight: int, solved: bool) -> int:
    """Return the larger of two moments: while the pair is matched, and while results are written."""
    wide = max([0, *(8 * prod(node.shape) for node in graph.tensors.values() if node.groups)])
    matrices = [8 * graph.unit_count(name) ** 2 for name in graph.groups]
    # Similarities that are kept, copies of parts of tensors, and matrices being assigned.
    matching = min(sum(matrices), 8 * room_for_similarities(graph)) + 6 * min(wide, PIECE) + 3 * max([0, *matrices])
    if job == "check":
        return 3 * weight + 3 * sum(8 * prod(node.shape) for node in graph.tensors.values())
    # Folded networks beside those that were given, and one of them in float64.
    folded = (models + 2) * weight if graph.folds or graph.balances else 0
    at_once = models if job != "align-many" else 2 * models
    writing = WRITTEN.get(job, 1) * weight
    return at_once * weight + folded + max(matching if solved else 0, writing)


def _matching_seconds(graph: SymmetryGraph) -> float:
    """Return the seconds of `SWEEPS` sweeps of weight matching of one pair: of their products and assignments."""
    products = assigned = 0.0
    for block in (block for node in graph.tensors.values() for block in node.blocks):
        numbers = prod(dim.size for dim in block.dims)
        products += sum(2.0 * numbers * dim.size for dim in block.dims if dim.group is not None)
    for name, group in graph.groups.items():
        pairs = graph.instances(name) ** (1 if group.parent is None else 2)
        assigned += pairs * (group.size / _PROBE) ** _LARGE
    # What one operation of a product in float64, and one assignment of `_PROBE` units take here; timed in 20 ms.
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(_PROBE, _PROBE, generator=generator, dtype=torch.float64)
    multiplying, assigning = [], []
    for _ in range(3):
        started = perf_counter()
        matrix @ matrix
        multiplying.append(perf_counter() - started)
        started = perf_counter()
        linear_assignment(matrix)
        assigning.append(perf_counter() - started)
    return SWEEPS * (min(multiplying) / (2 * _PROBE**3) * products + min(assigning) * assigned)
