"""Weights in float64 while they are rewritten: read and written by axis, rounded once at the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignkit.checkpoints.dtypes import narrow
from alignkit.errors import FoldError
from alignkit.graph.folded import positions_of
from alignkit.graph.rewrites import AxisOf
from alignkit.text import dtype_name


class WideWeights:
    """Tensors by first name, copied to float64 when they are first asked for. The network they come from stays.

    Args:
        weights: The tensors of a network.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = dict(weights)
        self.wide: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.wide or name in self.weights

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.wide:
            tensor = self.weights[name]
            if not tensor.is_floating_point():
                held = f"{name!r} holds {dtype_name(tensor.dtype)}, which nothing can be folded into"
                raise FoldError(f"{held}. Dequantise the weights first.")
            self.wide[name] = tensor.detach().to(torch.float64, copy=True)
        return self.wide[name]

    def take(self, place: AxisOf) -> Tensor:
        """Return the entries at the positions of a place, with their axis last."""
        return positions_of(self[place.tensor], place)

    def put(self, place: AxisOf, values: Tensor) -> None:
        """Set what `take` returns."""
        tensor = self[place.tensor]
        target = tensor.movedim(place.axis, -1)
        if place.segment:
            target[..., list(place.positions({place.tensor: tuple(tensor.shape)}))] = values
        else:
            target.copy_(values)

    def add(self, name: str, values: Tensor) -> None:
        """Add to a tensor; further axes of the values, those of a kernel, are summed."""
        tensor = self[name]
        tensor += values.to(tensor.device).reshape(*tensor.shape, -1).sum(-1)

    def rounded(self) -> dict[str, Tensor]:
        """Return all tensors, those that were rewritten in their own dtype again.

        Raises:
            FoldError: A number is larger than its dtype holds.
        """
        changed = {n: narrow(wide, self.weights[n].dtype, n, FoldError) for n, wide in self.wide.items()}
        return {**self.weights, **changed}
