"""Copies of modules, whatever tensors they keep."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copy_module(module: ModuleT) -> ModuleT:
    """Return a deep copy of a module.

    Tensors that a module computed and keeps, such as the weights that `torch.nn.utils.weight_norm` and pruning put in
    place before each call, are copied as values: torch does not copy them with their gradients.
    """
    kept = (value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor))
    computed = {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}
    return copy.deepcopy(module, computed)
