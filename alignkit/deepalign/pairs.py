"""Training pairs: labelled ones made from one network, unlabelled ones of two, from any mix of sets of networks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from alignkit.activations import Reading, find_readings
from alignkit.alignment import Alignment
from alignkit.batches import Batch, map_tensors
from alignkit.deepalign.aligner import Pair, Probing
from alignkit.deepalign.augment import Augmentations, Freedom, augmented, find_freedoms
from alignkit.errors import TrainingError
from alignkit.graph.permutation_graph import PermutationGraph
from alignkit.path_loss import Minibatches
from alignkit.solvers.activation_matching import random_batch
from alignkit.task import Task

ProbeInputs = Literal["data", "random", "mixed"]

PROOF_ROWS = 16
"""Samples on which changes are proved to leave the function."""


class Networks(Protocol):
    """What training needs of a set of networks; `alignkit.zoo.NetworkSet` has it."""

    @property
    def graph(self) -> PermutationGraph:
        """The graph of all networks."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Tensor]: ...

    def indices(self, split: Any) -> Sequence[int]:
        """Networks of the split "train", "validation" or "test"."""

    def model(self) -> nn.Module:
        """The architecture."""

    def task(self, split: Any = ..., samples: int | None = ..., folder: Any = ...) -> Task:
        """What the networks were trained for, on the data of a split."""


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator that depends on all parts and on nothing else."""
    return torch.Generator().manual_seed(seed_of(*parts))


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


@dataclass(frozen=True)
class Limits:
    """How much of the data is used.

    Attributes:
        samples: Samples of the task to learn from.
        batch_size: Samples in a minibatch.
        held_out: Samples on which barriers of held-out networks are measured.
        probes: Inputs that the networks of a pair are run on.
        probe_inputs: What they are: samples, random numbers of the same shapes, or now this and now that.
    """

    samples: int = 10_000
    batch_size: int = 128
    held_out: int = 512
    probes: int = 48
    probe_inputs: ProbeInputs = "mixed"


class Pool:
    """One set of networks, with all that is found out about it only once.

    Args:
        networks: The set.
        limits: How much of its data is used.
        folder: Where the data is.
        device: Where weights and samples go.

    Raises:
        TrainingError: The set has fewer than two networks to train on.
    """

    def __init__(
        self, networks: Networks, limits: Limits, folder: Path | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.networks, self.limits, self.graph, self.device = networks, limits, networks.graph, torch.device(device)
        self.folder = folder
        self.train, self.held_out = (list(networks.indices(split)) for split in ("train", "validation"))
        if len(self.train) < 2:
            raise TrainingError(
                f"a set has {len(self.train)} networks to train on, of {len(networks)} in all; pairs need at least 2."
            )
        self.model = networks.model().to(self.device).eval()
        self.task = _on(networks.task(split="train", samples=limits.samples, folder=folder), self.device)
        self._pools = Minibatches(self.task, limits.samples, limits.batch_size, seeded("pool")).pools

    @cached_property
    def judge(self) -> Task:
        """The task on held-out samples."""
        task = self.networks.task(split="test", samples=self.limits.held_out, folder=self.folder)
        return _on(task, self.device)

    @cached_property
    def readings(self) -> dict[str, list[Reading]]:
        """Where the units of each group are seen."""
        weights = self.task.checked(dict(self.networks[self.train[0]]))
        return find_readings(self.graph, self.task, weights)[0]

    @cached_property
    def freedoms(self) -> tuple[Freedom, ...]:
        """What leaves the function of these networks as it is."""
        batch = self._pools[0]
        batch = batch.rows(0, min(batch.size, PROOF_ROWS)) if batch.splittable else batch
        return find_freedoms(self.graph, self.model, self.weights(self.train[0]), batch)

    def weights(self, index: int) -> dict[str, Tensor]:
        """Weights of one network by the first name of each tensor, on the device."""
        given = self.networks[index]
        names = {node.name: next(n for n in node.names if n in given) for node in self.graph.tensors.values()}
        return {first: given[name].detach().to(self.device) for first, name in names.items()}

    # ---------------------------------------------------------------- pairs

    def unlabelled(self, *seed: object, probed: bool) -> Pair:
        """Two different networks."""
        generator = seeded(*seed, "networks")
        left, right = (self.train[i] for i in torch.randperm(len(self.train), generator=generator)[:2].tolist())
        return self.pair(self.weights(left), self.weights(right), *seed, probed=probed)

    def labelled(self, settings: Augmentations, *seed: object, probed: bool) -> tuple[Pair, Alignment]:
        """A network, a changed and permuted copy of it, and the alignment that brings the copy back."""
        generator = seeded(*seed, "network")
        a = self.weights(self.train[int(torch.randint(len(self.train), (), generator=generator))])
        changed = augmented(self.graph, a, self.freedoms, settings, generator)
        moved = Alignment.random(self.graph, seed_of(*seed, "order"))
        b = {name: moved.apply_tensor(name, tensor) for name, tensor in changed.items()}
        return self.pair(a, b, *seed, probed=probed), moved.inverse()

    def held_out_pairs(self, count: int, *, probed: bool) -> Iterator[Pair]:
        """Pairs of held-out networks, the same at every call: first neighbours in their list, then the next but one."""
        held_out = self.held_out
        for made in range(count if len(held_out) > 1 else 0):
            left = made % len(held_out)
            right = (left + 1 + made // len(held_out)) % len(held_out)
            if left != right:
                a, b = self.weights(held_out[left]), self.weights(held_out[right])
                yield self.pair(a, b, "held out", made, probed=probed)

    def pair(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor], *seed: object, probed: bool) -> Pair:
        """A pair, with probes if they are wanted."""
        return Pair(self.graph, a, b, self._probing(seeded(*seed, "probes")) if probed else None, seed_of(*seed))

    def _probing(self, generator: torch.Generator) -> Probing:
        limits = self.limits
        coin = float(torch.rand((), generator=generator))
        batch = self.minibatch(generator, limits.probes)
        if batch.splittable and (limits.probe_inputs == "random" or (limits.probe_inputs == "mixed" and coin < 0.5)):
            batch = random_batch(batch, limits.probes, generator)
        return Probing(self.model, self.readings, batch)

    def minibatch(self, generator: torch.Generator, rows: int | None = None) -> Batch:
        """Random samples of the task."""
        sizes = torch.tensor([float(pool.size) for pool in self._pools])
        pool = self._pools[int(torch.multinomial(sizes, 1, generator=generator))] if len(sizes) > 1 else self._pools[0]
        if not pool.splittable:
            return pool
        chosen = torch.randperm(pool.size, generator=generator)[: rows or self.limits.batch_size].to(self.device)

        def pick(tensor: Tensor) -> Tensor:
            return tensor[chosen]

        return Batch(map_tensors(pick, pool.inputs), map_tensors(pick, pool.targets), pool.name)


def _on(task: Task, device: torch.device) -> Task:
    """The task on a device; a task is bound to one when it is made."""
    if task.device == device:
        return task
    return Task(task._model, [(b.inputs, b.targets) for b in task.batches], task.loss, task.metric, device=device)
