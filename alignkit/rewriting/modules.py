"""Modules with other weights, and heads that are no longer tied to their embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from alignkit.errors import FoldError
from alignkit.graph.module_copy import copy_module

ModuleT = TypeVar("ModuleT", bound=nn.Module)
TIES = "tie_word_embeddings"
"""The field of a configuration of transformers that says whether the head is the embedding."""


def module_with(module: ModuleT, tensors: Mapping[str, Tensor], untied: Iterable[str] = ()) -> ModuleT:
    """Return a deep copy of a module with other values, and some parameters made ones of their own.

    Args:
        module: The module.
        tensors: New values by any name of a parameter or buffer.
        untied: Parameters that share their memory with others and no longer shall. A configuration of transformers that
            the module carries says so then.

    Raises:
        FoldError: A parameter to be untied is not there.
    """
    copied = copy_module(module)
    for name in untied:
        path, _, own = name.rpartition(".")
        try:
            part = copied.get_submodule(path)
            tied = part.get_parameter(own)
        except AttributeError as error:
            raise FoldError(f"the module has no parameter {name!r} that could be untied.") from error
        setattr(part, own, nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad))
        for holder in copied.modules():
            _untie_configuration(getattr(holder, "config", None))
    state = copied.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in state.keys() & tensors.keys():
            state[name].data.copy_(tensors[name])
    return copied


def _untie_configuration(config: Any) -> None:
    for part in (config, getattr(config, "text_config", None)):
        if getattr(part, TIES, False) is True:
            setattr(part, TIES, False)
