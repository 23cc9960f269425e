"""Do two sets of weights compute the same? Measured on example inputs, one model run with both."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from alignkit.errors import VerificationError
from alignkit.graph.proof.precision import Widened
from alignkit.graph.proof.verify import TOLERANCE, largest_change, output_tensors
from alignkit.text import dtype_name


@dataclass(frozen=True)
class Equivalence:
    """How far the outputs of two networks are apart.

    Attributes:
        error: Largest difference of an output element, relative to the largest output element of the first.
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
        *args: Example inputs.
        **kwargs: Example inputs by name.

    Raises:
        VerificationError: The outputs differ in number or shape, are no floating-point tensors, or hold NaN.
    """
    try:
        dtype, sides = torch.float64, [_outputs(model, torch.float64, args, kwargs) for model in (a, b)]
    except (RuntimeError, NotImplementedError, TypeError):
        # Some kernels refuse float64; what also fails in float32 is the model's own error.
        dtype, sides = torch.float32, [_outputs(model, torch.float32, args, kwargs) for model in (a, b)]
    left, right = sides
    if not left or [t.shape for t in left] != [t.shape for t in right]:
        raise VerificationError("the two models return no floating-point tensors of the same shapes to compare.")
    if any(not bool(torch.isfinite(t).all()) for t in (*left, *right)):
        raise VerificationError("a model returns NaN or infinity, so nothing can be compared.")
    scale = max((float(t.abs().max()) for t in left if t.numel()), default=0.0) or 1.0
    return Equivalence(largest_change(right, left) / scale, TOLERANCE[dtype], dtype_name(dtype))


def _outputs(model: nn.Module, dtype: torch.dtype, args: Any, kwargs: Any) -> list[Tensor]:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    copied = copy.deepcopy(model).to(dtype).eval()
    args, kwargs = pytree.tree_map(cast, (args, kwargs))
    with torch.no_grad(), Widened() if dtype == torch.float64 else nullcontext():
        found = copied(*args, **kwargs)
    real = [torch.view_as_real(t) if t.is_complex() else t for t in output_tensors(found)]
    return [t.detach().to(torch.float64) for t in real if t.is_floating_point()]
