"""Binding: the weights of two models held against one graph, every mismatch found at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from alignkit.checkpoints.checkpoint import Checkpoint
from alignkit.checkpoints.weights import all_finite, read_weights
from alignkit.errors import BindError
from alignkit.graph.source import tensor_identity
from alignkit.text import dtype_name

if TYPE_CHECKING:
    from alignkit.graph.symmetry_graph import SymmetryGraph

WeightsSource: TypeAlias = nn.Module | Mapping[str, Tensor] | str | Path


@dataclass(frozen=True, eq=False)
class Pair:
    """A graph with the weights of two models, checked to fit.

    Attributes:
        graph: The graph.
        a: Weights of the reference model, by the first name of each tensor.
        b: Weights of the model to be aligned.
        module_a: The module that ``a`` came from, when one was given.
        module_b: The module that ``b`` came from, when one was given.
    """

    graph: SymmetryGraph
    a: Mapping[str, Tensor] = field(repr=False)
    b: Mapping[str, Tensor] = field(repr=False)
    module_a: nn.Module | None = field(default=None, repr=False)
    module_b: nn.Module | None = field(default=None, repr=False)

    def swapped(self) -> Pair:
        """The same pair with the roles of A and B exchanged."""
        return Pair(self.graph, self.b, self.a, self.module_b, self.module_a)


def bind(graph: SymmetryGraph, a: WeightsSource, b: WeightsSource) -> Pair:
    """Hold the weights of two models against a graph.

    Args:
        graph: The graph of their architecture.
        a: Reference model: a module, a state dict, a `Checkpoint`, or the path of a checkpoint file or folder.
        b: Model to be aligned.

    Returns:
        The pair. Tensors are detached, not copied.

    Raises:
        BindError: Names, shapes, dtypes or values do not fit; the message lists every mismatch of both models.
        WeightsError: A file cannot be read.
    """
    problems: list[str] = []
    side_a = fit_weights(graph, a, "A", problems)
    side_b = fit_weights(graph, b, "B", problems)
    problems += [
        f"{name!r} is {dtype_name(side_a[name].dtype)} in A but {dtype_name(side_b[name].dtype)} in B"
        for name in side_a.keys() & side_b.keys()
        if side_a[name].dtype != side_b[name].dtype
    ]
    if problems:
        listed = "\n".join(f"  - {text}" for text in sorted(problems))
        raise BindError(f"the weights do not fit the graph, {len(problems)} problems:\n{listed}")
    module_a = a if isinstance(a, nn.Module) else None
    module_b = b if isinstance(b, nn.Module) else None
    return Pair(graph, side_a, side_b, module_a, module_b)


def weights_of(source: WeightsSource) -> dict[str, Tensor]:
    """The named tensors of a module (parameters and saved buffers), a mapping, or a checkpoint; detached.

    Raises:
        BindError: The source is none of these, or holds something that is no tensor.
        WeightsError: A file cannot be read.
    """
    if isinstance(source, nn.Module):
        return {n: t for n, t in source.state_dict().items() if isinstance(t, Tensor)}
    if isinstance(source, str | Path):
        return dict(read_weights(source))
    if isinstance(source, Checkpoint):
        return dict(source)  # Each tensor is read once.
    if not isinstance(source, Mapping):
        raise BindError(f"weights are a module, a state dict or a path, found {type(source).__name__}.")
    for name, value in source.items():
        if not isinstance(value, Tensor):
            raise BindError(f"weights[{name!r}] is not a tensor but {type(value).__name__}.")
    return {name: tensor.detach() for name, tensor in source.items()}


def fit_weights(
    graph: SymmetryGraph, source: WeightsSource, label: str, problems: list[str], *, values: bool = True
) -> dict[str, Tensor]:
    """Weights by first name; what does not fit is appended to ``problems`` as text.

    ``values`` also looks at every number, that it is finite.
    """
    weights = weights_of(source)
    known = {name for node in graph.tensors.values() for name in node.names}
    problems += [f"{name!r} of {label} is not in the graph" for name in weights if name not in known]
    found: dict[str, Tensor] = {}
    for node in graph.tensors.values():
        present = [name for name in node.names if name in weights]
        if not present:
            problems.append(f"{node.name!r} is missing in {label}")
            continue
        tensor = weights[present[0]]
        if tuple(tensor.shape) != node.shape:
            problems.append(f"{node.name!r} has shape {tuple(tensor.shape)} in {label}, the graph says {node.shape}")
            continue
        if tensor.layout != torch.strided:
            problems.append(f"{node.name!r} of {label} is {tensor.layout}; dense tensors are needed")
            continue
        if tensor.is_meta:
            problems.append(f"{node.name!r} of {label} is on the meta device and has no values")
            continue
        found[node.name] = tensor
        if values and tensor.is_floating_point() and not all_finite(tensor):
            problems.append(f"{node.name!r} of {label} holds NaN or infinity")
        for other in present[1:]:
            if tensor_identity(weights[other]) != tensor_identity(tensor) and not torch.equal(weights[other], tensor):
                problems.append(f"{other!r} and {present[0]!r} are tied in the graph but differ in {label}")
    return found
