"""The task's loss on the line between A and aligned B, on minibatches and on a fixed set of samples.

Between A and B BatchNorm takes the statistics of each batch (`alignkit.tasks.merged_runs`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignkit.errors import TaskError
from alignkit.graph import Pair
from alignkit.graph.elements.alignment import Alignment
from alignkit.tasks.batches import Batch
from alignkit.tasks.goals import Goal, LossOnLine, by_labels
from alignkit.tasks.line import Line
from alignkit.tasks.merged_runs import merged_runs
from alignkit.tasks.minibatches import Minibatches
from alignkit.tasks.task import Task


class PathLoss:
    """Loss of a task at ``(1 - lambda) A + lambda P # B``.

    Args:
        task: Model, data and loss.
        pair: The two networks.
        lambdas: Where on the line alignments are scored.
        generator: A CPU generator, for the order of samples.
        counts: Maximum number of samples to learn from, None as for `Minibatches`; samples in a minibatch; samples on
            which alignments are scored, the same for all.
        goal: What the loss is. Without it that of the task, by its targets.

    Raises:
        TaskError: The weights do not fit the task's model, or the data is not finite.
    """

    def __init__(
        self,
        task: Task,
        pair: Pair,
        lambdas: Sequence[float],
        generator: torch.Generator,
        counts: tuple[int | None, int, int],
        goal: Goal = by_labels,
    ) -> None:
        self.task, self.graph, self.lambdas, self.goal = task, pair.graph, tuple(lambdas), goal
        self.a, self.b = (
            {name: tensor.detach().to(task.device, task.dtype_for(name, tensor)) for name, tensor in side.items()}
            for side in (pair.a, pair.b)
        )
        task.checked(self.between(self.b, 0.5))
        samples, batch_size, score_samples = counts
        self.runs = merged_runs(task)
        self.minibatches = Minibatches(task, samples, batch_size, generator)
        self._ends = self.named(self.a), self.named(self.b)
        self._scores = [(batch.size, self.on(batch)) for batch in self.minibatches.fixed(score_samples)]

    def on(self, batch: Batch) -> LossOnLine:
        """Return the loss at lambda of the weights there, as `named` returns them, on one batch; differentiable."""
        return self.goal(self.runs, *self._ends, batch)

    def between(self, moved: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Compute the weights at lambda = ``share`` between A and the moved tensors of B, under every name."""
        return self.named(Line(self.a, moved).at(share))

    def named(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put weights by first name under every name, on the task's device.

        They get the dtypes of the task's model.
        """
        cast = {name: tensor.to(self.task.device, self.a[name].dtype) for name, tensor in weights.items()}
        return {name: cast[first] for name, first in self.graph.first_names.items()}

    def score(self, alignment: Alignment) -> float:
        """Compute the mean loss over the fixed samples and over ``lambdas``.

        Raises:
            TaskError: It is not finite.
        """
        return self.score_of({name: alignment.apply_tensor(name, tensor) for name, tensor in self.b.items()})

    def score_of(self, moved: Mapping[str, Tensor]) -> float:
        """Compute the same for tensors of B, by first name, that were moved in another way.

        Raises:
            TaskError: It is not finite.
        """
        total, count = 0.0, 0
        with torch.no_grad():
            for size, loss in self._scores:
                losses = [float(loss(share, self.between(moved, share))) for share in self.lambdas]
                total += size * sum(losses) / len(losses)
                count += size
        if not math.isfinite(total):
            raise TaskError(
                f"the loss between A and aligned B is {total / count}. Are both models finite on the task's data?"
            )
        return total / count
