"""Running statistics of norms: which tensors they are, and how they are measured anew.

A norm such as BatchNorm keeps the mean and the variance that its input had in training. They belong to the weights in
front of it: once these are averaged or changed, the statistics do not fit any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from alignkit.activations import Moments
from alignkit.checkpoints.dtypes import narrow
from alignkit.errors import MergeError

INSTANCE_NORMS = {nn.InstanceNorm1d: 2, nn.InstanceNorm2d: 3, nn.InstanceNorm3d: 4}
"""Dimensions of one sample of each kind: channels come first."""


def is_statistic(name: str) -> bool:
    """Tell by its name whether a tensor holds running statistics, of whatever kind."""
    return name.rpartition(".")[2].startswith(("running_", "moving_"))


def keeps_statistics(module: nn.Module) -> bool:
    """Tell whether a module keeps a running mean and a running variance of each channel, which can be measured anew.

    Those are all norms of torch that track statistics, what derives from them, and every other module with buffers of
    the names that torch gives them.
    """
    mean, variance = (module._buffers.get(name) for name in ("running_mean", "running_var"))
    if mean is None or variance is None:
        return False
    return isinstance(module, _NormBase) or (mean.ndim == 1 and mean.shape == variance.shape)


@dataclass
class RunningStatistics:
    """Statistics of the input of one norm, pooled exactly over all batches."""

    path: str
    norm: Any
    moments: Moments = field(default_factory=Moments)

    def update(self, values: Tensor) -> None:
        """Add a batch, and give the norm the statistics of this batch alone: it normalises as in training."""
        if self._is_instance_norm:
            dims = next(dims for kind, dims in INSTANCE_NORMS.items() if isinstance(self.norm, kind))
            samples = values.reshape(-1, *values.shape[-dims:]).flatten(2).double()
            self._check_count(samples.shape[2])
            each = torch.cat([samples.mean(2), samples.var(2)], 1)
            mean, variance = self.moments.update(each, 1)[0].chunk(2)
        else:
            axis = self._channel_axis(values)
            self._check_count(values.numel() // max(values.shape[axis], 1))
            mean, deviation = self.moments.update(values, axis)
            variance = deviation.square()
        self._write(mean, variance)

    def finish(self) -> None:
        """Give the norm the statistics of all batches: those that training would have left with one batch of all."""
        if not self.moments.is_finite:
            self._refuse_infinity()
        if self._is_instance_norm:
            self._write(*self.moments.mean.chunk(2))
        else:
            self._write(self.moments.mean, self.moments.squares / (self.moments.count - 1))
        if not bool(torch.isfinite(self.norm.running_mean).all() & torch.isfinite(self.norm.running_var).all()):
            self._refuse_infinity()

    @property
    def _is_instance_norm(self) -> bool:
        """Whether the variance is that within each sample, averaged over samples, as torch does for instance norms."""
        return isinstance(self.norm, tuple(INSTANCE_NORMS))

    def _channel_axis(self, values: Tensor) -> int:
        kind, channels = type(self.norm).__name__, len(self.norm.running_mean)
        if isinstance(self.norm, _BatchNorm) or "BatchNorm" in kind:
            return 1
        axes = [axis for axis, size in enumerate(values.shape) if axis > 0 and size == channels]
        if len(axes) == 1:
            return axes[0]
        raise MergeError(
            f"{self.path!r} ({kind}) keeps statistics of {channels} channels, but {len(axes)} axes of its input "
            f"{tuple(values.shape)} have that size. Recompute them in your own way, and leave them as they are here: "
            "--no-reset-batchnorm, or reset_batchnorm=False."
        )

    def _check_count(self, count: int) -> None:
        if count < 2:
            raise MergeError(
                f"{self.path!r} cannot take statistics of a batch: there is one value for each channel. Use larger "
                "batches."
            )

    def _write(self, mean: Tensor, variance: Tensor) -> None:
        for name, values in (("running_mean", mean), ("running_var", variance)):
            statistic = getattr(self.norm, name)
            statistic.copy_(narrow(values, statistic.dtype, f"{self.path}.{name}", MergeError))

    def _refuse_infinity(self) -> None:
        raise MergeError(
            f"the statistics of {self.path!r} are NaN or infinite. Are the weights and the inputs finite, and do the "
            f"statistics fit {self.norm.running_mean.dtype}?"
        )
