"""Weights in memory from files, and back: read without running code, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.checkpoint import open_checkpoint
from alignkit.checkpoints.dense import check_name, why_no_values
from alignkit.checkpoints.pickle_file import save_pickle
from alignkit.checkpoints.safetensors_file import DTYPES, RESERVED_NAME, save_safetensors
from alignkit.checkpoints.shard import KNOWN_SUFFIXES, file_kind
from alignkit.checkpoints.staging import staged
from alignkit.errors import WeightsError
from alignkit.text import dtype_name, show_value


@check_arguments
def read_weights(path: str | Path, *, key: str | None = None) -> dict[str, Tensor]:
    """Read the named tensors of a checkpoint to the CPU. `open_checkpoint` does so without its values.

    Args:
        path: A file or a folder, as `open_checkpoint` takes it.
        key: Where the state dict is in a training checkpoint.

    Raises:
        WeightsError: It does not exist, is damaged, is of another kind, or holds something that is not a tensor.
    """
    return open_checkpoint(path, key=key).read_all()


@check_arguments
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
    kind = file_kind(path)
    if kind is None:
        raise WeightsError(f"{path}: cannot tell the format of the output. End its name in one of {KNOWN_SUFFIXES}.")
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise WeightsError(f"cannot write {path}: metadata={{{show_value(key)}: {show_value(text)}}} is no text.")
    for name, tensor in weights.items():
        try:
            check_name(name)
        except ValueError as error:
            raise WeightsError(f"cannot write {path}: {error}.") from error
        if (kind_of_value := why_no_values(tensor)) is not None:
            raise WeightsError(f"cannot write {path}: {name!r} is not a dense tensor with values, but {kind_of_value}.")
        if kind == "safetensors" and tensor.dtype not in DTYPES.values():
            held = "which a safetensors file cannot hold. Convert it, or write a .pt file"
            raise WeightsError(f"cannot write {path}: {name!r} is {dtype_name(tensor.dtype)}, {held}.")
        if kind == "safetensors" and name == RESERVED_NAME:
            raise WeightsError(f"cannot write {path}: the name {name!r} is reserved by safetensors. Rename the tensor.")
    with staged(path) as temporary:
        if kind == "safetensors":
            save_safetensors(weights, temporary, metadata)
        else:
            # A class of one's own, and code that negates numbers, would have to be trusted when the file is read.
            plain = {name: tensor.detach().as_subclass(Tensor) for name, tensor in weights.items()}
            save_pickle({n: t.resolve_conj().resolve_neg().cpu() for n, t in plain.items()}, temporary)
