"""Files of ``torch.save``: opened by their outline, read tensor by tensor, and written whole from memory."""

from __future__ import annotations

import copy
import errno
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.checkpoints.nested import StateDict, choose_state_dict
from alignkit.checkpoints.outline import Opaque, StoredTensor
from alignkit.checkpoints.shard import Shard, TensorEntry, ValuesOf
from alignkit.checkpoints.torch_archive import SAVE_ALONE, TorchArchive, read_archive
from alignkit.errors import WeightsError
from alignkit.text import first_line, readable_bytes, show_type, show_value, with_article

MAX_GROWTH, FREE_GROWTH = 4, 1 << 26
"""How many bytes tensors may have for each byte of their file, and how many more. Views may overlap, as those of one
matrix for queries and keys, or be expanded, as masks are; without a limit one number could fill all memory."""


class PickleShard(Shard):
    """A state dict written by ``torch.save``, alone or in a file that holds more; `open_pickle` makes it.

    Args:
        path: The file.
        archive: Its outline.
        chosen: The state dict in the outline, and where it is.

    Raises:
        WeightsError: There is more than dense tensors under names, or they would take far more memory than the file has
            bytes.
    """

    def __init__(self, path: Path, archive: TorchArchive, chosen: StateDict) -> None:
        self.path, self._opened_as, self._chosen, state = path, archive.status, chosen, chosen.state
        self.note = chosen.note
        self.metadata: Mapping[str, str] = {}
        self._module_versions: Any = getattr(state, "_metadata", None)  # as nn.Module.state_dict has them
        entries: dict[str, TensorEntry] = {}
        first_names: dict[str, str] = {}
        first: dict[object, str] = {}
        for name, stored in state.items():
            if not isinstance(stored, StoredTensor):
                kind = stored.kind if isinstance(stored, Opaque) else show_type(stored)
                raise WeightsError(f"{path}: entry {show_value(name)} is {kind}, not a dense tensor. {SAVE_ALONE}")
            try:
                stride = None if _is_row_major(stored) else stored.stride
                entries[name] = entry = TensorEntry(name, stored.dtype, stored.shape, stored.begin, stride)
            except ValueError as error:
                raise WeightsError(f"{path} cannot be used: {error}. {SAVE_ALONE}") from error
            first_names[name] = first.setdefault(stored.identity if entry.nbytes else name, name)
        self.entries: Mapping[str, TensorEntry] = entries
        self.first_names: Mapping[str, str] = first_names
        self._check_growth()

    def _check_growth(self) -> None:
        """Refuse tensors that take far more memory than their file explains: expanded ones, or views upon views."""
        sizes = {name: self.entries[name].nbytes for name in set(self.first_names.values())}
        size = self._opened_as.st_size
        if sum(sizes.values()) > MAX_GROWTH * size + FREE_GROWTH:
            total, largest = sum(sizes.values()), max(sizes, key=sizes.__getitem__)
            shape = f"the largest is {largest!r} of shape {[*self.entries[largest].shape]}"
            growth = f"{readable_bytes(size)}, but its tensors would take {readable_bytes(total)}: {shape}"
            raise WeightsError(f"{self.path} has {growth}. They overlap or are expanded; save them with .contiguous().")

    def write(self, target: Path, values: ValuesOf, advance: Callable[[int], None]) -> None:
        """Write a file of the same form; tensors that share memory here share it there. Other entries are left out."""
        state: Any = OrderedDict()
        for name, entry in self.entries.items():
            first = self.first_names[name]
            if first == name:
                new = values(name)
                tensor = new if isinstance(new, Tensor) else torch.cat(list(new))
                entry.check(tensor, target)
                state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            else:
                state[name] = state[first]
            advance(entry.nbytes)
        if self._module_versions is None:
            state = dict(state)
        else:
            state._metadata = self._module_versions
        save_pickle(self._chosen.wrap(state), target)

    def retyped(self, dtype: torch.dtype) -> PickleShard:
        """Return a shard to write with all floating-point tensors in another dtype; see `Shard.retyped`."""
        other = copy.copy(self)
        other.entries = {name: entry.retyped(dtype) for name, entry in self.entries.items()}
        return other

    def extended(self, copies: Mapping[str, str]) -> PickleShard:
        """Return a shard to write with more tensors, or with names that are no longer tied; see `Shard.extended`."""
        other = copy.copy(self)
        added = {name: replace(self.entries[like], name=name) for name, like in copies.items()}
        other.entries = {**self.entries, **added}
        other.first_names = {**self.first_names, **{name: name for name in copies}}
        return other


def save_pickle(values: Mapping[str, Any], target: Path) -> None:
    """Write with ``torch.save``; raise `OSError` where the disk is full or cannot be written to.

    The bytes depend on the values alone: given a path, torch would put its name inside.
    """
    try:
        with target.open("wb") as stream:
            torch.save(values, stream)
    except RuntimeError as error:  # torch's way to say so
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise OSError(errno.EIO, first_line(error)) from error


def open_pickle(path: Path, key: str | None = None) -> PickleShard:
    """Open a weights file of ``torch.save`` without its values.

    Args:
        path: The file.
        key: Where the state dict is in a file that holds more, as `choose_state_dict` takes it. Beside it there may
            then be objects of any class: they are not read.

    Raises:
        WeightsError: It is damaged or needs code from the file to be run; or as `choose_state_dict` and `PickleShard`
            say.
    """
    archive = read_archive(path, whatever_else=key is not None)
    content = _mapping(path, archive)
    try:
        chosen = choose_state_dict(content, key)
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error
    return PickleShard(path, archive, chosen)


def load_pickle(path: Path, part: Callable[[Mapping[Any, Any]], Mapping[Any, Any]] | None = None) -> Mapping[str, Any]:
    """Read a whole file of ``torch.save`` without running code from it, and hold its check sums against its bytes.

    Args:
        path: The file.
        part: Chooses what is read of the file's content; there may then be objects of any class beside it. It raises
            `WeightsError` with a sentence without the name of the file.

    Raises:
        WeightsError: The file is damaged, is not a mapping, holds more than containers, plain values and dense tensors,
            or reading it could run code.
    """
    archive = read_archive(path, check_sums=True, whatever_else=part is not None)
    content = _mapping(path, archive)
    if part is not None:
        try:
            content = part(content)
        except WeightsError as error:
            raise WeightsError(f"{path} {error}") from error
    stored = {str(number): tensor for number, tensor in enumerate(_tensors_in(content))}
    shard = PickleShard(path, archive, StateDict(stored))
    names = {id(tensor): name for name, tensor in stored.items()}
    restored: dict[int, Any] = {}

    def restore(value: Any) -> Any:
        if id(value) not in restored:
            if isinstance(value, StoredTensor):
                restored[id(value)] = shard.read(names[id(value)])
            elif isinstance(value, Mapping):
                restored[id(value)] = {key: restore(part) for key, part in value.items()}
            elif isinstance(value, list | tuple):
                restored[id(value)] = type(value)(map(restore, value))
            elif isinstance(value, Opaque):
                raise WeightsError(f"{path} holds {value.kind}, which is not read.")
            else:
                return value
        return restored[id(value)]

    try:
        loaded: Mapping[str, Any] = restore(content)
    except RecursionError as error:
        raise WeightsError(f"{path} cannot be read: it is nested too deeply, or in itself.") from error
    return loaded


def _mapping(path: Path, archive: TorchArchive) -> Mapping[Any, Any]:
    if not isinstance(archive.content, Mapping):
        one = isinstance(archive.content, StoredTensor)
        kind = "one tensor" if one else with_article(type(archive.content).__name__)
        raise WeightsError(f"{path} holds {kind}, not a state dict of named tensors. {SAVE_ALONE}")
    return archive.content


def _tensors_in(content: Any) -> list[StoredTensor]:
    """List the tensors in an outline, each once."""
    tensors: list[StoredTensor] = []
    rest, seen = [content], {id(content)}
    while rest:
        value = rest.pop()
        if isinstance(value, StoredTensor):
            tensors.append(value)
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        for part in parts:
            if id(part) not in seen:
                seen.add(id(part))
                rest.append(part)
    return tensors


def _is_row_major(stored: StoredTensor) -> bool:
    """Tell whether the elements of a tensor follow each other as those of a new one would."""
    needed = 1
    for size, step in zip(reversed(stored.shape), reversed(stored.stride), strict=True):
        if size != 1 and step != needed:
            return 0 in stored.shape
        needed *= size
    return True
