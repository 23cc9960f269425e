"""A data set of networks on disk: stacked weights that are read when they are needed."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints.folder import inside
from alignkit.checkpoints.safetensors_file import SafetensorsShard
from alignkit.errors import WeightsError, ZooError
from alignkit.graph import SymmetryGraph
from alignkit.tasks.task import Task
from alignkit.text import list_some, plural
from alignkit.tracing import trace
from alignkit.zoo.manifest import MANIFEST, SPLITS, Manifest, read_manifest


class NetworkSet(Sequence[dict[str, Tensor]]):
    """Trained networks of one architecture, with what they learnt and how.

    ``set[i]`` is the state dict of network ``i``; nothing is read before. Made by `write_set`, opened by `open`.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._starts = [shard.first for shard in manifest.shards]

    @classmethod
    @check_arguments
    def open(cls, folder: str | Path) -> NetworkSet:
        """Open a data set.

        Raises:
            ZooError: The folder holds none, its manifest is damaged, a file is missing, or it is not complete.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if not manifest.complete:
            raise ZooError(
                f"{folder} holds {len(manifest.networks)} of {manifest.plan.count} networks: its training was cut off. "
                "Run the same command again to resume it."
            )
        missing = [shard.file for shard in manifest.shards if not os.path.isfile(folder / shard.file)]
        if missing:
            raise ZooError(f"{folder} lacks {list_some(missing, 5)}, which its manifest lists.")
        try:
            for shard in manifest.shards:
                inside(folder, shard.file, folder / MANIFEST)
        except WeightsError as error:
            raise ZooError(str(error)) from error
        return cls(folder, manifest)

    def __len__(self) -> int:
        return len(self.manifest.networks)

    def __getitem__(self, index: Any) -> Any:
        """Read the state dict of network ``index``; of a slice, a list of them."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return {name: value[0] for name, value in self.stack([number]).items()}

    def __repr__(self) -> str:
        architecture, source = self.manifest.plan.architecture.describe(), self.manifest.plan.source.describe()
        return f"NetworkSet({str(self.folder)!r}: {len(self)} x {architecture}, {source})"

    def explain(self) -> str:
        """Say in a few lines what the set holds and how well its networks do."""
        manifest = self.manifest
        plan, networks = manifest.plan, manifest.networks
        parts = ", ".join(f"{len(numbers)} {name}" for name, numbers in manifest.splits.items())
        losses = [network.loss for network in networks]
        right = [network.accuracy for network in networks if network.accuracy is not None]
        text = f"Test loss: mean {sum(losses) / len(losses):.3g}, worst {max(losses):.3g}."
        if right:
            text += f" Accuracy: mean {sum(right) / len(right):.4f}, worst {min(right):.4f}."
        rate = f", {len(networks) / manifest.seconds:.2f} networks/s" if manifest.seconds > 0 else ""
        kind = f"{plan.architecture.describe()} on {plan.source.describe()}"
        files = f"{plural(len(manifest.shards), 'file')} in {self.folder}; trained in {manifest.seconds:.1f} s{rate}"
        return f"{plural(len(networks), 'network')}: {kind} ({parts})\n{text}\n{files}"

    @check_arguments
    def stack(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Read stacked weights ``[k, ...]`` of some networks, in the order given.

        Raises:
            ZooError: A number is out of range, or a file cannot be read.
        """
        wanted = [int(index) for index in indices]
        outside = [index for index in wanted if not 0 <= index < len(self)]
        if outside or not wanted:
            raise ZooError(f"{self.folder} holds networks 0 to {len(self) - 1}; asked for {outside or 'none'}.")
        read: dict[int, dict[str, Tensor]] = {}
        for home, numbers in groupby(sorted(set(wanted)), lambda index: bisect_right(self._starts, index) - 1):
            shard = self.manifest.shards[home]
            path = self.folder / shard.file
            try:
                stacked = SafetensorsShard(path)
                for index in numbers:
                    at = index - shard.first
                    read[index] = {name: stacked.read(name, at, at + 1)[0] for name in stacked.entries}
            except (WeightsError, IndexError) as error:
                raise ZooError(f"{path} cannot be read: {error}.") from error
        return {name: torch.stack([read[index][name] for index in wanted]) for name in read[wanted[0]]}

    @check_arguments
    def indices(self, split: str) -> list[int]:
        """Return the numbers of the networks of a split: ``"train"``, ``"validation"`` or ``"test"``.

        Raises:
            ZooError: There is no such split.
        """
        if split not in SPLITS:
            raise ZooError(f"no split is named {split!r}: choose {', '.join(SPLITS)}.")
        return list(self.manifest.splits[split])

    @check_arguments
    def target(self, index: int) -> int:
        """Return what network ``index`` learnt; networks with the same target are views of one signal."""
        return self.manifest.networks[index].target

    @check_arguments
    def pairs(self, split: str) -> list[tuple[int, int]]:
        """List all pairs ``(i, j)``, ``i < j``, of a split that learnt the same: one task judges the line between them.

        Raises:
            ZooError: There is no such split.
        """
        chosen = self.indices(split)
        return [(i, j) for i in chosen for j in chosen if i < j and self.target(i) == self.target(j)]

    @check_arguments
    def model(self) -> nn.Module:
        """Make a module of the architecture in eval mode, with the weights of network 0."""
        module = self.manifest.plan.architecture.build()
        module.load_state_dict(self[0])
        return module.eval()

    @cached_property
    def graph(self) -> SymmetryGraph:
        """The symmetry graph of the architecture, traced once."""
        return trace(self.model(), self.manifest.plan.architecture.example())

    @check_arguments
    def data(
        self, split: str = "test", samples: int | None = None, folder: str | Path | None = None, *, index: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return inputs ``[n, ...]`` and targets ``[n, ...]`` of what the networks learnt.

        Args:
            split: Of the source's samples: ``"train"`` or ``"test"``.
            samples: Only the first so many. None is all.
            folder: Where idx files are.
            index: The network whose target is meant, where networks have targets of their own.

        Raises:
            ZooError: There is no such split, or files are missing.
        """
        if split not in ("train", "test"):
            raise ZooError(f"a source has no split {split!r}: choose train or test.")
        plan = self.manifest.plan
        data = plan.source.data(folder, split, [self.target(index)], plan.seed)  # type: ignore[arg-type]
        inputs, targets = data.of_first()
        return inputs[:samples], targets[:samples]

    @check_arguments
    def task(
        self,
        split: str = "test",
        samples: int | None = None,
        folder: str | Path | None = None,
        *,
        index: int = 0,
        device: torch.device | str | None = None,
    ) -> Task:
        """Make a task of what the networks learnt, for barriers and losses.

        Arguments are those of `data`, and the device on which to compute.

        Raises:
            ZooError: There is no such split, or files are missing.
        """
        plan = self.manifest.plan
        batches = self.data(split, samples, folder, index=index)
        return Task(plan.architecture.build(), batches, plan.source.loss, plan.source.metric, device=device)
