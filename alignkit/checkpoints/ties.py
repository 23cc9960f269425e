"""Tied tensors: several names for the same numbers in memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def tensor_identity(tensor: Tensor) -> object:
    """Return a key that tied tensors share: the same place of the same storage, seen in the same way."""
    if tensor.numel() == 0:
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Map every name to the first name of the same tensor."""
    first: dict[object, str] = {}
    return {name: first.setdefault(tensor_identity(tensor), name) for name, tensor in tensors.items()}
