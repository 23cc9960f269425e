"""Binding: the weights of two models held against one graph, every mismatch found at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from alignkit.checkpoints.checkpoint import Checkpoint
from alignkit.checkpoints.weights import all_finite, read_weights
from alignkit.errors import BindError
from alignkit.graph.source import tensor_identity
from alignkit.graph.structure import GraphStructure
from alignkit.text import dtype_name

WeightsSource: TypeAlias = nn.Module | Mapping[str, Tensor] | str | Path


def bind_weights(
    graph: GraphStructure, a: WeightsSource, b: WeightsSource
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Hold the weights of two models against a graph; see `SymmetryGraph.bind`.

    Returns:
        The weights of A and of B, by the first name of each tensor; detached, not copied.
    """
    problems: list[str] = []
    side_a = fit_weights(graph, a, "A", problems)
    side_b = fit_weights(graph, b, "B", problems)
    for name in side_a.keys() & side_b.keys():
        dtype_a, dtype_b = side_a[name].dtype, side_b[name].dtype
        if dtype_a != dtype_b:
            problems.append(f"{name!r} is {dtype_name(dtype_a)} in A but {dtype_name(dtype_b)} in B")
    if problems:
        listed = "\n".join(f"  - {text}" for text in sorted(problems))
        raise BindError(f"the weights do not fit the graph, {len(problems)} problems:\n{listed}")
    return side_a, side_b


def weights_of(source: WeightsSource) -> dict[str, Tensor]:
    """Return the named tensors of a module (parameters and saved buffers), a mapping, or a checkpoint; detached.

    Raises:
        BindError: The source is none of these, or holds something that is not a tensor.
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
    graph: GraphStructure, source: WeightsSource, label: str, problems: list[str], *, values: bool = True
) -> dict[str, Tensor]:
    """Return weights by first name and append what does not fit to ``problems``, as text.

    Args:
        graph: The graph.
        source: The weights.
        label: What messages call them.
        problems: List that problems are appended to.
        values: Whether to check that every number is finite.
    """
    weights = weights_of(source)
    problems += [f"{name!r} of {label} is not in the graph" for name in weights if name not in graph.first_names]
    fitting: dict[str, Tensor] = {}
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
        fitting[node.name] = tensor
        if values and tensor.is_floating_point() and not all_finite(tensor):
            problems.append(f"{node.name!r} of {label} holds NaN or infinity")
        for other in present[1:]:
            if tensor_identity(weights[other]) != tensor_identity(tensor) and not torch.equal(weights[other], tensor):
                problems.append(f"{other!r} and {present[0]!r} are tied in the graph but differ in {label}")
    return fitting
