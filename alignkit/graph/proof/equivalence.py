"""Do two sets of weights compute the same? The one measure of differences, and a run of both on example inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.errors import VerificationError
from alignkit.graph.proof.example_call import example_call
from alignkit.graph.proof.precision import ModelRun, run_in_widest
from alignkit.text import dtype_name

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Largest relative difference of outputs that still counts as rounding, by the dtype of the run.

Rounding grows with the depth of a model and the length of its sums: a thousandfold the unit roundoff, and more, is seen
in trained models. A wrong order of units changes outputs by more than a percent.
"""


def relative_difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the largest difference of an element over pairs of tensors, relative to the largest element of all.

    Computed in float64. 0 where there are no elements, infinity where the shapes differ, NaN where an element is not
    finite: test ``relative_difference(...) <= tolerance``, which NaN fails.
    """
    if [tensor.shape for tensor in left] != [tensor.shape for tensor in right]:
        return float("inf")
    pairs = [(x.detach().double().cpu(), y.detach().double().cpu()) for x, y in zip(left, right, strict=True)]
    pairs = [(x, y) for x, y in pairs if x.numel()]
    if not pairs:
        return 0.0
    largest = torch.stack([(x - y).abs().max() for x, y in pairs]).max()
    scale = torch.stack([side.abs().max() for pair in pairs for side in pair]).max()
    return float(largest / scale) if scale else 0.0


@dataclass(frozen=True)
class Equivalence:
    """How far the outputs of two networks are apart.

    Attributes:
        error: Largest difference of an output element, relative to the largest output element.
        tolerance: The largest error that counts as rounding.
        dtype: The dtype of the runs.
    """

    error: float
    tolerance: float
    dtype: str

    @property
    def same(self) -> bool:
        """Whether the outputs differ by no more than rounding."""
        return self.error <= self.tolerance


def same_function(a: nn.Module, b: nn.Module, *args: Any, **kwargs: Any) -> Equivalence:
    """Run two models on one example call, in eval mode, in float64 where they run in it.

    The same outputs on an example do not prove that two networks are equal everywhere, but any error in the order of
    units shows at once.

    Args:
        a: The first model.
        b: The second, of the same architecture.
        *args: Example inputs; a single dict holds inputs by name.
        **kwargs: Example inputs by name.

    Raises:
        VerificationError: The outputs differ in number or shape, are not floating-point tensors, or hold NaN.
    """
    args, kwargs = example_call(args, kwargs)
    runs = run_in_widest(lambda dtype: [ModelRun(model, args, kwargs, dtype) for model in (a, b)])
    left, right = (run.outputs for run in runs)
    if not left or [t.shape for t in left] != [t.shape for t in right]:
        raise VerificationError("the two models return no floating-point tensors of the same shapes to compare.")
    if any(not bool(torch.isfinite(t).all()) for t in (*left, *right)):
        raise VerificationError("a model returns NaN or infinity, so nothing can be compared.")
    return Equivalence(relative_difference(left, right), TOLERANCE[runs[0].dtype], dtype_name(runs[0].dtype))
