"""Random inputs in the shapes and types of data, for those who want to see activations without data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import SolverError
from alignkit.graph.nodes import TracedInput
from alignkit.tasks.batches import Batch, map_tensors

PROBE_ROWS = 256
"""Random samples in one forward call."""


def probe_batches(like: Batch, count: int, generator: torch.Generator) -> Iterator[Batch]:
    """Draw random inputs in the shapes and types of a batch, ``count`` samples in all."""
    for start in range(0, count, PROBE_ROWS):
        rows = min(PROBE_ROWS, count - start)
        yield random_batch(like, rows, generator, f"probes {start} to {start + rows - 1}")


def random_batch(like: Batch, rows: int, generator: torch.Generator, name: str = "probes") -> Batch:
    """Draw one batch of random inputs in the shapes and types of another.

    Raises:
        SolverError: The samples of the batch are not on axis 0.
    """
    if not like.splittable:
        raise SolverError(
            f"probes= needs a batch whose tensors all have the samples on axis 0, which {like.name} has not. Use data."
        )

    def draw(tensor: Tensor) -> Tensor:
        span = None if tensor.is_floating_point() else (int(tensor.min()), int(tensor.max()))
        return _draw((rows, *tensor.shape[1:]), tensor.dtype, span, generator).to(tensor.device)

    return Batch(map_tensors(draw, like.inputs), torch.zeros(rows), name)


def traced_batch(traced: Sequence[TracedInput], count: int, generator: torch.Generator) -> Batch:
    """Draw random inputs of the shapes that a graph was traced on.

    There are ``count`` samples where all tensors agree about axis 0, else as many as were traced.

    Raises:
        ValueError: Some inputs were passed by position and some by name.
    """
    positional, keywords = traced_call(traced, count, generator)
    if keywords and positional:
        raise ValueError("positional and keyword inputs together cannot be one batch")
    inputs: Any = keywords or (positional[0] if len(positional) == 1 else positional)
    size = next((tensor.shape[0] for tensor in (*positional, *keywords.values()) if tensor.ndim), 1)
    return Batch(inputs, torch.zeros(size), "probes")


def traced_call(
    traced: Sequence[TracedInput], count: int, generator: torch.Generator
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Draw random arguments, by position and by name, of the shapes that a graph was traced on; see `traced_batch`."""
    resizable = all(len(one.shape) > 1 and one.shape[0] == traced[0].shape[0] for one in traced)
    drawn: list[tuple[str | None, Tensor]] = []
    for one in traced:
        span = None if one.low is None or one.high is None else (one.low, one.high)
        shape = (count, *one.shape[1:]) if resizable else one.shape
        drawn.append((one.name, _draw(shape, getattr(torch, one.dtype), span, generator)))
    named = {name: tensor for name, tensor in drawn if name is not None}
    return tuple(tensor for name, tensor in drawn if name is None), named


def _draw(shape: Sequence[int], dtype: torch.dtype, span: tuple[int, int] | None, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers, or whole numbers between two that are both possible."""
    if span is None:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(span[0], span[1] + 1, shape, generator=generator).to(dtype)
