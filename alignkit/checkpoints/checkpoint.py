"""`Checkpoint`: the tensors of a checkpoint as one lazy mapping over its files."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.folder import CONFIG, INDEX_SUFFIX, find_weights, inside, read_index, side_files
from alignkit.checkpoints.foreign import advice_for_suffix, missing_advice, refuse_address, refuse_content
from alignkit.checkpoints.hub import locate
from alignkit.checkpoints.opening import is_folder, read_file
from alignkit.checkpoints.pickle_file import open_pickle
from alignkit.checkpoints.safetensors_file import SafetensorsShard
from alignkit.checkpoints.shard import KNOWN_SUFFIXES, Shard, TensorEntry, ValuesOf, file_kind
from alignkit.errors import WeightsError
from alignkit.text import plural, readable_bytes


class Checkpoint(Mapping[str, Tensor]):
    """Named tensors in files, made by `open_checkpoint`. A tensor is read when it is asked for, and is not kept.

    Attributes:
        path: What was opened: a file, or a folder.
        folder: Folder that an output like this one is; None where the checkpoint is one file.
        shards: The weights files, each with its path and the facts of its tensors.
        metadata: Text entries of the file's header; of the index for a sharded checkpoint.
        side_files: Files that go along with the weights, such as config and tokenizer, relative to ``folder``.
        side_contents: What side files hold in outputs where that is something else than here: a text, or the path of
            the file that they are a copy of.
        config: The ``config.json`` beside the weights, or None.
    """

    def __init__(
        self,
        path: Path,
        folder: Path | None,
        shards: tuple[Shard, ...],
        metadata: Mapping[str, Any],
        side_files: tuple[Path, ...] = (),
    ) -> None:
        self.path, self.folder, self.shards, self.side_files = path, folder, shards, side_files
        self.side_contents: dict[Path, str | Path] = {}
        self.metadata = MappingProxyType(dict(metadata))
        beside = (folder or shards[0].path.parent) / CONFIG
        self.config: Path | None = beside if os.path.isfile(beside) else None
        self._shard_of: dict[str, Shard] = {}
        for shard in shards:
            for name in shard.entries:
                if name in self._shard_of:
                    files = f"both in {self._shard_of[name].path.name} and in {shard.path.name}"
                    raise WeightsError(f"{path}: the tensor {name!r} is {files}.")
                self._shard_of[name] = shard

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """Name, dtype, shape and size of each tensor, without its values."""
        return {name: shard.entries[name] for name, shard in self._shard_of.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Dtype of each tensor."""
        return {name: entry.dtype for name, entry in self.entries.items()}

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names on disk; those of a model are others where it was opened for one."""
        return tuple(self._shard_of)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was read of files that hold more than one state dict, in a sentence each."""
        return tuple(f"{shard.path}: {shard.note}." for shard in self.shards if shard.note)

    @property
    def whole_only(self) -> frozenset[str]:
        """Tensors that can only be read as a whole, since their entries do not stand together on disk."""
        return frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(entry.nbytes for entry in self.entries.values())

    def entry(self, name: str) -> TensorEntry:
        """Dtype, shape and size of one tensor, without its values."""
        return self._shard_of[name].entries[name]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor, in memory of their own; only they are read."""
        return self._shard_of[name].read(name, start, stop)

    def take(self, name: str, index: Tensor) -> Tensor:
        """Read the rows of a tensor that ``index`` (int64) names, in its order; only they are read."""
        return self._shard_of[name].take(name, index)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor into memory of its own.

        `KeyError` if there is none of the name; `WeightsError` if the file was changed since it was opened, or cannot
        be read.
        """
        return self._shard_of[name].read(name)

    def read_all(self) -> dict[str, Tensor]:
        """Read all tensors, each once; names that are tied in a file of ``torch.save`` have the same tensor.

        Raises:
            WeightsError: As `__getitem__`.
        """
        tensors: dict[str, Tensor] = {}
        for name, shard in self._shard_of.items():
            first = shard.first_names[name]
            tensors[name] = tensors[first] if first != name else shard.read(name)
        return tensors

    def stored_values(self, values: ValuesOf) -> ValuesOf:
        """Turn values by the names of this mapping into values by names on disk."""
        return values

    def extended(self, copies: Mapping[str, str], side_contents: Mapping[Path, str]) -> Checkpoint:
        """Return a checkpoint to write like this one, with more tensors: an untied head, for example.

        Args:
            copies: Names of the new tensors, each with a tensor of its dtype and shape, beside which it is written. A
                name that is there already is no longer tied to others.
            side_contents: What side files hold in the output, where that is something else than here.
        """
        homes = {name: self._shard_of[name if name in self._shard_of else like] for name, like in copies.items()}
        shards = tuple(
            shard.extended({name: like for name, like in copies.items() if homes[name] is shard})
            for shard in self.shards
        )
        return self._with_shards(shards, side_contents, homes)

    def retyped(self, dtype: torch.dtype, side_contents: Mapping[Path, str]) -> Checkpoint:
        """Return a checkpoint to write like this one, with all floating-point tensors in another dtype.

        Values cannot be read from it.

        Args:
            dtype: The dtype.
            side_contents: What side files hold in the output, where that is something else than here.
        """
        return self._with_shards(tuple(shard.retyped(dtype) for shard in self.shards), side_contents, {})

    def described(
        self,
        header: Mapping[str, str],
        side_contents: Mapping[Path, str | Path] | None = None,
        without: Collection[Path] = (),
    ) -> Checkpoint:
        """Return a checkpoint to write like this one, with more said about it.

        Args:
            header: Entries that the headers of safetensors files get beside their own; other files have no header.
            side_contents: More side files, or others: the text of each, or the file that it is a copy of.
            without: Side files that are left out.
        """
        other = self._with_shards(tuple(shard.described(header) for shard in self.shards), {}, {})
        if self.folder is not None:
            other.side_contents |= side_contents or {}
            kept = (side for side in self.side_files if side not in without)
            other.side_files = tuple(dict.fromkeys((*kept, *other.side_contents)))
        return other

    def source_of_side(self, side: Path) -> Path | None:
        """Return the file that a side file of an output is a copy of; None where its text is in `side_contents`."""
        content = self.side_contents.get(side, (self.folder or Path()) / side)
        return content if isinstance(content, Path) else None

    def _with_shards(
        self, shards: tuple[Shard, ...], side_contents: Mapping[Path, str], homes: Mapping[str, Shard]
    ) -> Checkpoint:
        """Return a checkpoint of other shards, whose index says where new tensors are and how large all are."""
        other = Checkpoint(self.path, self.folder, shards, self.metadata, self.side_files)
        other.side_contents = {**self.side_contents, **side_contents}
        for index in self.side_files if homes or other.nbytes != self.nbytes else ():
            if index.name.endswith(INDEX_SUFFIX) and self.folder is not None:
                known = self.side_contents.get(index)
                facts = json.loads(known if isinstance(known, str) else read_file(self.folder / index))
                facts["weight_map"] |= {n: str(home.path.relative_to(self.folder)) for n, home in homes.items()}
                if "total_size" in (facts.get("metadata") or {}):
                    facts["metadata"]["total_size"] += other.nbytes - self.nbytes
                other.side_contents[index] = json.dumps(facts, indent=2, sort_keys=True) + "\n"
        return other

    def open_alike(self, path: str | Path) -> Checkpoint:
        """Open a checkpoint of the same form, such as one that was written like this one."""
        return open_checkpoint(path)

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)

    def __repr__(self) -> str:
        counts = f"{plural(len(self), 'tensor')}, {readable_bytes(self.nbytes)}, {plural(len(self.shards), 'file')}"
        return f"Checkpoint({str(self.path)!r}: {counts})"


@check_arguments
def open_checkpoint(path: str | Path, *, key: str | None = None, download: bool = False) -> Checkpoint:
    """Open a checkpoint without reading its values.

    Args:
        path: A ``.safetensors`` file; a file of ``torch.save`` (``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.pth.tar``),
            of which tensors are read and no code is run; an index of shards (``model.safetensors.index.json``,
            ``pytorch_model.bin.index.json``); a folder that holds one of these, such as a model of Hugging Face; or the
            id of a model on its hub, ``owner/name`` or ``owner/name@revision``, which is read from the cache.
        key: Where the state dict is in a training checkpoint, such as ``"state_dict_ema"`` or ``"ema.model"``. Without
            it the usual places are looked at, and `Checkpoint.notes` tells what was read.
        download: Whether a model of the hub that the cache does not hold may be downloaded.

    Returns:
        A lazy mapping of names to tensors on the CPU.

    Raises:
        WeightsError: It does not exist, a file is damaged or of another kind, there is nothing under ``key``, an index
            names files outside its folder or tensors that are not there, a tensor is in two files, or reading could run
            code from a file.
        MissingExtraError: It is an id of the hub, and ``huggingface_hub`` is not installed.
    """
    refuse_address(path)
    path = locate(path, download=download)
    try:
        folder, weights = (path, find_weights(path)) if is_folder(path) else (None, path)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist.{missing_advice(path)}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    if weights.name.endswith(INDEX_SUFFIX):
        folder = weights.parent
        names, metadata = read_index(weights)
        shards = tuple(_open_shard(inside(folder, file, weights), key) for file in names)
        for shard, promised in zip(shards, names.values(), strict=True):
            if missing := sorted(set(promised) - shard.entries.keys()):
                raise WeightsError(f"{weights} says that {missing[0]!r} is in {shard.path.name}, but it is not there.")
            if extra := sorted(shard.entries.keys() - set(promised)):
                raise WeightsError(f"{shard.path} holds {extra[0]!r}, which {weights.name} does not place there.")
        return Checkpoint(path, folder, shards, metadata, side_files(folder, weights))
    if folder is not None:
        shard = _open_shard(inside(folder, weights.name, folder), key)
        return Checkpoint(path, folder, (shard,), shard.metadata, side_files(folder, None))
    shard = _open_shard(path, key)
    return Checkpoint(path, None, (shard,), shard.metadata)


def _open_shard(path: Path, key: str | None) -> Shard:
    """Open one weights file, by its suffix."""
    kind = file_kind(path)
    if kind is None:
        raise WeightsError(f"{path}: weights files end in {KNOWN_SUFFIXES}. {advice_for_suffix(path)}.")
    refuse_content(path)
    if kind == "pickle":
        return open_pickle(path, key)
    if key is not None:
        raise WeightsError(f"{path} is a safetensors file, which holds one state dict: leave key={key!r} (--key) out.")
    return SafetensorsShard(path)
