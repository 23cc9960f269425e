"""Proof by running: symmetries of a graph keep the outputs of a real model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from alignkit.errors import VerificationError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.proof.equivalence import TOLERANCE, relative_difference
from alignkit.graph.proof.example_call import example_call
from alignkit.graph.proof.precision import ModelRun, run_in_widest
from alignkit.graph.structure import GraphStructure
from alignkit.text import dtype_name


@dataclass(frozen=True)
class Verification:
    """What a verification measured.

    Attributes:
        error: Largest change of an output element over all draws, relative to the largest output element.
        tolerance: The largest error that passes.
        dtype: The dtype of the run, ``"float64"`` wherever the model runs in it.
        draws: Number of random elements of the symmetry group that were applied.
    """

    error: float
    tolerance: float
    dtype: str
    draws: int

    def explain(self) -> str:
        """Say in a sentence what was tried and what it changed."""
        return (
            f"{self.draws} random reorderings of all groups change the outputs by at most {self.error:.1g} of their "
            f"size (tolerance {self.tolerance:.0e}, {self.dtype})."
        )


def verify(
    graph: GraphStructure, model: nn.Module, *args: Any, draws: int = 3, seed: int = 0, **kwargs: Any
) -> Verification:
    """Apply random elements of the symmetry group to a copy of the model and compare its outputs.

    The model runs in eval mode, in float64 where its operations allow it and in float32 otherwise; casts that it makes
    inside to a narrower type are to float64 instead. Parameters and saved buffers are permuted as the graph says.

    Args:
        graph: The graph to be proved.
        model: A model with real weights; it is left as it is. Weights that are all alike (norms just initialised, zero
            gates) can hide a wrong graph: perturb them first.
        *args: Example inputs of the model; a single dict holds inputs by name.
        draws: Number of random symmetries.
        seed: Seed of the draws.
        **kwargs: Example inputs by name.

    Raises:
        VerificationError: An output changes; the message names the guilty groups and the largest error. Also when the
            model itself gives other outputs on a second run, or NaN.
    """
    args, kwargs = example_call(args, kwargs)
    run = run_in_widest(partial(ModelRun, model, args, kwargs))
    tolerance, dtype = TOLERANCE[run.dtype], dtype_name(run.dtype)
    if not run.outputs:
        raise VerificationError("the model returns no floating-point tensor, so nothing can be compared.")
    if any(not bool(torch.isfinite(tensor).all()) for tensor in run.outputs):
        raise VerificationError(
            "the unpermuted model returns NaN or infinity, so nothing can be compared. Try other weights or inputs."
        )
    if not relative_difference(run.call(run.model), run.outputs) <= tolerance:
        raise VerificationError("the model is random: two runs of it differ. Fix its seed, or turn its randomness off.")

    def change(alignment: Alignment) -> float:
        return relative_difference(run.call(alignment.apply(run.model)), run.outputs)

    worst, identity = 0.0, Alignment.identity(graph).elements
    for draw in range(draws):
        alignment = Alignment.random(graph, seed + draw)
        error = change(alignment)
        if not error <= tolerance:
            alone = {name: Alignment(graph, {**identity, name: alignment.elements[name]}) for name in graph.groups}
            guilty = [name for name in graph.groups if not change(alone[name]) <= tolerance]
            measured = f"largest relative change {error:.2g}, tolerance {tolerance:.0e} in {dtype}"
            if not guilty:
                raise VerificationError(
                    f"permuting all groups together changes the outputs, each alone does not ({measured})."
                )
            lines = [f"  - {name!r}, which acts on {', '.join(graph.tensors_of(name)[:6])}" for name in guilty]
            raise VerificationError(f"permuting these groups changes the outputs ({measured}):\n" + "\n".join(lines))
        worst = max(worst, error)
    return Verification(worst, tolerance, dtype, draws)
