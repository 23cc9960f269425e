"""Checkpoints with zeros in place of tensors that they lack, or that are not to count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from alignkit.checkpoints.checkpoint import Checkpoint
from alignkit.checkpoints.shard import TensorEntry


class FilledCheckpoint(Checkpoint):
    """A checkpoint to read from, in which some tensors are zero whatever its files hold.

    Args:
        plain: The checkpoint.
        zeros: Dtype and shape of these tensors.
    """

    def __init__(self, plain: Checkpoint, zeros: Mapping[str, TensorEntry]) -> None:
        super().__init__(plain.path, plain.folder, plain.shards, plain.metadata, plain.side_files)
        self._plain, self._zeros = plain, dict(zeros)

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """Name, dtype, shape and size of each tensor, without its values."""
        return {**self._plain.entries, **self._zeros}

    @property
    def whole_only(self) -> frozenset[str]:
        """Tensors that can only be read as a whole."""
        return self._plain.whole_only - self._zeros.keys()

    def entry(self, name: str) -> TensorEntry:
        """Dtype, shape and size of one tensor, without its values."""
        return self._zeros[name] if name in self._zeros else self._plain.entry(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor, in memory of their own."""
        return self._of_rows(name, stop - start) if name in self._zeros else self._plain.rows(name, start, stop)

    def take(self, name: str, index: Tensor) -> Tensor:
        """Read the rows of a tensor that ``index`` (int64) names, in its order."""
        return self._of_rows(name, len(index)) if name in self._zeros else self._plain.take(name, index)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor into memory of its own; see `Checkpoint`."""
        if name not in self._zeros:
            return self._plain[name]
        return torch.zeros(self._zeros[name].shape, dtype=self._zeros[name].dtype)

    def read_all(self) -> dict[str, Tensor]:
        """Read all tensors; those that are tied in a file are the same tensor."""
        return {**self._plain.read_all(), **{name: self[name] for name in self._zeros}}

    def _of_rows(self, name: str, count: int) -> Tensor:
        """Return some rows of zeros."""
        entry = self._zeros[name]
        return torch.zeros((count, *entry.shape[1:]), dtype=entry.dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._zeros or name in self._plain

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
