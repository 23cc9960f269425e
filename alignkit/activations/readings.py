"""Activations of two networks, unit against unit: where they are read, and their streamed correlations.

`find_readings` looks for the places where the units of each group can be seen (`alignkit.activations.sites`)
and proves each of them: A runs once as it is and once with its own units shuffled, and a place is kept only if its
activations are shuffled in the same way. `cross_moments` then runs A and B on the same batches.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignkit.activations.sites import (
    ActivationSite,
    ModuleCall,
    Positions,
    is_known,
    owner_of,
    place_of,
    places_by_size,
    positions_on_axis,
)
from alignkit.errors import SolverError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.tasks.batches import Batch
from alignkit.tasks.task import Task

logger = logging.getLogger(__name__)

PROOF_SAMPLES = 8
"""Samples that places are proved with."""
PROOF_TOLERANCE = 0.05
"""Largest deviation, as a share of how much units differ. Rounding stays far below it, a wrong place is near 1.4."""
BATCH_BYTES = 1 << 28
"""Memory for the activations of A that are kept while B runs on the same samples."""
SILENT = 1e-10
"""A unit whose variance is below this share of its mean square is constant: it correlates with nothing."""

Statistic = Literal["correlation", "covariance"]


@dataclass(frozen=True, eq=False)
class Reading:
    """One place where the units of a group are seen.

    Attributes:
        module: Path of the module.
        place: Which axis of which of its inputs and outputs.
        positions: Where on that axis the units are.
        pooled: Average over all axes but the first, because units of other groups may be on them.
    """

    module: str
    place: ActivationSite
    positions: Positions
    pooled: bool = False

    @property
    def group(self) -> str:
        """The group whose units are seen."""
        return self.positions.group

    def features(self, call: ModuleCall) -> Float[Tensor, "samples units"]:
        """Activations of all units over all parents in float64; everything that is no unit counts as a sample."""
        index = self.positions.index - self.place.start
        values = self.place.read(call).movedim(self.place.axis, -1)
        flat = index.reshape(-1)
        if flat.numel() != values.shape[-1] or not torch.equal(flat, torch.arange(flat.numel())):
            values = values.index_select(-1, flat.to(values.device))
        values = values.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        values = values.reshape(*values.shape[:-1], *index.shape)
        values = values.squeeze(-2) if index.shape[1] == 1 else values.mean(-2)
        if self.pooled and values.ndim > 3:
            values = values.mean(tuple(range(1, values.ndim - 2)))
        return values.reshape(-1, values.shape[-1])

    def fits(self, call: ModuleCall) -> bool:
        """Whether the place has all the positions."""
        tensor = self.place.read(call)
        low, high = int(self.positions.index.min()), int(self.positions.index.max())
        return (
            tensor.is_floating_point()
            and -self.place.axis <= tensor.ndim
            and self.place.start <= low
            and high - self.place.start < tensor.shape[self.place.axis]
        )


# ---------------------------------------------------------------------- which places there are


def find_readings(
    graph: SymmetryGraph, task: Task, weights: Mapping[str, Tensor]
) -> tuple[dict[str, list[Reading]], int]:
    """The places where the units of each group are seen, each proved by running the model twice.

    Args:
        graph: The graph.
        task: Runs the model; its first batch is used.
        weights: Weights of A, as ``task.checked`` returns them.

    Returns:
        Readings of each group, an empty list where there is none; and the bytes that the activations of one sample
        take.
    """
    batch = next(iter(task.batches))
    if batch.splittable:
        batch = batch.rows(0, min(batch.size, PROOF_SAMPLES))
    batch = batch.to(task.device)
    shuffle = _shuffle(graph)
    first = graph.first_names
    shuffled = {n: shuffle.apply_tensor(first[n], t) if n in first else t for n, t in weights.items()}
    proof = _Proof(graph, task)
    before, after = (proof.run(state, batch) for state in (weights, shuffled))
    readings: dict[str, list[Reading]] = {name: [] for name in graph.groups}
    wanted = 0
    for candidates in proof.candidates.values():
        proved = next((c for c in candidates if _follows(c, before, after, shuffle)), None)
        if proved is None:
            best = candidates[0]
            logger.info("the %s of %r does not show group %s", best.place.label, best.module, best.group)
            continue
        readings[proved.group].append(proved)
        wanted += sum(values.nbytes for values in before[proved])
    return readings, wanted // batch.size


class _Proof:
    """Runs a model with hooks that read every candidate."""

    def __init__(self, graph: SymmetryGraph, task: Task) -> None:
        self.task = task
        self.parts = _parts(graph, task._model)
        self.candidates: dict[tuple[object, ...], list[Reading]] = {}
        self._keep: list[Tensor] = []

    def run(self, weights: Mapping[str, Tensor], batch: Batch) -> dict[Reading, list[Tensor]]:
        """Features of every candidate, one entry for each call of its module."""
        found: dict[Reading, list[Tensor]] = defaultdict(list)
        finding = not self.candidates
        places: dict[str, list[Reading]] = defaultdict(list)
        if not finding:
            for pair in self.candidates.values():
                for reading in pair:
                    places[reading.module].append(reading)

        def record(path: str, call: ModuleCall) -> None:
            if finding and path not in places:
                places[path] = self._search(path, call)
            for reading in places[path]:
                if reading.fits(call):
                    found[reading].append(reading.features(call))

        with hooked(self.task._model, self.parts, record):
            self.task.outputs(weights, batch.inputs)
        self._keep.clear()
        return found

    def _search(self, path: str, call: ModuleCall) -> list[Reading]:
        new: list[Reading] = []
        for attribute, axis, size, positions in self.parts[path]:
            known = place_of(call.module, attribute, axis)
            places = [known] if known is not None else []
            if not is_known(call.module):
                places = places_by_size(call, size)
            for place in places:
                new += self._add(path, place, positions, call)
        return new

    def _add(self, path: str, place: ActivationSite, positions: list[Positions], call: ModuleCall) -> list[Reading]:
        new: list[Reading] = []
        for part in positions:
            reading = Reading(path, place, part)
            if not reading.fits(call):
                continue
            key = (self._identity(path, place, call), place.when, part.key)
            if key not in self.candidates:
                self.candidates[key] = [reading, Reading(path, place, part, pooled=True)]
                new += self.candidates[key]
        return new

    def _identity(self, path: str, place: ActivationSite, call: ModuleCall) -> tuple[object, ...]:
        """Equal for two places that show the same tensor: the input that three projections share counts once."""
        if place.computed:
            return (path, place.label)
        tensor = place.read(call)
        self._keep.append(tensor)  # While it lives, no other tensor has its address.
        return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version, place.axis, place.start)


_Part = tuple[str, int, int, list[Positions]]


def _parts(graph: SymmetryGraph, model: nn.Module) -> dict[str, list[_Part]]:
    """For each module the axes of its tensors that groups act on: attribute, axis, its size, positions of units."""
    parts: dict[str, list[_Part]] = defaultdict(list)
    for node in graph.tensors.values():
        for axis in range(len(node.shape)):
            if node.axis(axis).is_fixed:
                continue
            positions = [p for p in positions_on_axis(node, axis) if p.index.shape[-1] > 1]
            for name in node.names if positions else ():
                path, attribute = owner_of(model, name)
                parts[path].append((attribute, axis, node.shape[axis], positions))
    return parts


def _shuffle(graph: SymmetryGraph) -> Alignment:
    """A symmetry that moves units in every group of more than one unit."""
    elements = {}
    for name, element in Alignment.random(graph, 0).elements.items():
        still = (element == torch.arange(element.shape[-1])).all(-1, keepdim=True)
        elements[name] = torch.where(still, element.flip(-1), element)
    return Alignment(graph, elements)


def _follows(
    reading: Reading,
    before: Mapping[Reading, list[Tensor]],
    after: Mapping[Reading, list[Tensor]],
    shuffle: Alignment,
) -> bool:
    """Whether the features of every call are shuffled as the units are."""
    calls = list(zip(before.get(reading, []), after.get(reading, []), strict=False))
    if not calls or len(before[reading]) != len(after[reading]):
        return False
    order = shuffle.flat(reading.group)
    for found, shuffled in calls:
        expected = found[:, order.to(found.device)]
        spread = (found - found.mean(1, keepdim=True)).norm()
        if found.shape != shuffled.shape or not (expected - shuffled).norm() <= PROOF_TOLERANCE * spread:
            return False
        if not spread > 0:  # Units that are all alike prove nothing.
            return False
    return True


@contextmanager
def hooked(model: nn.Module, paths: Iterable[str], record: Callable[[str, ModuleCall], None]) -> Iterator[None]:
    """ModuleCall ``record`` after each call of the named modules, without gradients and without fused fast paths."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack, torch.no_grad():
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        for path in paths:
            handle = model.get_submodule(path).register_forward_hook(_hook(path, record), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _hook(path: str, record: Callable[[str, ModuleCall], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        record(path, ModuleCall(module, args, kwargs, output))

    return hook


# ---------------------------------------------------------------------- streamed statistics


@dataclass
class CrossMoments:
    """First and second moments of the units of A against those of B, accumulated in float64.

    Values are taken relative to the means of the first batch, so that large means cost no digits.
    """

    count: int = 0
    shifts: tuple[Tensor, Tensor] | None = None
    sums: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    cross: Tensor = field(default_factory=lambda: torch.zeros(()))

    def update(self, a: Float[Tensor, "samples units"], b: Float[Tensor, "samples units"]) -> None:
        """Add samples. Both are overwritten."""
        if self.shifts is None:
            self.shifts = (a.mean(0), b.mean(0))
            self.sums = [torch.zeros_like(shift) for shift in self.shifts]
            self.squares = [torch.zeros_like(shift) for shift in self.shifts]
            self.cross = a.new_zeros(a.shape[1], b.shape[1])
        self.count += len(a)
        for side, shift, total, squares in zip((a, b), self.shifts, self.sums, self.squares, strict=True):
            side -= shift
            total += side.sum(0)
            squares += side.square().sum(0)
        self.cross.addmm_(a.T, b)

    @property
    def is_finite(self) -> bool:
        """Whether no NaN or infinity was met."""
        return bool(torch.isfinite(self.cross.sum()))

    def covariance(self) -> Float[Tensor, "units units"]:
        """Covariances of A's units (rows) and B's (columns), divided by the number of samples."""
        left, right = (total / self.count for total in self.sums)
        return self.cross / self.count - left[:, None] * right

    def correlation(self) -> Float[Tensor, "units units"]:
        """Correlations of A's units (rows) and B's (columns); 0 for a unit that is constant."""
        left, right = (self._inverse_deviation(side) for side in (0, 1))
        return self.covariance() * left[:, None] * right

    def _inverse_deviation(self, side: int) -> Tensor:
        assert self.shifts is not None
        mean = self.sums[side] / self.count
        variance = self.squares[side] / self.count - mean.square()
        silent = variance <= SILENT * (variance + (mean + self.shifts[side]).square())
        return torch.where(silent, 0.0, variance.clamp(min=torch.finfo(torch.float64).tiny).rsqrt())


def cross_moments(
    readings: Mapping[str, list[Reading]],
    task: Task,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    batches: Iterable[Batch],
    rows: int,
) -> dict[Reading, CrossMoments]:
    """Run A and B on the same batches and accumulate the moments of every reading.

    Args:
        readings: Readings of each group.
        task: Runs the model.
        a: Weights of A, as ``task.checked`` returns them.
        b: Weights of B.
        batches: The samples.
        rows: Most samples in one forward call.

    Raises:
        SolverError: An activation is NaN or infinite; the module and the batch are named.
    """
    moments = {reading: CrossMoments() for group in readings.values() for reading in group}
    by_module: dict[str, list[Reading]] = defaultdict(list)
    for reading in moments:
        by_module[reading.module].append(reading)
    kept: dict[Reading, list[Tensor]] = defaultdict(list)

    def keep(path: str, call: ModuleCall) -> None:
        for reading in by_module[path]:
            kept[reading].append(reading.features(call))

    def compare(path: str, call: ModuleCall) -> None:
        for reading in by_module[path]:
            if not kept[reading]:
                raise SolverError(f"module {path!r} is called more often in B than in A, so they cannot be compared.")
            moments[reading].update(kept[reading].pop(0), reading.features(call))

    for batch in batches:
        for start in range(0, batch.size, rows) if batch.splittable else (0,):
            part = (batch.rows(start, min(start + rows, batch.size)) if batch.splittable else batch).to(task.device)
            kept.clear()
            with hooked(task._model, by_module, keep):
                task.outputs(a, part.inputs)
            with hooked(task._model, by_module, compare):
                task.outputs(b, part.inputs)
        for reading, found in moments.items():
            if not found.is_finite:
                raise SolverError(
                    f"{batch.name}: the {reading.place.label} of module {reading.module!r} holds NaN or infinity. Are "
                    "the inputs finite?"
                )
    return moments
