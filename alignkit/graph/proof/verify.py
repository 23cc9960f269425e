"""Proof by running: symmetries of a graph keep the outputs of a real model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from alignkit.errors import VerificationError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.proof.precision import Widened
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.text import dtype_name

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Largest relative change of an output that still counts as rounding, by the dtype of the run."""


@dataclass(frozen=True)
class Verification:
    """What a verification measured.

    Attributes:
        error: Largest change of an output element over all draws, relative to the largest output element.
        tolerance: The largest error that passes.
        dtype: The dtype of the run, ``"float64"`` wherever the model runs in it.
        draws: How many random elements of the symmetry group were applied.
    """

    error: float
    tolerance: float
    dtype: str
    draws: int


def verify(
    graph: SymmetryGraph, model: nn.Module, *args: Any, draws: int = 3, seed: int = 0, **kwargs: Any
) -> Verification:
    """Apply random elements of the symmetry group to a copy of the model and compare its outputs.

    The model runs in eval mode, in float64 where its operations allow it and in float32 otherwise; casts that it makes
    inside to a narrower type are to float64 instead. Parameters and
    saved buffers are permuted as the graph says.

    Args:
        graph: The graph to be proved.
        model: A model with real weights; it is left as it is. Weights that are all alike (norms just initialised, zero
            gates) can hide a wrong graph: perturb them first.
        *args: Example inputs of the model.
        draws: How many random symmetries.
        seed: Seed of the draws.
        **kwargs: Example inputs by name.

    Raises:
        VerificationError: An output changes; the message names the guilty groups and the largest error. Also when the
            model itself gives other outputs on a second run, or NaN.
    """
    runner = _runner(model, args, kwargs)
    tolerance = TOLERANCE[runner.dtype]
    worst = 0.0
    for draw in range(draws):
        error = runner.error(Alignment.random(graph, seed + draw))
        if not error <= tolerance:
            guilty = _guilty_groups(graph, runner, tolerance, seed + draw)
            raise VerificationError(_failure(graph, guilty, error, tolerance, runner.dtype))
        worst = max(worst, error)
    return Verification(worst, tolerance, dtype_name(runner.dtype), draws)


class _Runner:
    """A model in one dtype with its inputs and its reference outputs."""

    def __init__(self, model: nn.Module, args: Any, kwargs: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.model = copy.deepcopy(model).to(dtype).eval()
        self.args, self.kwargs = pytree.tree_map(self._cast, (args, kwargs))
        self.reference = self.outputs(copy.deepcopy(self.model))  # a run may leave what it computed in the model
        self.scale = max((float(t.abs().max()) for t in self.reference if t.numel()), default=0.0) or 1.0

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def outputs(self, model: nn.Module) -> list[Tensor]:
        args, kwargs = pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, (self.args, self.kwargs))
        with torch.no_grad(), Widened() if self.dtype == torch.float64 else nullcontext():
            result = model(*args, **kwargs)
        real = [torch.view_as_real(t) if t.is_complex() else t for t in output_tensors(result)]
        return [t.detach().to(torch.float64) for t in real if t.is_floating_point()]

    def error(self, alignment: Alignment) -> float:
        found = self.outputs(alignment.apply(self.model))
        if [t.shape for t in found] != [t.shape for t in self.reference]:
            return float("inf")
        return largest_change(found, self.reference) / self.scale


def largest_change(found: list[Tensor], reference: list[Tensor]) -> float:
    """Largest difference of an element over all tensors, 0 where there is none; NaN wherever one is NaN."""
    changes = [(x - y).abs().max() for x, y in zip(found, reference, strict=True) if x.numel()]
    return float(torch.stack([change.cpu() for change in changes]).max()) if changes else 0.0


def output_tensors(result: Any) -> list[Tensor]:
    """Every tensor in the outputs of a model: nested tuples, lists, dicts, dataclasses and mappings."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        return [t for value in result.values() for t in output_tensors(value)]
    if isinstance(result, list | tuple):
        return [t for value in result for t in output_tensors(value)]
    if hasattr(result, "__dataclass_fields__"):
        return [t for name in result.__dataclass_fields__ for t in output_tensors(getattr(result, name))]
    return []


def _runner(model: nn.Module, args: Any, kwargs: Any) -> _Runner:
    try:
        runner = _Runner(model, args, kwargs, torch.float64)
    except (RuntimeError, NotImplementedError, TypeError):
        # Some kernels refuse float64; what also fails in float32 is the model's own error.
        runner = _Runner(model, args, kwargs, torch.float32)
    if not runner.reference:
        raise VerificationError("the model returns no floating-point tensor, so nothing can be compared.")
    if any(not bool(torch.isfinite(t).all()) for t in runner.reference):
        raise VerificationError(
            "the unpermuted model returns NaN or infinity, so nothing can be compared. Try other weights or inputs."
        )
    again = runner.outputs(copy.deepcopy(runner.model))
    same_shapes = [t.shape for t in again] == [t.shape for t in runner.reference]
    if not same_shapes or not largest_change(again, runner.reference) / runner.scale <= TOLERANCE[runner.dtype]:
        raise VerificationError("the model is random: two runs of it differ. Fix its seed, or turn its randomness off.")
    return runner


def only(alignment: Alignment, groups: frozenset[str]) -> Alignment:
    """The alignment with every group outside ``groups`` left at its place."""
    identity = Alignment.identity(alignment.graph)
    elements = {name: (alignment if name in groups else identity).elements[name] for name in alignment.elements}
    return Alignment(alignment.graph, elements)


def _guilty_groups(graph: SymmetryGraph, runner: _Runner, tolerance: float, seed: int) -> list[str]:
    alignment = Alignment.random(graph, seed)
    return [name for name in graph.groups if not runner.error(only(alignment, frozenset((name,)))) <= tolerance]


def _failure(graph: SymmetryGraph, guilty: list[str], error: float, tolerance: float, dtype: torch.dtype) -> str:
    measured = f"largest relative change {error:.2g}, tolerance {tolerance:.0e} in {str(dtype).removeprefix('torch.')}"
    if not guilty:
        return f"permuting all groups together changes the outputs, each alone does not ({measured})."
    lines = [f"  - {name!r}, which acts on {', '.join(graph.tensors_of(name)[:6])}" for name in guilty]
    return f"permuting these groups changes the outputs ({measured}):\n" + "\n".join(lines)
