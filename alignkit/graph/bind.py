"""Binding: the weights of two models held against one graph, every mismatch found at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from alignkit.checkpoints.checkpoint import Checkpoint
from alignkit.checkpoints.weights import all_finite, read_weights
from alignkit.errors import AlignkitError, BindError
from alignkit.graph.source import tensor_identity
from alignkit.graph.structure import GraphStructure
from alignkit.text import dtype_name, plural

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
    raise_misfits(BindError, "the weights do not fit the graph", problems)
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
    problems += find_misfits(graph, {name: tuple(tensor.shape) for name, tensor in weights.items()}, label)
    fitting: dict[str, Tensor] = {}
    for node in graph.tensors.values():
        present = {name: weights[name] for name in node.names if name in weights and weights[name].shape == node.shape}
        if not present:
            continue
        first, tensor = next(iter(present.items()))
        if tensor.layout != torch.strided:
            problems.append(f"{node.name!r} of {label} is {tensor.layout}; dense tensors are needed")
        elif tensor.is_meta:
            problems.append(f"{node.name!r} of {label} is on the meta device and has no values")
        else:
            fitting[node.name] = tensor
            if values and tensor.is_floating_point() and not all_finite(tensor):
                problems.append(f"{node.name!r} of {label} holds NaN or infinity")
            for name, other in present.items():
                if tensor_identity(other) != tensor_identity(tensor) and not torch.equal(other, tensor):
                    problems.append(f"{name!r} and {first!r} are tied in the graph but differ in {label}")
    return fitting


def find_misfits(graph: GraphStructure, shapes: Mapping[str, tuple[int, ...]], label: str) -> list[str]:
    """List, as text, the names and shapes of tensors that are not those of a graph.

    Args:
        graph: The graph.
        shapes: Shapes of the tensors, by name; of tied tensors one name is enough.
        label: What messages call the tensors.
    """
    problems = [f"{name!r} of {label} is not in the graph" for name in shapes if name not in graph.first_names]
    for node in graph.tensors.values():
        present = [name for name in node.names if name in shapes]
        if not present:
            problems.append(f"{node.name!r} is missing in {label}")
        problems += [
            f"{name!r} has shape {shapes[name]} in {label}, the graph says {node.shape}"
            for name in present
            if shapes[name] != node.shape
        ]
    return problems


def raise_misfits(error: type[AlignkitError], problem: str, misfits: Iterable[str]) -> None:
    """Raise one error that lists all misfits behind a sentence that names the problem; nothing where there are none."""
    if lines := sorted(misfits):
        raise error(f"{problem}, {plural(len(lines), 'problem')}:" + "".join(f"\n  - {line}" for line in lines))
