"""Models whose ops or weights cannot be seen: what they are, and what to trace in their place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from alignkit.errors import TraceError
from alignkit.text import list_some


def refuse_hidden_ops(model: nn.Module, inputs: object) -> None:
    """Raise a `TraceError` where a run of a model would not show all that it computes with."""
    kind = type(model).__name__
    modules = dict(model.named_modules())
    if any(isinstance(m, torch.jit.ScriptModule) for m in modules.values()):
        raise TraceError(
            f"{kind} is, or contains, a scripted module, whose ops cannot be followed. Trace the module that it was "
            "scripted from; the graph fits both, because their tensors have the same names."
        )
    if any(isinstance(m, torch.fx.GraphModule) and "eval" in vars(m) for m in modules.values()):
        raise TraceError(
            f"{kind} is, or contains, a module that torch.export made, without an eval mode. Trace the module that it "
            "was exported from; the graph fits both, because their tensors have the same names."
        )
    if any(isinstance(x, Tensor) and x.is_nested for x in pytree.tree_leaves(inputs)):
        raise TraceError("an input is a nested (jagged) tensor, whose ops cannot be followed. Trace with a padded one.")
    if any(hasattr(m, "_orig_mod") for m in modules.values()):
        raise TraceError(
            f"{kind} is, or contains, a compiled module. Trace the original: alignkit.trace(model._orig_mod, ...)."
        )
    packed = [name for name, m in modules.items() if any(isinstance(x, torch.ScriptObject) for x in vars(m).values())]
    if packed:
        raise TraceError(
            f"{kind} is, or contains, a quantised module with packed weights, whose units cannot be reordered: "
            f"{list_some(packed, 3)}. Trace and align the model that it was quantised from, and quantise the result."
        )
    state = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, p in state if nn.parameter.is_lazy(p)]
    if lazy:
        raise TraceError(
            f"{kind} has lazy tensors without a shape: {list_some(lazy, 5)}. Call the model once on real inputs "
            "first, so that they get one."
        )
    thin = [name for name, x in model.state_dict(keep_vars=True).items() if isinstance(x, Tensor) and not _is_dense(x)]
    if thin:
        raise TraceError(
            f"{kind} saves tensors that are not dense, in which units cannot be reordered: {list_some(thin, 3)}. Store "
            "them with to_dense() or dequantize(), or, where a checkpoint need not have them, by "
            "register_buffer(name, tensor, persistent=False)."
        )


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
