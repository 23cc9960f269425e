"""Do two sets of weights compute the same? Measured on example inputs, one model run with both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from alignkit.errors import VerificationError
from alignkit.graph.proof.difference import TOLERANCE, relative_difference
from alignkit.graph.proof.example_call import example_call
from alignkit.graph.proof.precision import ModelRun, run_in_widest
from alignkit.text import dtype_name


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
