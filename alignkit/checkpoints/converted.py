"""Checkpoints whose tensors a model holds under other names, or joined and split: what is where, both ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.checkpoint import Checkpoint, open_checkpoint
from alignkit.checkpoints.dtypes import as_bits
from alignkit.checkpoints.mismatch import common_prefix
from alignkit.checkpoints.shard import TensorEntry, Values, ValuesOf, as_whole
from alignkit.errors import WeightsError
from alignkit.text import dtype_name, list_some


@dataclass(frozen=True, eq=False)
class Rearranged:
    """Tensors of a model that hold the entries of some stored tensors in another order, such as experts in one stack.

    Attributes:
        stored: Shape of each tensor on disk.
        held: Shape of each tensor of the model.
        order: For each entry of the held tensors, one tensor after the other in row-major order, its place among those
            of the stored tensors, counted in the same way. Every entry stands there once.
    """

    stored: Mapping[str, tuple[int, ...]]
    held: Mapping[str, tuple[int, ...]]
    order: Tensor = field(repr=False)

    @cached_property
    def places(self) -> Tensor:
        """The inverse of ``order``: for each stored entry its place among the held ones."""
        places = torch.empty_like(self.order)
        places[self.order] = torch.arange(len(self.order))
        return places

    def hold(self, name: str, stored: ValuesOf) -> Tensor:
        """Return one tensor of the model."""
        return _pick(name, self.held, self.order, self.stored, stored)

    def store(self, name: str, held: ValuesOf) -> Tensor:
        """Return one tensor as it is on disk."""
        return _pick(name, self.stored, self.places, self.held, held)


def _pick(
    name: str, shapes: Mapping[str, tuple[int, ...]], places: Tensor, sources: Mapping[str, object], values: ValuesOf
) -> Tensor:
    """Take the entries of one tensor of a side from all tensors of the other side."""
    ends = dict(zip(shapes, accumulate(map(prod, shapes.values())), strict=True))
    own = places[ends[name] - prod(shapes[name]) : ends[name]]
    tensors = [as_whole(values(source)) for source in sources]
    bits = torch.cat([as_bits(tensor).reshape(-1) for tensor in tensors]) if tensors[1:] else as_bits(tensors[0])
    return bits.reshape(-1)[own].reshape(shapes[name]).view(tensors[0].dtype)


@dataclass(frozen=True, eq=False)
class Conversion:
    """How the tensors of a checkpoint become those of a model. Others keep their names, and are not the model's.

    Attributes:
        renamed: The name on disk of each tensor of the model that is stored as it is.
        rearranged: Tensors that are stored in other pieces.
    """

    renamed: Mapping[str, str]
    rearranged: tuple[Rearranged, ...] = ()

    @property
    def changes_nothing(self) -> bool:
        """Whether names and tensors are the same on disk and in the model."""
        return not self.rearranged and all(held == stored for held, stored in self.renamed.items())

    def after(self, first: Conversion) -> Conversion:
        """Return the conversion that renames by ``first``, and then does this."""

        def stored(name: str) -> str:
            return first.renamed.get(name, name)

        rearranged = (
            replace(part, stored={stored(name): shape for name, shape in part.stored.items()})
            for part in self.rearranged
        )
        return Conversion({held: stored(name) for held, name in self.renamed.items()}, tuple(rearranged))


@check_arguments
def prefix_conversion(stored: Collection[str], held: Collection[str], prefix: str | None = None) -> Conversion:
    """Return what takes a prefix of a wrapper from stored names, or puts one before them; nothing where they fit.

    Args:
        stored: Names on disk.
        held: Names of the model.
        prefix: What to take away from the names that start with it. None looks for what all have or lack.
    """
    if prefix is not None:
        return Conversion({name.removeprefix(prefix): name for name in stored if name.startswith(prefix)})
    if taken := common_prefix(stored, held):
        return Conversion({name.removeprefix(taken): name for name in stored})
    put = common_prefix(held, stored)
    return Conversion({put + name: name for name in stored})


class ConvertedCheckpoint(Checkpoint):
    """A checkpoint by the names and shapes of a model's tensors; files and what is written keep those on disk.

    Raises:
        WeightsError: Tensors that the model holds as one have several dtypes, or two tensors get one name.
    """

    def __init__(self, plain: Checkpoint, conversion: Conversion) -> None:
        super().__init__(plain.path, plain.folder, plain.shards, plain.metadata, plain.side_files)
        self.conversion = conversion
        self._part_of = {name: part for part in conversion.rearranged for name in part.held}
        self._stored_in = {name: part for part in conversion.rearranged for name in part.stored}
        held = {stored: name for name, stored in conversion.renamed.items()}
        own = [held.get(name, name) for name in self.stored_names if name not in self._stored_in]
        for name, count in Counter([*own, *self._part_of]).items():
            if count > 1:
                both = f"{count} tensors are {name!r} of the model"
                raise WeightsError(f"{plain.path}: {both}. Keep the one that it reads.")
        self._stored = dict(zip(own, (n for n in self.stored_names if n not in self._stored_in), strict=True))
        for part in conversion.rearranged:
            if len(dtypes := {super(ConvertedCheckpoint, self).entry(name).dtype for name in part.stored}) > 1:
                kinds = " and ".join(sorted(map(dtype_name, dtypes)))
                one, several = next(iter(part.held)), list_some(list(part.stored), 3)
                raise WeightsError(f"{plain.path}: the model holds {several} as {one!r}, but they are {kinds}.")

    @property
    def whole_only(self) -> frozenset[str]:
        """Tensors that are rearranged."""
        return frozenset(self._part_of)

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """Name, dtype, shape and size of each tensor of the model, without its values."""
        return {name: self.entry(name) for name in self}

    def entry(self, name: str) -> TensorEntry:
        """Dtype, shape and size of one tensor, without its values."""
        if name not in self._part_of:
            return replace(super().entry(self._stored[name]), name=name)
        part = self._part_of[name]
        return TensorEntry(name, super().entry(next(iter(part.stored))).dtype, part.held[name])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor, in memory of their own."""
        return (
            self[name][start:stop].clone() if name in self._part_of else super().rows(self._stored[name], start, stop)
        )

    def take(self, name: str, index: Tensor) -> Tensor:
        """Read the rows of a tensor that ``index`` (int64) names, in its order."""
        return self[name][index] if name in self._part_of else super().take(self._stored[name], index)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor into memory of its own; see `Checkpoint`."""
        if name in self._part_of:
            return self._part_of[name].hold(name, super().__getitem__)
        return super().__getitem__(self._stored[name])

    def read_all(self) -> dict[str, Tensor]:
        """Read all tensors; those that are tied in a file are the same tensor."""
        stored = super().read_all()
        tensors = {name: stored.pop(self._stored[name]) for name in self._stored}
        for part in self.conversion.rearranged:
            tensors |= {name: part.hold(name, stored.__getitem__) for name in part.held}
            for name in part.stored:
                del stored[name]
        return {name: tensors[name] for name in self}

    def stored_values(self, values: ValuesOf) -> ValuesOf:
        """Turn values by names of the model into values by names on disk."""
        held = {stored: name for name, stored in self._stored.items()}

        def stored_value(name: str) -> Values:
            part = self._stored_in.get(name)
            return values(held[name]) if part is None else part.store(name, values)

        return stored_value

    def extended(self, copies: Mapping[str, str], side_contents: Mapping[Path, str]) -> ConvertedCheckpoint:
        """Return a checkpoint to write like this one, with more tensors; see `Checkpoint`."""
        names = {name: self._stored.get(name, name) for name in (*copies, *copies.values())}
        return self._of(super().extended({names[name]: names[like] for name, like in copies.items()}, side_contents))

    def retyped(self, dtype: torch.dtype, side_contents: Mapping[Path, str]) -> ConvertedCheckpoint:
        """Return a checkpoint to write like this one, in another dtype; see `Checkpoint`."""
        return self._of(super().retyped(dtype, side_contents))

    def described(
        self,
        header: Mapping[str, str],
        side_contents: Mapping[Path, str | Path] | None = None,
        without: Collection[Path] = (),
    ) -> ConvertedCheckpoint:
        """Return a checkpoint to write like this one, with more said about it; see `Checkpoint`."""
        return self._of(super().described(header, side_contents, without))

    def _of(self, plain: Checkpoint) -> ConvertedCheckpoint:
        """Return another checkpoint by the names that this one has."""
        other = ConvertedCheckpoint(plain, self.conversion)
        other.side_contents = plain.side_contents
        return other

    def open_alike(self, path: str | Path) -> Checkpoint:
        """Open a checkpoint of the same form by the same names."""
        return ConvertedCheckpoint(open_checkpoint(path), self.conversion)

    def __contains__(self, name: object) -> bool:
        return name in self._stored or name in self._part_of

    def __iter__(self) -> Iterator[str]:
        yield from self._stored
        yield from self._part_of

    def __len__(self) -> int:
        return len(self._stored) + len(self._part_of)
