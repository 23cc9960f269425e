"""The loss along the straight line between two sets of weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.documents import Content, Format
from alignkit.checkpoints.dtypes import narrow
from alignkit.checkpoints.fit import is_number
from alignkit.errors import AlignkitError, TaskError
from alignkit.graph.bind import Weights
from alignkit.plotting.pictures import Curve, plot_interpolations
from alignkit.tasks.line import Line
from alignkit.tasks.task import CannotBatchError, OutOfMemoryError, Task, TaskResult
from alignkit.text import describe_error, html_table, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

BYTES_AT_ONCE = 2**28
"""Memory that points evaluated together may take on a CPU (estimate). More is not faster there."""


class LineContent(Content):
    """An interpolation as plain values."""

    lambdas: tuple[float, ...]
    losses: tuple[float, ...]
    metrics: tuple[float, ...] | None
    metric_name: str | None
    label: str | None
    barrier: float
    auc: float


FORMAT = Format("alignkit.interpolation", "interpolation", "Interpolation.to_json", TaskError, LineContent)


@dataclass(frozen=True)
class Midpoint:
    """Loss and metric of the average of two models."""

    loss: float
    metric: float | None


@dataclass(frozen=True, repr=False)
class Interpolation(Curve):
    """Loss and metric on the line ``(1 - lambda) A + lambda B``.

    The attributes are those of `alignkit.plotting.Curve`: ``lambdas``, ``losses``, ``metrics``, ``metric_name`` and
    ``label``. Lambdas are evenly spaced, and their number is odd.
    """

    def __post_init__(self) -> None:
        count = len(self.lambdas)
        lengths = {count, len(self.losses), count if self.metrics is None else len(self.metrics)}
        if count < 3 or count % 2 == 0 or len(lengths) > 1:
            raise TaskError(
                f"an interpolation needs an odd number of points, at least 3, and a loss (and metric) for each: found "
                f"{plural(count, 'lambda')}, {plural(len(self.losses), 'loss', 'losses')}."
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
        pieces = pairwise(zip(self.lambdas, self.excess, strict=True))
        return max(0.0, sum((right - left) * ((low + high) / 2) for (left, low), (right, high) in pieces))

    @property
    def midpoint(self) -> Midpoint:
        """Loss and metric of the average of A and B."""
        middle = len(self.lambdas) // 2
        return Midpoint(self.losses[middle], None if self.metrics is None else self.metrics[middle])

    def __repr__(self) -> str:
        label = "" if self.label is None else f"{self.label!r}, "
        points = plural(len(self.lambdas), "point")
        return f"Interpolation({label}{points}, barrier {self.barrier:.4g}, AUC {self.auc:.4g})"

    def _repr_html_(self) -> str:
        """Show loss and metric of A, of the average and of B as a table, for notebooks."""
        metric = [] if self.metrics is None else [self.metrics]
        header = ("", "loss", self.metric_name or "metric")[: 2 + len(metric)]
        shares = {"A": 0, "average": len(self.lambdas) // 2, "B": -1}
        rows = [(name, *(f"{values[at]:.4g}" for values in (self.losses, *metric))) for name, at in shares.items()]
        return html_table(header, rows, repr(self))

    @check_arguments
    def plot(self, target: str | PathLike[str] | Axes | None = None) -> Figure:
        """Draw the line. `alignkit.plotting.plot_interpolations` draws several in one picture.

        Args:
            target: A file to write, matplotlib axes to draw the losses on, or None for a new figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return plot_interpolations([self], target)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values; barrier and AUC are there to be read, and are never read back."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {**values, "barrier": self.barrier, "auc": self.auc}

    @classmethod
    @check_arguments
    def from_dict(cls, values: Mapping[str, Any]) -> Interpolation:
        """Read what `to_dict` returned.

        Raises:
            TaskError: It is something else.
        """
        with FORMAT.rebuilding("this interpolation"):
            return cls.from_content(LineContent.model_validate_json(json.dumps(dict(values))))

    @classmethod
    def from_content(cls, line: LineContent) -> Interpolation:
        """Make an interpolation of checked values; `TaskError` if their numbers do not fit each other."""
        return cls(line.lambdas, line.losses, line.metrics, line.metric_name, line.label)

    def to_json(self) -> str:
        """Return everything as JSON text."""
        return FORMAT.to_json(self.to_dict())

    @classmethod
    @check_arguments
    def from_json(cls, text: str) -> Interpolation:
        """Read what `to_json` wrote.

        Raises:
            TaskError: The text is not JSON, or not an interpolation of the version that this release reads.
        """
        content = FORMAT.from_json(text)
        with FORMAT.rebuilding("this interpolation"):
            return cls.from_content(content)


Mend: TypeAlias = Callable[[Weights, float], Weights]
"""Called with the weights between A and B at one lambda, and with lambda; returns what is evaluated in their place."""


@check_arguments
def interpolate(
    task: Task, a: Weights, b: Weights, points: int = 25, label: str | None = None, *, mend: Mend | None = None
) -> Interpolation:
    """Evaluate a task on the straight line from A to B.

    Points are evaluated together by ``torch.vmap`` where the model allows it and memory suffices, else one by one;
    the results agree up to rounding. Weights are combined in float32 or better and rounded to the dtypes
    of the task's model. Integer buffers (``num_batches_tracked``) are those of A.

    Args:
        task: Model, data and loss.
        a: Weights at lambda = 0: a module or a state dict.
        b: Weights at lambda = 1, usually aligned to A before.
        points: Number of lambdas, odd so that the middle is one of them.
        label: Name of the line in pictures and tables.
        mend: Changes the weights between A and B before they are evaluated, such as running statistics that do not fit
            them. A and B themselves are evaluated as they are.

    Raises:
        TaskError: ``points`` is even or less than 3, a weight of B overflows the dtype of the model, or the task
            cannot be evaluated (see `Task.evaluate`); the message says where on the line.

    Source: [Navon24], section 5; [Frankle20] for the barrier.
    """
    if points < 3 or points % 2 == 0:
        raise TaskError(f"points is {points}: give an odd number, at least 3, so that the midpoint is one of them.")
    lambdas = torch.linspace(0, 1, points, dtype=torch.float64)
    left, right = task.checked(a), task.checked(b)
    for name, tensor in right.items():
        if tensor.dtype != left[name].dtype and is_number(left[name]):
            narrow(tensor, left[name].dtype, name, TaskError)
    line = Line(left, right)
    budget = torch.cuda.mem_get_info(task.device)[0] // 2 if task.device.type == "cuda" else BYTES_AT_ONCE
    at_once = max(1, min(points, budget // max(1, task.bytes_for(a))))
    with torch.no_grad():
        results = list(_evaluate(task, line, lambdas, at_once if mend is None else 1, mend))
    metrics = tuple(result.metric for result in results if result.metric is not None)
    return Interpolation(
        tuple(lambdas.tolist()), tuple(result.loss for result in results), metrics or None, task.metric_name, label
    )


def _mended(mend: Mend, weights: Mapping[str, Tensor], share: float) -> Weights:
    """Call a function of the user's on the weights at one point."""
    try:
        return mend(weights, share)
    except AlignkitError:
        raise
    except Exception as error:
        raise TaskError(f"mend= fails: {describe_error(error)}.") from error


def _evaluate(task: Task, line: Line, lambdas: Tensor, at_once: int, mend: Mend | None) -> Iterator[TaskResult]:
    """Yield results in the order of ``lambdas``, ``at_once`` together; fewer when memory or the model ask for it."""
    start = 0
    while start < len(lambdas):
        some = lambdas[start : start + at_once]
        where = f"between lambda = {some[0]:.3g} and {some[-1]:.3g}"
        try:
            if len(some) > 1 and (stacked := line.stack(some)):
                results = task.evaluate_stack(stacked, line.shared)
            else:
                share = float(some[0])
                where, weights = f"at lambda = {share:.3g}", line.at(share)
                if mend is not None and 0 < share < 1:
                    results = [task.evaluate(_mended(mend, weights, share))]
                else:
                    results = [task.evaluate(weights)]
        except CannotBatchError as reason:
            log.debug("one point at a time: %s", reason)
            at_once = 1
            continue
        except OutOfMemoryError:
            at_once = (len(some) + 1) // 2
            continue
        except TaskError as error:
            raise TaskError(f"{where}: {error}") from error
        yield from results
        start += len(results)
