"""Other inputs than an example: batch sizes, lengths, resolutions and numbers, changed one at a time.

A symmetry keeps the function for every input that a model takes. An example shows one size of each kind, and a table of
64 positions, of which it reads 10, hides what a longer one would show. Nothing says which sizes of an input a model
leaves open, so each is tried: what the model refuses is no input of it.

Axes of one size change together, as the length of token ids and of their mask does, and height and width of an image.
Where the model refuses that, axes in one place of their tensors change together: a sequence of 8 vectors of 8 features
has another length, not other features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from alignkit.graph.proof.model_run import ModelRun
from alignkit.text import list_some

_MAX_GROWN = 1 << 20
"""Maximum number of elements of an example that is made larger: an image of 512 x 512, or a batch of 340 of 32 x 32."""

Places = tuple[tuple[int, int], ...]
"""Axes that change together: the number of an argument and of its axis, -1 for an argument that is an integer."""


@dataclass(frozen=True)
class Size:
    """A size of an example that other inputs may have otherwise: its value, and where it stands, also in words.

    `parts` are sizes to try one by one where a model refuses another value for all of them together.
    """

    value: int
    places: Places
    where: str
    parts: tuple[Size, ...] = ()

    def others(self, elements: int) -> Iterator[Sequence[int]]:
        """Yield values to try instead, in turn until one is taken: smaller ones, then larger ones."""
        n = self.value
        yield tuple(m for m in dict.fromkeys((n // 2, n - 1)) if m > 0)
        if elements <= _MAX_GROWN:
            yield tuple(m for m in dict.fromkeys((n + n // 2, n + 1)) if m > n)


def sizes(arguments: Any) -> list[Size]:
    """Return the sizes of the tensors in a tree of arguments, and its integers."""
    leaves = pytree.tree_leaves(arguments)
    numbers = [Size(int(leaf), ((i, -1),), f"as argument {i}") for i, leaf in enumerate(leaves) if _is_number(leaf)]
    shapes = {i: leaf.shape for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()}
    axes = [(i, d) for i, shape in shapes.items() for d in range(len(shape))]
    batch: list[Size] = []
    if len({shape[0] for shape in shapes.values()}) == 1:
        batch = [Size(next(iter(shapes.values()))[0], tuple((i, 0) for i in shapes), "in the batch")]
        axes = [(i, d) for i, d in axes if d]
    by_value: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, d in axes:
        by_value[shapes[i][d]].append((i, d))
    lengths = []
    for value, places in by_value.items():
        alone = [
            Size(value, tuple(place for place in places if place[1] == axis), f"along axis {axis}")
            for axis in sorted({d for _, d in places})
        ]
        together = Size(value, tuple(places), f"along axes {list_some([str(d) for _, d in places])}", tuple(alone))
        lengths.append(together if len(alone) > 1 else alone[0])
    return [size for size in (*batch, *lengths, *numbers) if size.value > 0]


def _is_number(leaf: object) -> bool:
    """Return whether an argument is an integer, or a tensor that holds one."""
    if isinstance(leaf, Tensor):
        return not leaf.dim() and leaf.dtype in (torch.int32, torch.int64)
    return isinstance(leaf, int) and not isinstance(leaf, bool)


def other_runs(run: ModelRun) -> Iterator[tuple[str, ModelRun | None]]:
    """Run a model with each size of its example changed.

    Yields:
        What was changed, in words, and the run with it; None in its place for a size that the model takes no other
        value of, or gives NaN or infinity with.
    """
    elements = sum(leaf.numel() for leaf in pytree.tree_leaves(run.arguments) if isinstance(leaf, Tensor))
    waiting = sizes(run.arguments)
    while waiting:
        size = waiting.pop(0)
        taken = False
        for values in size.others(elements):
            tries = ((value, _run_resized(run, size, value)) for value in values)
            value, other = next(((value, other) for value, other in tries if other is not None), (0, None))
            if other is not None:
                taken = True
                yield f"{value} in place of {size.value} {size.where}", other
        if not taken and size.parts:
            waiting = [*size.parts, *waiting]
        elif not taken:
            yield f"{size.value} {size.where}", None


def _run_resized(run: ModelRun, size: Size, value: int) -> ModelRun | None:
    """Run a model with another value of a size; None if it refuses it, in any way, or gives no numbers."""
    leaves, tree = pytree.tree_flatten(run.arguments)
    try:
        for i, d in size.places:
            leaf = leaves[i]
            # Cut off, or repeated from the start: token ids and masks keep valid values.
            if d >= 0:
                leaves[i] = leaf.index_select(d, torch.arange(value, device=leaf.device) % size.value)
            else:
                leaves[i] = torch.full_like(leaf, value) if isinstance(leaf, Tensor) else value
        other = run.on(pytree.tree_unflatten(leaves, tree))
    except Exception:
        return None
    return other if all(bool(torch.isfinite(tensor).all()) for tensor in other.outputs) else None
