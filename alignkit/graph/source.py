"""What a spec is written for: names, shapes, dtypes and ties of a model's or a mapping's tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from alignkit.checkpoints.ties import first_names
from alignkit.errors import GraphError
from alignkit.graph.nodes import Role, TensorNode
from alignkit.text import dtype_name

Like = nn.Module | Mapping[str, Tensor] | Mapping[str, tuple[int, ...]]


def read_tensor_nodes(like: Like) -> dict[str, TensorNode]:
    """Read names, shapes, dtypes, roles and ties of tensors, by first name; only metadata is read.

    Returns:
        Nodes whose layouts are still empty.

    Raises:
        GraphError: A value is neither a tensor nor a shape.
    """
    tensors: dict[str, Tensor] = {}
    roles: dict[str, Role] = {}
    if isinstance(like, nn.Module):
        parameters = {name for name, _ in like.named_parameters(remove_duplicate=False)}
        tensors = {n: t for n, t in like.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        roles = {name: "parameter" if name in parameters else "buffer" for name in tensors}
    elif not isinstance(like, Mapping):
        raise GraphError(
            f"like= takes a module, a state dict or a mapping of names to shapes, found {type(like).__name__}."
        )
    elif any(isinstance(value, Tensor) for value in like.values()):
        for name, value in like.items():
            if not isinstance(value, Tensor):
                raise GraphError(f"like[{name!r}] is not a tensor but {type(value).__name__}.")
            tensors[name] = value
    else:
        for name, shape in like.items():
            if not isinstance(shape, tuple | list | torch.Size) or any(not isinstance(n, int) or n < 0 for n in shape):
                raise GraphError(f"like[{name!r}] is neither a tensor nor a shape such as (128, 784): {shape!r}.")
        return {name: TensorNode(name, (name,), tuple(shape), "", ()) for name, shape in like.items()}
    tied: dict[str, list[str]] = {}
    for name, first in first_names(tensors).items():
        tied.setdefault(first, []).append(name)
    facts = {first: (tuple(tensors[first].shape), dtype_name(tensors[first].dtype)) for first in tied}
    return {n: TensorNode(n, tuple(tied[n]), *fact, (), roles.get(n, "tensor")) for n, fact in facts.items()}
