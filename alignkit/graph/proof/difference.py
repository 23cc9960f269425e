"""How far two lists of tensors are apart: the one measure by which outputs and weights count as equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
