"""Rotary positions: steps that turn each plane of a head by an angle of its own, recognised by running them.

Such steps multiply a value ``x`` by two tables, cosines and sines, and add up. With 1 in place of the first table and
0 in place of the second they return ``x``; the other way round they return ``x`` turned by a right angle: each unit at
the place of the other unit of its plane, one of the two with its sign changed. Whatever code a model has for it, this
is what makes it a rotary embedding. A table of complex numbers stands for both.

A turn commutes with the rotation of any of its planes. So it is replaced by one step that passes ``x`` on, and the
space may be rotated by planes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from alignkit.graph.kinds import GroupKind
from alignkit.tracing.labels.writes import Key
from alignkit.tracing.recording.recorder import OpRecord, TensorRef

_MOVES = {"view", "_unsafe_view", "reshape", "slice", "split", "split_with_sizes", "chunk", "unbind", "select", "cat",
          "stack", "neg", "transpose", "permute", "unsqueeze", "squeeze", "clone", "_to_copy", "expand", "flatten",
          "view_as_complex", "view_as_real", "copy", "alias", "detach"}  # fmt: skip
"""Ops that keep elements, or change the sign of all."""
_SUMS = {"add", "sub"}
_PRODUCTS = {"mul"}
_LONGEST = 40
"""Maximum number of steps from a value to its turned copy: implementations take 3 to 15."""


@dataclass(frozen=True)
class Turn(OpRecord):
    """A step that stands for all steps of one rotary embedding; ``kind`` says which units are a plane."""

    kind: GroupKind = "planes"

    @property
    def op(self) -> str:
        """Name of the step."""
        return "alignkit::rotary"


def name_of(step: OpRecord) -> str:
    """Return the name of an op without namespace, overload and the underscore of an in-place variant."""
    return step.op.split("::")[1].rstrip("_") or step.op


def replace_turns(steps: Sequence[OpRecord], data: Collection[int], kept: Collection[Key] = ()) -> list[OpRecord]:
    """Return the steps with one `Turn` in place of those of each rotary embedding.

    Args:
        steps: The steps of a run.
        data: Storages of parameters: what is computed from none of them is a table.
        kept: Keys of values whose embeddings stay as they are.
    """
    search = _TurnSearch(steps, data)
    replaced: list[OpRecord | None] = list(steps)
    regions: set[int] = set()
    for step in steps:
        for x in step.outputs:
            if x.key not in kept and (turn := search.find_turn(x)):
                region, kind = turn
                if isinstance(replaced[region[-1]], Turn):  # found before, from what x is a copy of
                    continue
                last = steps[region[-1]]
                alias = torch.ops.aten.alias.default
                replaced[region[-1]] = Turn(alias, (x,), {}, last.outputs[0], last.where, kind=kind)
                regions.update(region[:-1])
    for number in sorted(regions, reverse=True):  # views among them are alive as long as what they show is
        readers = (replaced[reader] for ref in steps[number].outputs for reader in search.readers[ref.key])
        if not any(reader is not None and not isinstance(reader, Turn) for reader in readers):
            replaced[number] = None
    return [step for step in replaced if step is not None]


class _TurnSearch:
    """What a search for rotary embeddings has to know of a run.

    Attributes:
        steps: All steps.
        readers: The numbers of the steps that read each value.
    """

    def __init__(self, steps: Sequence[OpRecord], data: Collection[int]) -> None:
        self.steps = steps
        self.readers: dict[Key, list[int]] = defaultdict(list)
        self._varying = set(data)
        self._content: dict[Key, object] = {}  # values that are computed alike from the same have equal content
        for number, step in enumerate(steps):
            if any(ref.storage in self._varying for ref in step.inputs):
                self._varying.update(ref.storage for ref in step.outputs)
            elif torch.Tag.nondeterministic_seeded not in step.func.tags and not step.written:
                args = pytree.tree_map_only(TensorRef, lambda ref: self._content.get(ref.key, ref.key), step.args)
                for index, ref in enumerate(step.outputs):
                    self._content[ref.key] = hash((str(step.func), repr(args), repr(step.kwargs), index))
            for ref in step.inputs:
                self.readers[ref.key].append(number)

    def find_turn(self, x: TensorRef) -> tuple[list[int], GroupKind] | None:
        """Return the numbers of the steps of a rotary embedding of ``x``, and its kind."""
        if x.storage not in self._varying or len(x.shape) < 2 or not x.dtype.is_floating_point:
            return None
        region: list[int] = []
        inside = {x.key}
        tables: dict[Key, object] = {}
        queue = sorted(set(self.readers[x.key]))
        while queue and len(region) < _LONGEST:
            number = queue.pop(0)
            step, name = self.steps[number], name_of(self.steps[number])
            others = [ref for ref in step.inputs if ref.key not in inside]
            if name in _PRODUCTS and len(others) == 1:
                if others[0].storage in self._varying or others[0].shape[-1:] in ((), (1,)):
                    continue
                tables[others[0].key] = self._content.get(others[0].key, others[0].key)
            elif others or name not in _MOVES | _SUMS:
                continue
            region.append(number)
            for ref in step.outputs:
                inside.add(ref.key)
                queue = sorted({*queue, *self.readers[ref.key]} - set(region))
            ends = [ref for ref in step.outputs if ref.shape == x.shape and ref.key != x.key]
            if tables and ends and name not in _PRODUCTS:
                kind = _kind_of_turn(x, ends[0], [self.steps[n] for n in region], tables)
                if kind is not None:
                    return region, kind
        return None


def _kind_of_turn(
    x: TensorRef, end: TensorRef, steps: Sequence[OpRecord], tables: Mapping[Key, object]
) -> GroupKind | None:
    """Return which units some steps turn into each other, None where they are not a rotary embedding.

    Args:
        x: The value that they start with.
        end: The value that they end with.
        steps: The steps, in order.
        tables: The tables that they multiply with; those with equal content are one.
    """
    size = x.shape[-1]
    contents = list(dict.fromkeys(tables.values()))
    if size % 2 or len(contents) > 2:
        return None
    units = torch.arange(1, size + 1, dtype=torch.float64)
    half, even = size // 2, torch.arange(size) % 2 == 0
    turned: dict[GroupKind, Tensor] = {
        "planes": torch.cat([-units[half:], units[:half]]),
        "adjacent_planes": torch.where(even, -units.roll(-1), units.roll(1)),
    }
    # Cosine and sine of no angle, and of a right one; a single table holds complex numbers.
    settings: list[tuple[list[complex], list[complex]]] = [([1, 0], [0, 1]), ([0, 1], [1, 0])]
    for none, right in settings if len(contents) == 2 else [([1], [1j])]:
        results = []
        for numbers in (none, right):
            of_content = dict(zip(contents, numbers, strict=True))
            with suppress(Exception):  # the steps run on made-up values: what they refuse is not a rotary embedding
                results.append(_run_steps(x, end, steps, {key: of_content[c] for key, c in tables.items()}))
        if len(results) < 2 or not torch.equal(results[0], units.expand(x.shape)):
            continue
        for kind, wanted in turned.items():
            if any(torch.equal(results[1], (sign * wanted).expand(x.shape)) for sign in (1, -1)):
                return kind
    return None


def _run_steps(x: TensorRef, end: TensorRef, steps: Sequence[OpRecord], numbers: Mapping[Key, complex]) -> Tensor:
    """Run some steps with the number of each unit in place of ``x``, and one number in place of each table."""
    units = torch.arange(1, x.shape[-1] + 1, dtype=torch.float64)
    values: dict[Key, Tensor] = {x.key: units.expand(x.shape).contiguous()}

    def value_of(leaf: Any) -> Any:
        if isinstance(leaf, TensorRef):
            if leaf.key in numbers:
                dtype = torch.complex128 if leaf.dtype.is_complex else torch.float64
                return torch.full(leaf.shape, numbers[leaf.key], dtype=dtype)
            return values[leaf.key]
        return torch.float64 if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf

    for step in steps:
        args, kwargs = pytree.tree_map(value_of, (step.args, step.kwargs))
        results = step.func(*args, **{k: v for k, v in kwargs.items() if k != "device"})
        for ref, result in zip(step.outputs, pytree.tree_leaves(results), strict=True):
            values[ref.key] = result
    return values[end.key]
