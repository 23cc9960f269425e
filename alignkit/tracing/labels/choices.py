"""What the numbers in a tensor say about units that a run picks by number, as a router picks experts.

If a symmetry puts the units into another order, the numbers change with them. Four kinds of numbers are followed; the
example are three experts with the atoms `0 1 2`, of which two tokens take two each:

    "position"    scores.topk(2).indices    [[2 0]     each element is a choice of its own: 0 1
                                             [0 1]]                                         2 3
    "count"       bincount of these         [2 1 1]    how many of the choices fell on each expert
    "end"         cumsum of the counts      [2 3 4]    where each expert ends, once the choices are sorted
    "order"       argsort of the choices    [1 2 3 0]  which of them stands where, once they are sorted

Everything else that meets such numbers fixes the units: then the numbers are like any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from alignkit.tracing.labels.tensor_labels import Choice
from alignkit.tracing.recording.recorder import TensorRef

_EXACT = {torch.int32: 1 << 31, torch.int64: 1 << 62, torch.float32: 1 << 24, torch.float64: 1 << 53}
"""Dtypes that hold numbers of units, and the largest one. Masks of bits do not, and half precision holds few."""
_MOVES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "t", "transpose", "permute", "flip",
    "roll", "squeeze", "unsqueeze", "expand", "repeat", "select", "slice", "narrow", "split", "split_with_sizes",
    "chunk", "unbind", "cat", "stack",
}  # fmt: skip
"""Ops whose results hold elements of their tensors, and nothing else."""
_COPIES = {"clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh"}


def follow(name: str, func: Any, arguments: Any, choices: Sequence[Choice | None]) -> list[Choice | None] | None:
    """Return what the results of an op say that only moves elements of its tensors; None if it does more.

    Args:
        name: The op, without its namespace.
        func: The op itself.
        arguments: Its positional arguments and those by name, with a `TensorRef` for each tensor.
        choices: What these tensors say, in order.
    """
    told = [choice for choice in choices if choice is not None]
    if not told or len(told) < len(choices):
        return None
    args, kwargs = arguments
    if name in _COPIES:
        dtype = kwargs.get("dtype")
        return [told[0]] if dtype is None or _EXACT.get(dtype, 0) > len(told[0].atoms) else None
    alike = all(choice.kind == "position" and np.array_equal(choice.atoms, told[0].atoms) for choice in told)
    if not alike or name not in _MOVES:
        return None
    made = (torch.from_numpy(np.ascontiguousarray(choice.made)) for choice in told)
    args, kwargs = pytree.tree_map_only(TensorRef, lambda ref: next(made), (args, kwargs))
    return [
        Choice("position", told[0].atoms, part.contiguous().numpy())
        for part in pytree.tree_leaves(func(*args, **kwargs))
    ]
