"""Means, variances and covariances of activations, accumulated in float64 batch by batch.

Batches are merged by the pairwise formula of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances", 1979: values are only ever taken relative to the mean of their own batch, so that large
means cost no digits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.activations.readings import Reading, hooked
from alignkit.activations.sites import ModuleCall
from alignkit.errors import SolverError
from alignkit.graph.bind import StateDict
from alignkit.tasks.batches import Batch
from alignkit.tasks.task import Task

BATCH_BYTES = 1 << 28
"""Memory for the activations of A that are kept while B runs on the same samples."""
SILENT = 1e-10
"""A unit whose variance is below this share of its mean square is constant: it correlates with nothing. Rounding of
float32 activations leaves about 1e-14."""


@dataclass
class Moments:
    """Mean and sum of squared deviations of every unit over all samples and positions, ``[units]`` in float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def update(self, values: Tensor, axis: int = -1) -> tuple[Tensor, Tensor]:
        """Add samples.

        Args:
            values: Activations of any shape.
            axis: The axis of the units; all others count samples.

        Returns:
            Mean and standard deviation of these samples alone, ``[units]`` in float64.
        """
        if values.is_complex():
            raise SolverError("activations are complex, and only real ones are measured. Let layers give real numbers.")
        count = values.numel() // values.shape[axis]
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        others = [at for at in range(values.ndim) if at != axis % values.ndim]
        variance, mean = (moment.double() for moment in torch.var_mean(values, others, correction=0))
        total = self.count + count
        shift = mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + count * (variance + shift.square() * (self.count / total))
        self.mean = self.mean.to(mean) + shift * (count / total)
        self.count = total
        return mean, variance.sqrt()

    @property
    def variance(self) -> Tensor:
        """Variance over all samples."""
        return self.squares / max(self.count, 1)

    @property
    def is_finite(self) -> bool:
        """Whether no NaN or infinity was met."""
        return bool(torch.isfinite(self.mean).all() & torch.isfinite(self.squares).all())


@dataclass
class CrossMoments:
    """Moments of the units of A and of B, and of A's units against B's, accumulated in float64.

    Attributes:
        a: Moments of A's units.
        b: Moments of B's units.
        cross: Sum of products of deviations, ``[units of A, units of B]``.
    """

    a: Moments = field(default_factory=Moments)
    b: Moments = field(default_factory=Moments)
    cross: Tensor = field(default_factory=lambda: torch.zeros(()))

    def update(self, a: Float[Tensor, "samples units"], b: Float[Tensor, "samples units"]) -> None:
        """Add samples. Both are overwritten."""
        before, old_a, old_b = self.a.count, self.a.mean, self.b.mean
        mean_a, mean_b = self.a.update(a)[0], self.b.update(b)[0]
        a -= mean_a
        b -= mean_b
        if not before:
            self.cross = a.T @ b
            return
        self.cross.addmm_(a.T, b)
        # The batch as a whole lies beside the samples before it: that is one product of the two shifts.
        self.cross.addr_(mean_a - old_a, mean_b - old_b, alpha=before * len(a) / self.a.count)

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.a.count

    def covariance(self) -> Float[Tensor, "units units"]:
        """Return the covariances of A's units (rows) and B's (columns), divided by the number of samples."""
        return self.cross / self.count

    def correlation(self) -> Float[Tensor, "units units"]:
        """Return the correlations of A's units (rows) and B's (columns); 0 for a unit that is constant."""
        scales = []
        for side in (self.a, self.b):
            silent = side.variance <= SILENT * (side.variance + side.mean.square())
            scales.append(torch.where(silent, 0.0, side.variance.clamp(min=torch.finfo(torch.float64).tiny).rsqrt()))
        return self.covariance() * scales[0][:, None] * scales[1]

    def relative_covariance(self) -> Float[Tensor, "units units"]:
        """Return the covariances, relative to the mean variance of a unit of A and of B; 0 where all are constant."""
        sizes = (self.a.variance.mean() * self.b.variance.mean()).sqrt()
        return self.covariance() / torch.where(sizes > 0, sizes, 1.0)


def cross_moments(
    readings: Mapping[str, list[Reading]],
    task: Task,
    a: StateDict,
    b: StateDict,
    batches: Iterable[Batch],
    sample_bytes: int,
) -> dict[Reading, CrossMoments]:
    """Run A and B on the same batches and accumulate the moments of every reading.

    Large batches are cut: the activations of A on a piece are kept in memory while B runs on it.

    Args:
        readings: Readings of each group.
        task: Runs the model.
        a: Weights of A, as ``task.checked`` returns them.
        b: Weights of B.
        batches: The samples.
        sample_bytes: Bytes that the activations of one sample take, as `find_readings` returns them.

    Raises:
        SolverError: An activation is NaN or infinite; the module and the batch are named.
    """
    rows = max(1, BATCH_BYTES // max(1, sample_bytes))
    moments = {reading: CrossMoments() for group in readings.values() for reading in group}
    by_module: dict[str, list[Reading]] = defaultdict(list)
    for reading in moments:
        by_module[reading.module].append(reading)
    kept: dict[Reading, list[Tensor]] = defaultdict(list)

    def keep(path: str, call: ModuleCall) -> None:
        for reading in by_module[path]:
            kept[reading].append(reading.features(call))

    def compare(path: str, call: ModuleCall) -> None:
        for reading in by_module[path]:
            if not kept[reading]:
                raise SolverError(f"module {path!r} is called more often in B than in A, so they cannot be compared.")
            moments[reading].update(kept[reading].pop(0), reading.features(call))

    for batch in batches:
        for piece in batch.pieces(rows):
            inputs = piece.to(task.device).inputs
            kept.clear()
            with piece.named_in_errors(), hooked(task.model, by_module, keep):
                task.outputs(a, inputs)
            with piece.named_in_errors(), hooked(task.model, by_module, compare):
                task.outputs(b, inputs)
        for reading, streamed in moments.items():
            if not bool(torch.isfinite(streamed.cross.sum())):
                raise SolverError(
                    f"{batch.name}: the {reading.site.label} of module {reading.module!r} holds NaN or infinity. Are "
                    "the inputs finite?"
                )
    return moments
