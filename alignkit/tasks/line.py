"""The straight line between two sets of weights, ``(1 - lambda) A + lambda B``: lambda is the share of B.

[Navon24] and [Pena23] write it as ``lambda A + (1 - lambda) B``; barrier and AUC are the same in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignkit.checkpoints.fit import is_number


class Line:
    """All points between A and B; what is computed from them is differentiable with respect to both.

    Weights are combined in float32 or better and rounded to A's dtype. Tensors of integers or booleans, such as
    ``num_batches_tracked``, are those of A everywhere.

    Args:
        a: Weights at lambda = 0.
        b: Weights at lambda = 1, under the same names; they are brought to the devices of A.
    """

    def __init__(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        self._ends = {name: (tensor, b[name].to(tensor.device)) for name, tensor in a.items() if is_number(tensor)}
        self.shared = {name: tensor for name, tensor in a.items() if name not in self._ends}
        """Tensors that are the same at every lambda."""

    def at(self, share: float) -> dict[str, Tensor]:
        """Compute all weights at one lambda: those of A at 0 and those of B at 1, exactly."""
        return {**self.shared, **{name: _point(a, b, share) for name, (a, b) in self._ends.items()}}

    def stack(self, lambdas: Tensor) -> dict[str, Tensor]:
        """Compute the weights at ``k`` lambdas ``[k]``, without the shared ones: tensors ``[k, ...]``."""
        return {name: _point(a, b, lambdas.reshape(-1, *[1] * a.ndim)) for name, (a, b) in self._ends.items()}


def _point(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    share = share.to(a.device, dtype) if isinstance(share, Tensor) else share
    return ((1 - share) * a.to(dtype) + share * b.to(dtype)).to(a.dtype)
