"""Calls that pass the dispatcher by: elements that leave for Python, NumPy or plain memory, and come back from there.

Ops are not all that reads and writes a tensor. `h.numpy()`, `h.tolist()` or `h.untyped_storage()` give its elements
away, and no op shows what becomes of them. So the elements of such a tensor stay where they are. A call is seen here
before it reaches the dispatcher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, UnsupportedFakeTensorException
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from alignkit.tracing.recording.recorder import Leak, Recorder

_BY_ELEMENT = {Tensor.apply_, Tensor.map_, Tensor.map2_}
"""Calls of a Python function for each element. On fake tensors they end the process."""
_LEAKS = {
    Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.storage, Tensor.untyped_storage, Tensor._typed_storage,
    Tensor.__array__, Tensor.__array_wrap__, Tensor.__dlpack__, Tensor.__reduce_ex__, Tensor.__deepcopy__, *_BY_ELEMENT,
}  # fmt: skip
"""Calls that give elements or memory of a tensor away, whether or not they run ops as well."""
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
"""Calls that read positions from tensors, which the code of the model does not get."""
_TAKES_PARTS = {"select", "slice", "narrow", "split", "split_with_sizes", "unbind"}
"""Ops that take positions which a call may have read from a tensor."""
_HARMLESS = (type(None), bool, int, str, torch.dtype, torch.device, torch.layout, torch.Size, Tensor)
"""Results of a call without an op that hold no elements: sizes, dtypes; tensors, which are known by their memory."""


class Watch(TorchFunctionMode):
    """Tells a recorder which tensors give their elements away."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call; record a leak where its result holds elements that no op gave."""
        if func in _BY_ELEMENT and any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves(args)):
            raise UnsupportedFakeTensorException(f"{func} needs values")
        before, gave_numbers = len(self._recorder.steps), self._recorder.gives_numbers
        self._recorder.is_indexing, self._recorder.reads_values = func in _INDEXING, False
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._recorder.is_indexing = False
        steps = self._recorder.steps[before:]
        takes_parts = any(isinstance(step, Leak) or step.op.split("::")[1] in _TAKES_PARTS for step in steps)
        if func not in _INDEXING and _has_no_numbers(result) and not takes_parts:
            self._recorder.gives_numbers = gave_numbers  # it only checked the values of its arguments
        if func in _LEAKS or (len(self._recorder.steps) == before and not _is_harmless(result)):
            name = torch.overrides.resolve_name(func) or str(func)
            self._recorder.leak(name.replace(".", "::", 1), (args, kwargs))
        if self._recorder.reads_values and not all(isinstance(x, Tensor | None) for x in pytree.tree_leaves(result)):
            self._recorder.choose()
        return result


def _has_no_numbers(result: Any) -> bool:
    return all(isinstance(leaf, Tensor | bool | None) for leaf in pytree.tree_leaves(result))


def _is_harmless(result: Any) -> bool:
    return all(isinstance(leaf, _HARMLESS) for leaf in pytree.tree_leaves(result))
