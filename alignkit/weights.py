"""Weights as files: safetensors and ``.pt`` state dicts, read without running code and written atomically."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from alignkit.errors import WeightsError

SAFETENSORS_SUFFIXES = (".safetensors",)
PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
RESERVED_NAME = "__metadata__"
"""The one name that a safetensors file cannot hold a tensor by."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a checkpoint file to the CPU.

    Args:
        path: A ``.safetensors`` file, or a ``.pt``, ``.pth`` or ``.bin`` file that holds a state dict. The latter are
            read with ``weights_only=True``: a pickle that needs more than tensors is refused.

    Raises:
        WeightsError: The file does not exist, is damaged, is of another kind, or holds something that is no tensor.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder. Name the weights file in it.")
    if not path.exists():
        raise WeightsError(f"{path} does not exist.")
    if path.suffix in SAFETENSORS_SUFFIXES:
        return _read_safetensors(path)
    if path.suffix in PICKLE_SUFFIXES:
        return _read_pickle(path)
    known = ", ".join((*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES))
    raise WeightsError(f"{path}: weights files end in {known}. Convert the file, or rename it if it is one of these.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}.") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, and reading it could run code from the file, so it is refused. Save "
            "the state dict alone: torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:
        # A damaged pickle can make the unpickler stumble anywhere: IndexError, TypeError, and more.
        first = (str(error).splitlines() or [""])[0]
        raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {first}") from error
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict of named tensors.")
    nested = loaded.get("state_dict")
    if isinstance(nested, Mapping):
        loaded = nested
    for name, value in loaded.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor. Save the state dict alone: "
                "torch.save(model.state_dict(), path)."
            )
    return {str(name): tensor for name, tensor in loaded.items()}


def write_weights(path: str | Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to a file; either the whole file appears or nothing changes.

    Tensors that share memory are written once for each name.

    Args:
        path: Where to write. The suffix says the format, as in `read_weights`.
        weights: Tensors by name.
        metadata: Text entries for the header of a safetensors file.

    Raises:
        WeightsError: The folder does not exist or cannot be written to, the suffix is not known, or a value is no
            dense tensor.
    """
    path = Path(path)
    if path.suffix not in (*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES):
        known = ", ".join((*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES))
        raise WeightsError(f"{path}: cannot tell the format of the output. End its name in one of {known}.")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            found = f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise WeightsError(f"cannot write {path}: {name!r} is no dense tensor with values, but {found}.")
        if name == RESERVED_NAME:
            raise WeightsError(f"cannot write {path}: the name {name!r} is reserved by safetensors. Rename the tensor.")
    with atomic_path(path) as temporary:
        if path.suffix in SAFETENSORS_SUFFIXES:
            plain = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in weights.items()}
            safetensors.torch.save_file(plain, temporary, dict(metadata or {}))
        else:
            torch.save({n: t.detach().cpu() for n, t in weights.items()}, temporary)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and disappears otherwise.

    Raises:
        WeightsError: The folder does not exist or cannot be written to.
    """
    folder = path.parent
    if not folder.is_dir():
        raise WeightsError(f"cannot write {path}: the folder {folder} does not exist. Create it first.")
    if path.is_dir():
        raise WeightsError(f"cannot write {path}: it is a folder.")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror}.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
