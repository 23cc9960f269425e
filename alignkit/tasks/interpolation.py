"""The loss along the straight line between two sets of weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alignkit.errors import TaskError
from alignkit.tasks.task import CannotBatchError, OutOfMemoryError, Task, TaskResult
from alignkit.text import describe_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

BYTES_AT_ONCE = 2**28
"""Memory that points evaluated together may take (estimate). More is not faster on a CPU."""
FORMAT = {"format": "alignkit.interpolation", "version": 1}


@dataclass(frozen=True)
class Interpolation:
    """Loss and metric on the line ``(1 - lambda) A + lambda B``.

    [Navon24] writes the line as ``lambda A + (1 - lambda) B``; barrier and AUC are the same in both directions.

    Attributes:
        lambdas: Places on the line, from 0 (A) to 1 (B), evenly spaced; their number is odd.
        losses: Mean loss at each of them.
        metrics: Mean metric at each of them, None if the task has no metric.
        metric_name: How the task calls its metric.
        label: Name of the line in pictures and tables.
    """

    lambdas: tuple[float, ...]
    losses: tuple[float, ...]
    metrics: tuple[float, ...] | None = None
    metric_name: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        count = len(self.lambdas)
        lengths = {count, len(self.losses), count if self.metrics is None else len(self.metrics)}
        if count < 3 or count % 2 == 0 or len(lengths) > 1:
            raise TaskError(
                f"an interpolation needs an odd number of points, at least 3, and a loss (and metric) for each: found "
                f"{count} lambdas, {len(self.losses)} losses."
            )

    @property
    def excess(self) -> tuple[float, ...]:
        """Loss above the straight line between the losses of A and B, at each lambda. [Navon24] calls it psi."""
        first, last = self.losses[0], self.losses[-1]
        return tuple(loss - ((1 - x) * first + x * last) for x, loss in zip(self.lambdas, self.losses, strict=True))

    @property
    def barrier(self) -> float:
        """Largest excess, 0 if it is nowhere positive. Source: [Navon24], [Frankle20]."""
        return max(0.0, *self.excess)

    @property
    def auc(self) -> float:
        """Integral of the excess over lambda by the trapezoid rule, 0 if that is negative. Source: [Navon24]."""
        excess = self.excess
        widths = [right - left for left, right in pairwise(self.lambdas)]
        heights = [(left + right) / 2 for left, right in pairwise(excess)]
        return max(0.0, sum(width * height for width, height in zip(widths, heights, strict=True)))

    @property
    def midpoint(self) -> Midpoint:
        """Loss and metric of the average of A and B."""
        middle = len(self.lambdas) // 2
        return Midpoint(self.losses[middle], None if self.metrics is None else self.metrics[middle])

    def plot(self, target: str | PathLike[str] | Axes | None = None) -> Figure:
        """Draw the line. See `alignkit.plotting.pictures.plot_interpolations`, which draws several in one picture.

        Args:
            target: A file to write, matplotlib axes to draw the losses on, or None for a new figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from alignkit.plotting.pictures import plot_interpolations

        return plot_interpolations([self], target)

    def to_json(self) -> str:
        """All numbers as JSON text; barrier and AUC are there to be read, and are computed again when it is loaded."""
        values = {
            "label": self.label,
            "lambdas": self.lambdas,
            "losses": self.losses,
            "metrics": self.metrics,
            "metric_name": self.metric_name,
            "barrier": self.barrier,
            "auc": self.auc,
        }
        return json.dumps({**FORMAT, **values}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Interpolation:
        """Read what `to_json` wrote.

        Raises:
            TaskError: The text is not JSON, or not an interpolation of a version that is known.
        """
        try:
            values = json.loads(text)
            found = {key: values[key] for key in FORMAT}
            if found != FORMAT:
                raise TaskError(f"this is {found}, not {FORMAT}: written by another version of alignkit?")
            metrics = values["metrics"]
            return cls(
                tuple(map(float, values["lambdas"])),
                tuple(map(float, values["losses"])),
                None if metrics is None else tuple(map(float, metrics)),
                values["metric_name"],
                values["label"],
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, TaskError):
                raise
            raise TaskError(f"the text is no interpolation in JSON: {describe_error(error)}.") from error


@dataclass(frozen=True)
class Midpoint:
    """Loss and metric of the average of two models."""

    loss: float
    metric: float | None


def interpolate(
    task: Task,
    a: nn.Module | Mapping[str, Tensor],
    b: nn.Module | Mapping[str, Tensor],
    points: int = 25,
    label: str | None = None,
) -> Interpolation:
    """Evaluate a task on the straight line from A to B.

    Points are evaluated together by ``torch.vmap`` where the model allows it and memory suffices, else one by one;
    the results agree up to rounding. Weights are combined in float32 or better and rounded to A's dtype.
    Integer buffers (``num_batches_tracked``) are those of A.

    Args:
        task: Model, data and loss.
        a: Weights at lambda = 0: a module or a state dict.
        b: Weights at lambda = 1, usually aligned to A before.
        points: Number of lambdas, odd so that the middle is one of them.
        label: Name of the line in pictures and tables.

    Raises:
        TaskError: ``points`` is even or less than 3, or the task cannot be evaluated (see `Task.evaluate`); the
            message says where on the line.

    Source: [Navon24], section 5; [Frankle20] for the barrier.
    """
    if points < 3 or points % 2 == 0:
        raise TaskError(f"points is {points}: give an odd number, at least 3, so that the midpoint is one of them.")
    lambdas = torch.linspace(0, 1, points, dtype=torch.float64)
    line = Line(task.checked(a), task.checked(b))
    results = list(_evaluated(task, line, lambdas, _points_at_once(task, a, points)))
    metrics = tuple(result.metric for result in results if result.metric is not None)
    return Interpolation(
        tuple(lambdas.tolist()), tuple(result.loss for result in results), metrics or None, task.metric_name, label
    )


class Line:
    """The straight line between two sets of weights of one architecture, on one device."""

    def __init__(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        self._ends = {name: (a[name].detach(), b[name].detach()) for name in a if _is_real(a[name])}
        self.shared = {name: a[name] for name in a if name not in self._ends}
        """Tensors that are the same everywhere: those of A that hold integers or booleans."""

    @property
    def varies(self) -> bool:
        """Whether there is any tensor that can be interpolated."""
        return bool(self._ends)

    def stack(self, lambdas: Tensor) -> dict[str, Tensor]:
        """Weights ``[k, ...]`` at ``k`` places. Exactly those of A at 0 and those of B at 1."""
        return {name: _between(a, b, lambdas) for name, (a, b) in self._ends.items()}

    def at(self, place: float) -> dict[str, Tensor]:
        """All weights at one place."""
        stacked = self.stack(torch.tensor([place], dtype=torch.float64))
        return {**self.shared, **{name: tensor[0] for name, tensor in stacked.items()}}


def _between(a: Tensor, b: Tensor, lambdas: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    weight = lambdas.to(a.device, dtype).reshape(-1, *[1] * a.ndim)
    return ((1 - weight) * a.to(dtype) + weight * b.to(dtype)).to(a.dtype)


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _points_at_once(task: Task, a: nn.Module | Mapping[str, Tensor], points: int) -> int:
    budget = BYTES_AT_ONCE
    if task.device.type == "cuda":
        budget = torch.cuda.mem_get_info(task.device)[0] // 2
    return max(1, min(points, budget // max(1, task.bytes_for(a))))


def _evaluated(task: Task, line: Line, lambdas: Tensor, at_once: int) -> Iterator[TaskResult]:
    """Results in the order of ``lambdas``, ``at_once`` together; fewer when memory or the model ask for it."""
    start = 0
    while start < len(lambdas):
        places = lambdas[start : start + at_once]
        where = f"between lambda = {places[0]:.3g} and {places[-1]:.3g}" if len(places) > 1 else ""
        try:
            if len(places) > 1 and line.varies:
                results = task.evaluate_stack(line.stack(places), line.shared)
            else:
                where = f"at lambda = {places[0]:.3g}"
                results = [task.evaluate(line.at(float(places[0])))]
        except CannotBatchError as reason:
            log.debug("one point at a time: %s", reason)
            at_once = 1
            continue
        except OutOfMemoryError:
            at_once = (len(places) + 1) // 2
            continue
        except TaskError as error:
            raise TaskError(f"{where}: {error}") from error
        yield from results
        start += len(results)
