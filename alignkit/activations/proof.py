"""The search for readings, and their proof: A runs once as it is and once with its own units shuffled.

A reading is kept only if its activations are shuffled in the same way. Example: in ``Linear(3, 4) -> ReLU ->
Linear(4, 2)`` with a group of the 4 hidden units, the candidates are the output of the first module ("pre") and the
input of the second ("post"). If the shuffle is ``[1, 2, 3, 0]``, then column 0 of the shuffled run has to be column 1
of the plain run at both sites, and so on.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from alignkit.activations.readings import Reading, hooked
from alignkit.activations.sites import (
    ModuleCall,
    Positions,
    find_sites,
    find_sites_by_size,
    owner_of,
    positions_on_axis,
)
from alignkit.graph import SymmetryGraph
from alignkit.graph.bind import StateDict
from alignkit.graph.elements.alignment import Alignment
from alignkit.tasks.batches import Batch
from alignkit.tasks.task import Task

logger = logging.getLogger(__name__)

PROOF_SAMPLES = 8
"""Samples on which readings are proved."""
PROOF_TOLERANCE = 0.05
"""Largest deviation, as a share of how much units differ. Rounding stays far below it, a wrong site is near 1.4."""


def find_readings(graph: SymmetryGraph, task: Task, weights: StateDict) -> tuple[dict[str, list[Reading]], int]:
    """Find where the units of each group are seen, each site proved by running the model twice.

    Args:
        graph: The graph.
        task: Runs the model; its first batch is used.
        weights: Weights of A, as ``task.checked`` returns them.

    Returns:
        Readings of each group, an empty list where there is none; and the bytes that the activations of one sample
        take.
    """
    batch = next(iter(task.batches)).head(PROOF_SAMPLES).to(task.device)
    # A symmetry that moves units in every group of more than one unit: elements that would rest are reversed.
    elements = {}
    for name, element in Alignment.random(graph, 0).elements.items():
        rests = (element == torch.arange(element.shape[-1])).all(-1, keepdim=True)
        elements[name] = torch.where(rests, element.flip(-1), element)
    shuffle = Alignment(graph, elements)
    first_names = graph.first_names
    shuffled = {n: shuffle.apply_tensor(first_names[n], t) if n in first_names else t for n, t in weights.items()}
    search = _Search(graph, task)
    before, after = (search.run(state, batch) for state in (weights, shuffled))
    readings: dict[str, list[Reading]] = {name: [] for name in graph.groups}
    total_bytes = 0
    for candidates in search.candidates.values():
        proved = next((c for c in candidates if _follows(before.get(c, []), after.get(c, []), shuffle, c)), None)
        if proved is None:
            plain = candidates[0]
            logger.info("the %s of %r does not show group %s", plain.site.label, plain.module, plain.group)
            continue
        readings[proved.group].append(proved)
        total_bytes += sum(values.nbytes for values in before[proved])
    return readings, total_bytes // batch.size


class _Search:
    """Runs a model with hooks that collect candidates in the first run and read them in every run."""

    def __init__(self, graph: SymmetryGraph, task: Task) -> None:
        self.task = task
        # For each module the axes that groups act on: attribute, axis, its size, and where on it the units are.
        self.parts: dict[str, list[tuple[str, int, int, list[Positions]]]] = defaultdict(list)
        for node in graph.tensors.values():
            for axis in range(len(node.shape)):
                if node.layout[axis].is_fixed:
                    continue
                positions = [p for p in positions_on_axis(node, axis) if p.index.shape[-1] > 1]
                for name in node.names if positions else ():
                    path, attribute = owner_of(task.model, name)
                    self.parts[path].append((attribute, axis, node.shape[axis], positions))
        # For each tensor and set of positions two readings, the plain one and the one that averages over all axes but
        # the first; the first that is proved counts.
        self.candidates: dict[tuple[object, ...], list[Reading]] = {}
        self._alive: list[Tensor] = []

    def run(self, weights: StateDict, batch: Batch) -> dict[Reading, list[Tensor]]:
        """Read the features of every candidate, one entry for each call of its module."""
        features: dict[Reading, list[Tensor]] = defaultdict(list)
        is_first_run = not self.candidates
        by_module: dict[str, list[Reading]] = defaultdict(list)
        for pair in self.candidates.values():
            for reading in pair:
                by_module[reading.module].append(reading)

        def record(path: str, call: ModuleCall) -> None:
            if is_first_run and path not in by_module:
                by_module[path] = self._collect(path, call)
            for reading in by_module[path]:
                if reading.fits(call):
                    features[reading].append(reading.features(call))

        with batch.named_in_errors(), hooked(self.task.model, self.parts, record):
            self.task.outputs(weights, batch.inputs)
        self._alive.clear()
        return features

    def _collect(self, path: str, call: ModuleCall) -> list[Reading]:
        """Add the candidates of one module that show a tensor or positions which no earlier one shows."""
        new: list[Reading] = []
        for attribute, axis, size, positions in self.parts[path]:
            sites = find_sites(call.module, attribute, axis)
            for site in find_sites_by_size(call, size) if sites is None else sites:
                for reading in (Reading(path, site, part) for part in positions):
                    if not reading.fits(call):
                        continue
                    # The input that three projections share is one tensor and counts once.
                    shown: tuple[object, ...] = (path, site.label)
                    if not site.computed:
                        tensor = site.read(call)
                        self._alive.append(tensor)  # While it lives, no other tensor has its address.
                        view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version)
                        shown = (*view, site.axis, site.start)
                    key = (shown, site.when, reading.positions.key)
                    if key not in self.candidates:
                        self.candidates[key] = [reading, replace(reading, pooled=True)]
                        new += self.candidates[key]
        return new


def _follows(before: list[Tensor], after: list[Tensor], shuffle: Alignment, reading: Reading) -> bool:
    """Return whether the features of every call are moved as the units are."""
    for plain, shuffled in zip(before, after, strict=False):
        spread = (plain - plain.mean(1, keepdim=True)).norm()
        if plain.shape != shuffled.shape or not spread > 0:  # Units that are all alike prove nothing.
            return False
        if not (shuffle.move_units(reading.group, plain) - shuffled).norm() <= PROOF_TOLERANCE * spread:
            return False
    return len(before) == len(after) > 0
