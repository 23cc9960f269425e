"""Recording one run of a model: every ATen op with its tensors and the module that ran it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_MAX_VALUES = 1 << 14
"""Maximum size of an integer tensor whose values are recorded: 128 KiB a tensor. Constant indices are far smaller."""


@dataclass(frozen=True)
class TensorRef:
    """A tensor as it was at one call (in-place ops may change its shape later).

    `key` identifies the tensor object, `storage` its storage, which views share. `values` are the elements of a small
    integer tensor, where the run knew them; they are usable only once its labels are fixed.
    """

    key: int
    storage: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: npt.NDArray[np.int64] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorRef:
        """Describe a tensor as it is now."""
        shape = tuple(int(n) for n in tensor.shape)
        if tensor.layout != torch.strided:
            return cls(id(tensor), -id(tensor), shape, tensor.dtype)
        values = None
        if tensor.dtype in (torch.int64, torch.int32) and tensor.numel() <= _MAX_VALUES:
            known = tensor.constant if isinstance(tensor, FakeTensor) else tensor  # fake ones know only constants
            if known is not None and known.device.type != "meta":
                with torch.utils._python_dispatch._disable_current_modes():
                    values = np.asarray(known.detach().cpu().numpy(), dtype=np.int64).copy()
        return cls(id(tensor), tensor.untyped_storage()._cdata, shape, tensor.dtype, values)


@dataclass(frozen=True)
class OpRecord:
    """One recorded op: tensors in `args`, `kwargs` and `result` are replaced by `TensorRef`."""

    func: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    where: str

    @property
    def op(self) -> str:
        """Name without overload, such as "aten::add"."""
        return str(self.func._schema.name)

    @property
    def inputs(self) -> list[TensorRef]:
        """Tensors among the arguments."""
        return refs((self.args, self.kwargs))

    @property
    def outputs(self) -> list[TensorRef]:
        """Tensors among the results."""
        return refs(self.result)

    @property
    def written(self) -> list[TensorRef]:
        """Tensors among the arguments that the op writes, or whose shape it changes."""
        arguments = self.func._schema.arguments
        by_position = zip(arguments, self.args, strict=False)
        by_name = ((a, self.kwargs[a.name]) for a in arguments if a.name in self.kwargs)
        return refs([x for a, x in (*by_position, *by_name) if a.alias_info is not None and a.alias_info.is_write])


def refs(tree: object) -> list[TensorRef]:
    """Return the tensors in a tree of arguments or results, in order."""
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, TensorRef)]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every op that runs inside of it, and keeps all tensors alive so that identities stay unique."""

    def __init__(self, path: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[OpRecord] = []
        self.alive: list[torch.Tensor] = []
        self._path = path

    def describe(self, tree: Any) -> Any:
        """Replace tensors in a tree by `TensorRef`."""
        self.alive += [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        return pytree.tree_map_only(torch.Tensor, TensorRef.of, tree)

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        """Run and record one op. Its arguments are described before the call, which may change their shapes."""
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for a device or a layout
            return func(*args, **kwargs)
        described_args, described_kwargs = self.describe((tuple(args), kwargs))
        result = func(*args, **kwargs)
        self.steps.append(OpRecord(func, described_args, described_kwargs, self.describe(result), self._path[-1]))
        return result


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
