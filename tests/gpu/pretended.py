"""A pretended accelerator, and a counter of transfers: device handling can be checked where there is no GPU.

Tensors on the device ``"pretended"`` hold a CPU tensor and compute with it, so results are those of the CPU to the last
bit. What differs is what a GPU would refuse or what costs time there: operations on tensors of two devices raise, a
tensor without ``device=`` is made on the CPU, and every way back to the host is a transfer that can be counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from alignkit.checkpoints import dense

NAME = "pretended"
aten = torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default}
"""The operations that may read one device and write another."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Indices may be on the host; they are then copied to the device, which is counted."""


@cache
def registered() -> bool:
    """Make the device known to torch. False where this version of torch cannot have devices written in Python."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
    except ImportError:
        return False
    _setup_privateuseone_for_python_backend(NAME)
    return True


class OnDevice(Tensor):
    """A tensor that says that it is on the pretended device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def data_ptr(self) -> int:
        """Different for different memory, as on a real device."""
        return self.held.data_ptr()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with _Device():  # autograd calls from other threads, which do not know the mode
            return operation(*args, **(kwargs or {}))


class _Device(TorchDispatchMode):
    """Runs operations on what the tensors hold."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
        target = kwargs.get("device")
        if on_device and operation not in CROSSING:
            _check_one_device(operation, args, tensors)
        if target is not None:
            on_device = torch.device(target).type == NAME
            kwargs["device"] = torch.device("cpu")
        elif operation is aten.copy_.default:
            on_device = isinstance(args[0], OnDevice)
        found = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
        return tree_map(lambda x: OnDevice(x) if isinstance(x, Tensor) and on_device else x, found)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OnDevice) else leaf


def _check_one_device(operation: Any, args: Any, tensors: list[Tensor]) -> None:
    checked = [args[0]] if operation in INDEXING else tensors
    strangers = [t for t in checked if not isinstance(t, OnDevice) and t.ndim]
    if strangers:
        shapes = ", ".join(str(list(t.shape)) for t in strangers)
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {operation} got {NAME} and cpu (of shape {shapes})"
        )


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Inside the block the device ``"pretended"`` works, and its tensors count as dense ones, as those of a GPU do."""
    assert registered()
    why_not_dense = dense.why_not_dense

    def why_not_here(value: object) -> str | None:
        return None if isinstance(value, OnDevice) else why_not_dense(value)

    with _Device(), mock.patch.object(dense, "why_not_dense", why_not_here):
        yield torch.device(NAME, 0)


@dataclass
class Transfers(TorchDispatchMode):
    """Counts what crosses between the host and a device while it is active.

    Attributes:
        to_device: Copies from the host to the device.
        to_host: Copies from the device to the host.
        scalars: Single numbers read from the device; each waits for the device to finish.
        bytes: Size of all copies.
    """

    to_device: int = 0
    to_host: int = 0
    scalars: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operation(*args, **(kwargs or {}))
        if operation is aten._local_scalar_dense.default:
            self.scalars += not _is_host(args[0])
        elif operation is aten._to_copy.default:
            self._count(args[0], found)
        elif operation is aten.copy_.default:
            self._count(args[1], args[0])
        elif operation in INDEXING and not _is_host(args[0]):
            for index in args[1]:
                if index is not None and _is_host(index):
                    self.to_device += 1
                    self.bytes += index.nbytes
        return found

    def _count(self, source: Tensor, target: Tensor) -> None:
        if _is_host(source) and not _is_host(target):
            self.to_device += 1
        elif _is_host(target) and not _is_host(source):
            self.to_host += 1
        else:
            return
        self.bytes += source.nbytes

    __hash__ = object.__hash__


def _is_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
