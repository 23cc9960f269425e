"""Recording one run of a model: every ATen op with its tensors and the module that ran it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, UnsupportedFakeTensorException
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_INTEGERS = (torch.int64, torch.int32)
_RANGES = (torch.ops.aten.arange.default, torch.ops.aten.arange.start, torch.ops.aten.arange.start_step)
_TRUTHS = (torch.ops.aten.equal.default, torch.ops.aten.allclose.default, torch.ops.aten.is_nonzero.default)
"""Ops that give code a truth without making a tensor."""
_MAX_VALUES = 1 << 14
"""Maximum size of an integer tensor whose values are recorded: 128 KiB a tensor. Constant indices are far smaller."""


@dataclass(frozen=True)
class TensorRef:
    """A tensor as it was at one call (in-place ops may change its shape later).

    `storage` identifies the storage, which views share, and `key` the elements of it in their order: two tensors with
    one key hold the same, whatever objects they are and however they came about. `values` are the elements of a small
    integer tensor, where the run knew them; they are usable only once its labels are fixed.
    """

    key: tuple[int, ...]
    storage: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: npt.NDArray[np.int64] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorRef:
        """Describe a tensor as it is now."""
        shape = tuple(int(n) for n in tensor.shape)
        if tensor.layout != torch.strided:
            return cls((-id(tensor),), -id(tensor), shape, tensor.dtype)
        values = None
        if tensor.dtype in _INTEGERS and tensor.numel() <= _MAX_VALUES:
            known = tensor.constant if isinstance(tensor, FakeTensor) else tensor  # fake ones know only constants
            if known is not None and known.device.type != "meta":
                with torch.utils._python_dispatch._disable_current_modes():
                    values = np.asarray(known.detach().cpu().numpy(), dtype=np.int64).copy()
        storage = tensor.untyped_storage()._cdata
        strides = (0 if n == 1 else step for n, step in zip(shape, tensor.stride(), strict=True))
        key = (storage, tensor.dtype.itemsize, tensor.storage_offset(), *shape, *strides)
        return cls(key, storage, shape, tensor.dtype, values)


@dataclass(frozen=True)
class OpRecord:
    """One recorded op: tensors in `args`, `kwargs` and `result` are replaced by `TensorRef`.

    `unused` are the numbers of those outputs that nothing after it reads. If the op takes a position that stands in a
    tensor, as in `x[index]` for an index of no dimensions, `position` is this tensor, and a number of its content.
    """

    func: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    where: str
    unused: frozenset[int] = frozenset()
    position: tuple[TensorRef, int] | None = None

    @property
    def op(self) -> str:
        """Name without overload, such as "aten::add"."""
        return str(self.func._schema.name)

    @property
    def inputs(self) -> list[TensorRef]:
        """Tensors among the arguments, and one that the position is read from."""
        return refs((self.args, self.kwargs, self.position))

    @property
    def outputs(self) -> list[TensorRef]:
        """Tensors among the results."""
        return refs(self.result)

    def arg(self, name: str, default: Any = None) -> Any:
        """Return an argument by the name that the op's schema gives it."""
        if name in self.kwargs:
            return self.kwargs[name]
        for index, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if index < len(self.args):
                    return self.args[index]
                return argument.default_value if argument.has_default_value() else default
        return default

    @property
    def written(self) -> list[TensorRef]:
        """Tensors among the arguments that the op writes, or whose shape it changes."""
        return refs(_written(self.func, self.args, self.kwargs))


@dataclass(frozen=True)
class Leak(OpRecord):
    """A call after which the elements of its tensors may be read and written without an op, such as `Tensor.numpy`."""

    name: str = ""

    @property
    def op(self) -> str:
        """Name of the call, such as "torch::Tensor.numpy"."""
        return self.name


def refs(tree: object) -> list[TensorRef]:
    """Return the tensors in a tree of arguments or results, in order."""
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, TensorRef)]


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments that an op writes, or whose shape it changes."""
    arguments = func._schema.arguments
    by_position = zip(arguments, args, strict=False)
    by_name = ((a, kwargs[a.name]) for a in arguments if a.name in kwargs)
    return [x for a, x in (*by_position, *by_name) if a.alias_info is not None and a.alias_info.is_write]


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every op that runs inside of it.

    It keeps all tensors and storages alive, so that identities stay unique. Tensors of `before` existed before the run:
    constants. `is_whole` turns False when an op gets a tensor that neither existed nor came from a recorded op: one
    that another thread made, for example, or a class of tensors that computes by itself. Values that follow from
    tensors that `vary`, or from random numbers, are not recorded: another run takes other positions. `gives_numbers`
    turns True when the code of the model gets such values as numbers of Python, `reads_values` when a call reads them,
    and `choosing` are the modules whose code got what such a call found.

    Args:
        path: The modules that are running, the innermost one last.
        before: Tensors that existed before the run, if it is on real tensors. None: it is on fake ones, which cannot.
    """

    def __init__(self, path: Sequence[str], before: Sequence[torch.Tensor] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[OpRecord] = []
        self.is_whole = True
        self.alive: dict[int, object] = {}
        self._path = path
        self._varying: set[int] = set()
        self.gives_numbers = False
        self.reads_values = False
        self.choosing: dict[str, None] = {}
        self.is_indexing = False  # a tensor by tensors
        self._position: tuple[TensorRef, int] | None = None  # read for the next op
        self._contents: dict[tuple[int, ...], int] = {}
        self._numbers_vary = False  # numbers of Python that the model computes with
        self._ranges: dict[tuple[int, ...], npt.NDArray[np.int64]] = {}  # what fake tensors made by arange hold
        self._before = None if before is None else {_storage_of(tensor): tensor for tensor in before}

    def describe(self, tree: Any) -> Any:
        """Replace tensors in a tree by `TensorRef`."""
        for tensor in _tensors(tree):
            self.alive[_storage_of(tensor)] = tensor.untyped_storage() if tensor.layout == torch.strided else tensor
        return pytree.tree_map_only(torch.Tensor, self._describe_one, tree)

    def _describe_one(self, tensor: torch.Tensor) -> TensorRef:
        ref = TensorRef.of(tensor)
        if ref.storage in self._varying:
            return replace(ref, values=None)
        return replace(ref, values=self._ranges[ref.key]) if ref.key in self._ranges else ref

    def vary(self, tree: Any) -> None:
        """Record that the values of the tensors in a tree differ from run to run, or from model to model."""
        self._varying.update(map(_storage_of, _tensors(tree)))

    def _follow_varying(self, func: Any, operands: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
        """Record which results vary: those of operands that do, of random ops, and of numbers from such tensors."""
        varies = any(_storage_of(tensor) in self._varying for tensor in operands)
        if varies and func is torch.ops.aten._local_scalar_dense.default:
            self._numbers_vary = True
            self.reads_values |= not self.is_indexing
            self.gives_numbers |= operands[0].dtype != torch.bool and not self.is_indexing
        self.reads_values |= varies and func in _TRUTHS
        made_of_numbers = not operands or func is torch.ops.aten.lift_fresh.default
        if varies or torch.Tag.nondeterministic_seeded in func.tags or (made_of_numbers and self._numbers_vary):
            self.vary(results)

    def _note_range(self, func: Any, args: Any, written: Sequence[torch.Tensor], result: Any) -> None:
        """Remember what a fake tensor holds that was made by arange, until it is written."""
        storages = set(map(_storage_of, written))
        self._ranges = {key: values for key, values in self._ranges.items() if key[0] not in storages}
        if self._before is None and func in _RANGES and result.dtype in _INTEGERS and result.numel() <= _MAX_VALUES:
            self._ranges[TensorRef.of(result).key] = np.arange(*args, dtype=np.int64)

    def choose(self) -> None:
        """Record that the code of the module that runs got something from values that differ from run to run."""
        self.choosing[self._path[-1]] = None

    def leak(self, name: str, tree: Any) -> None:
        """Record that the tensors in a tree may be read and written unseen from now on."""
        tensors = self.describe(_tensors(tree))
        varies = any(ref.storage in self._varying for ref in tensors)
        self._numbers_vary |= varies
        self.gives_numbers |= varies
        self.reads_values |= varies
        self.steps.append(Leak(torch.ops.aten.detach.default, tuple(tensors), {}, None, self._path[-1], name=name))

    def _meet(self, tensor: torch.Tensor) -> None:
        """Look at an argument of an op that no recorded op made."""
        if _hides_ops(tensor):
            self.is_whole = False
        elif self._before is None:
            self.is_whole = self.is_whole and not isinstance(tensor, FakeTensor)
        elif _storage_of(tensor) not in self._before:
            if tensor.layout == torch.strided and not tensor.untyped_storage().resizable():
                self.leak("unrecorded::memory", tensor)  # a NumPy array, for example
            else:
                self.is_whole = False

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        """Run and record one op. Its arguments are described before the call, which may change their shapes."""
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for a device or a layout
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # what is asked about tensors here is no call of the model
            written = _tensors(_written(func, args, kwargs))
            if self._before is None and not all(isinstance(tensor, FakeTensor) for tensor in written):
                raise UnsupportedFakeTensorException(f"{func} writes into a constant")
            is_new = func is torch.ops.aten.lift_fresh.default  # a tensor made of numbers, or on a NumPy array
            for tensor in _tensors((args, kwargs)) if not is_new else ():
                if _storage_of(tensor) not in self.alive:
                    self._meet(tensor)
            described_args, described_kwargs = self.describe((tuple(args), kwargs))
            result = func(*args, **kwargs) if self._before is not None else _run_fake(func, args, kwargs)
            self._note_range(func, args, written, result)
            self._follow_varying(func, _tensors((args, kwargs)), [*_tensors(result), *written])
            self._contents = {k: n for k, n in self._contents.items() if k[0] not in set(map(_storage_of, written))}
            position, self._position = self._position, None
            self.gives_numbers |= position is not None and func is not torch.ops.aten.select.int
            if func is torch.ops.aten._local_scalar_dense.default and self.is_indexing:
                index: TensorRef = described_args[0]
                if index.storage in self._varying:
                    self._position = index, self._contents.setdefault(index.key, len(self.steps))
                    return result
            described = described_args, described_kwargs, self.describe(result)
            self.steps.append(OpRecord(func, *described, self._path[-1], position=position))
            if is_new and not args[0].untyped_storage().resizable():
                self.leak("unrecorded::memory", result)
        return result


def _run_fake(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an op on fake tensors. torch refuses them in a grouped product of other dtypes than bfloat16."""
    if func is torch.ops.aten._grouped_mm.default and len(args) > 1 and (args[0].ndim, args[1].ndim) == (2, 3):
        return args[0].new_empty((args[0].shape[0], args[1].shape[2]))
    return func(*args, **kwargs)


def _storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else -id(tensor)


def _hides_ops(tensor: torch.Tensor) -> bool:
    """Return whether the class of a tensor computes its ops by code of its own."""
    own = type(tensor).__torch_dispatch__
    return own is not torch.Tensor.__torch_dispatch__ and not isinstance(tensor, FakeTensor)


@contextmanager
def follow_modules(model: nn.Module) -> Iterator[Sequence[str]]:
    """Follow which modules of the model are running: the paths, the innermost one last; "" is the model itself."""
    names = {module: name for name, module in model.named_modules()}
    path = [""]
    thread = threading.get_ident()

    def enter(module: nn.Module, args: object) -> None:
        if threading.get_ident() == thread:
            path.append(names.get(module, path[-1]))

    def leave(module: nn.Module, args: object, result: object) -> None:
        if threading.get_ident() == thread and len(path) > 1:
            path.pop()

    entering = nn.modules.module.register_module_forward_pre_hook(enter)
    with entering, nn.modules.module.register_module_forward_hook(leave, always_call=True):
        yield path
