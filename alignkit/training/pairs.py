"""Training pairs: labelled ones made from one network, unlabelled ones of two, from any mix of sets of networks."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice, product
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from alignkit.activations import Reading, find_readings, random_batch
from alignkit.arguments import usable_device
from alignkit.deepalign.aligner import AlignerInput, Probing
from alignkit.deepalign.input_domain import InputDomain
from alignkit.errors import TrainingError
from alignkit.graph import SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.tasks.batches import Batch
from alignkit.tasks.minibatches import first_batches, join_batches
from alignkit.tasks.task import Task
from alignkit.text import plural
from alignkit.training.augment import Freedom, augment, find_freedoms
from alignkit.training.settings import TrainingSettings

KEPT_BYTES = 1 << 30
"""Sets of networks that take no more than this are kept in memory."""

Item = TypeVar("Item")
Device = torch.device | str


@runtime_checkable
class Networks(Protocol):
    """What training needs of a set of networks; `alignkit.zoo.NetworkSet` has it."""

    @property
    def graph(self) -> SymmetryGraph:
        """The graph of all networks."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Tensor]: ...

    def indices(self, split: str) -> Sequence[int]:
        """Return the networks of the split "train" or "validation"."""

    def target(self, index: int) -> int:
        """Return what a network learnt; networks with the same target can be compared by one task."""

    def model(self) -> nn.Module:
        """Make a module of the architecture."""

    def task(self, split: str, samples: int | None, folder: Path | None, *, index: int, device: Device | None) -> Task:
        """Make a task of what a network learnt, on the data of the split "train" or "test"."""


def describe_networks(networks: Networks) -> str:
    """Say in a line how many networks a set has, of which shape, and what they learnt."""
    plan = getattr(getattr(networks, "manifest", None), "plan", None)
    if plan is None:
        sizes = Counter(group.size for group in networks.graph.groups.values())
        shape = ", ".join(f"{count} x {size} units" for size, count in sizes.items())
        return f"{plural(len(networks), 'network')} of {shape}"
    return f"{len(networks)} x {plan.architecture.describe()}, {plan.source.describe()}, seed {plan.seed}"


def seeded(*parts: object) -> torch.Generator:
    """Make a CPU generator that depends on all parts and on nothing else."""
    return torch.Generator().manual_seed(seed_of(*parts))


def seed_of(*parts: object) -> int:
    """Make a seed that depends on all parts, the same in every process."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:6], "big")


class Pool:
    """One set of networks, with all that is worked out about it once.

    Args:
        networks: The set.
        settings: How much of its data is used, and how networks are changed.
        folder: Where the data is.
        device: Where weights and samples go.
        domain: What probes are drawn from, in place of data; None for an aligner that knows of none.

    Raises:
        TrainingError: No two networks to train on have learnt the same.
    """

    def __init__(
        self,
        networks: Networks,
        settings: TrainingSettings,
        folder: Path | None = None,
        device: Device = "cpu",
        domain: InputDomain | None = None,
    ) -> None:
        self.domain = domain
        self.networks, self.settings, self.graph, self.folder = networks, settings, networks.graph, folder
        self.device = usable_device(device)
        splits = []
        for split in ("train", "validation"):
            by_target: dict[int, list[int]] = defaultdict(list)
            for index in networks.indices(split):
                by_target[networks.target(index)].append(index)
            splits.append([together for together in by_target.values() if len(together) > 1])
        self.train, self.held_out = splits  # Groups of networks that learnt the same.
        if not self.train:
            raise TrainingError(
                f"pairs need two networks that learnt the same, and the training split of a set of {len(networks)} "
                "networks has no two."
            )
        self.model = networks.model().to(self.device).eval()
        self._tasks: dict[tuple[str, int], Task] = {}
        self._samples: dict[int, list[Batch]] = {}
        self._kept: dict[int, dict[str, Tensor]] = {}
        size = sum(tensor.nbytes for tensor in networks[self.train[0][0]].values())
        self._keep = size * len(networks) <= KEPT_BYTES

    def task(self, split: str, index: int) -> Task:
        """Return what a network learnt, on samples to learn from ("train") or held out ("test")."""
        key = (split, self.networks.target(index))
        if key not in self._tasks:
            count = self.settings.samples if split == "train" else self.settings.validation_samples
            self._tasks[key] = self.networks.task(split, count, self.folder, index=index, device=self.device)
        return self._tasks[key]

    def samples(self, index: int) -> list[Batch]:
        """Return all samples to learn from, for one network, in as few batches as can be."""
        target = self.networks.target(index)
        if target not in self._samples:
            self._samples[target] = join_batches(first_batches(self.task("train", index), self.settings.samples))
        return self._samples[target]

    @cached_property
    def readings(self) -> dict[str, list[Reading]]:
        """Where the units of each group are seen, proved on one network."""
        task, first = self.task("train", self.train[0][0]), self.networks[self.train[0][0]]
        return find_readings(self.graph, task, task.checked(first))[0]

    @cached_property
    def freedoms(self) -> tuple[Freedom, ...]:
        """What leaves the function of these networks as it is."""
        return find_freedoms(self.graph, self.model, self.samples(self.train[0][0])[0])

    def weights(self, index: int) -> dict[str, Tensor]:
        """Read the weights of one network by the first name of each tensor, to the device."""
        if index in self._kept:
            return self._kept[index]
        weights: dict[str, Tensor] = {}
        for name, tensor in self.networks[index].items():
            weights.setdefault(self.graph.first_names[name], tensor.detach().to(self.device))
        if self._keep:
            self._kept[index] = weights
        return weights

    def unlabelled(self, *seed: object, probed: bool) -> tuple[AlignerInput, int]:
        """Draw two different networks that learnt the same; returns the number of the first, too."""
        generator = seeded(*seed, "networks")
        together = _draw(self.train, len, generator)
        left, right = (together[i] for i in torch.randperm(len(together), generator=generator)[:2].tolist())
        return self._pair(left, self.weights(right), *seed, probed=probed), left

    def labelled(self, *seed: object, probed: bool) -> tuple[AlignerInput, Alignment]:
        """Draw a network, a changed and permuted copy of it, and the alignment that brings the copy back."""
        generator = seeded(*seed, "network")
        together = _draw(self.train, len, generator)
        left = together[int(torch.randint(len(together), (), generator=generator))]
        changed = augment(self.graph, self.weights(left), self.freedoms, self.settings.augmentations, generator)
        moved = Alignment.random(self.graph, seed_of(*seed, "order"))
        b = {name: moved.apply_tensor(name, tensor) for name, tensor in changed.items()}
        return self._pair(left, b, *seed, probed=probed), moved.inverse()

    def held_out_pairs(self, count: int, *, probed: bool) -> Iterator[tuple[AlignerInput, int]]:
        """Yield pairs of held-out networks with the number of the first, the same at every call.

        Neighbours in the split first, then the next but one, so that few pairs are of many networks.
        """
        largest = max(map(len, self.held_out), default=0)
        neighbours = (
            (together[at], together[at + distance])
            for distance, at, together in product(range(1, largest), range(largest), self.held_out)
            if at + distance < len(together)
        )
        for number, (left, right) in enumerate(islice(neighbours, count)):
            yield self._pair(left, self.weights(right), "held out", number, probed=probed), left

    def _pair(self, left: int, b: Mapping[str, Tensor], *seed: object, probed: bool) -> AlignerInput:
        probing = None
        if probed:
            generator, kind, count = seeded(*seed, "probes"), self.settings.probe_inputs, self.settings.probes
            coin = float(torch.rand((), generator=generator))
            batch = self.minibatch(left, generator, count)
            if self.domain is not None:
                drawn = self.domain.draw(count, generator).to(self.device)
                batch = Batch(drawn, torch.zeros(count), "inputs of the domain")
            elif batch.splittable and (kind == "random" or (kind == "mixed" and coin < 0.5)):
                batch = random_batch(batch, count, generator)
            probing = Probing(self.model, self.readings, batch)
        return AlignerInput(self.graph, self.weights(left), b, probing, seed_of(*seed))

    def minibatch(self, index: int, generator: torch.Generator, rows: int | None = None) -> Batch:
        """Draw random samples of what a network learnt."""
        batch = _draw(self.samples(index), lambda batch: batch.size, generator)
        if not batch.splittable:
            return batch
        return batch.pick(torch.randperm(batch.size, generator=generator)[: rows or self.settings.batch_size])


def _draw(items: Sequence[Item], size: Callable[[Item], int], generator: torch.Generator) -> Item:
    """Draw one of some items, each as often as its size says."""
    if len(items) == 1:
        return items[0]
    sizes = torch.tensor([size(item) for item in items], dtype=torch.float64)
    return items[int(torch.multinomial(sizes, 1, generator=generator))]
