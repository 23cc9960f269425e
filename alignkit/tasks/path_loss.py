"""The task's loss on the straight line between A and aligned B, on minibatches and on a fixed set of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignkit.errors import TaskError
from alignkit.graph.elements.alignment import Alignment
from alignkit.solver import Problem
from alignkit.tasks.batches import Batch, map_tensors, tensors_in
from alignkit.tasks.task import Task
from alignkit.text import describe_error


class Minibatches:
    """Random minibatches of the first samples of a task, kept on its device.

    Args:
        task: Its batches are read once, until there are ``samples``.
        samples: Most samples to keep.
        size: Samples in a minibatch. Batches that cannot be cut or put together are drawn as they are.
        generator: A CPU generator, for the order.

    Raises:
        TaskError: A batch holds NaN or infinity.
    """

    def __init__(self, task: Task, samples: int, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator
        self.pools = _pooled(first_batches(task, samples))
        self._left: list[tuple[int, Tensor]] = []

    def draw(self) -> Batch:
        """The next minibatch; every sample comes once before any comes again."""
        if not self._left:
            for at, pool in enumerate(self.pools):
                if pool.splittable:
                    order = torch.randperm(pool.size, generator=self.generator)
                    self._left += [(at, rows) for rows in torch.split(order, min(self.size, pool.size)) if len(rows)]
                else:
                    self._left.append((at, torch.empty(0)))
            shuffled = torch.randperm(len(self._left), generator=self.generator)
            self._left = [self._left[i] for i in shuffled]
        at, rows = self._left.pop()
        pool = self.pools[at]
        return _rows(pool, rows) if pool.splittable else pool

    def fixed(self, count: int) -> list[Batch]:
        """About ``count`` samples, the same at every call on one task."""
        total = sum(pool.size for pool in self.pools)
        taken = []
        for pool in self.pools:
            share = max(1, min(pool.size, round(count * pool.size / total)))
            taken.append(pool.rows(0, share) if pool.splittable else pool)
        return taken


class PathLoss:
    """Task loss of ``lambda A + (1 - lambda) P # B``.

    Args:
        problem: A problem with a task.
        lambdas: Places on the line at which alignments are scored.
        samples: Most samples to learn from.
        batch_size: Samples in a minibatch.
        score_samples: Samples on which alignments are scored, the same for all.

    Raises:
        TaskError: The weights do not fit the task's model, or the data is not finite.
    """

    def __init__(
        self, problem: Problem, lambdas: Sequence[float], samples: int, batch_size: int, score_samples: int
    ) -> None:
        assert problem.task is not None, "the caller checks that there is a task"
        self.task, self.graph, self.lambdas = problem.task, problem.graph, tuple(lambdas)
        self.a = {name: tensor.detach().to(self.task.device) for name, tensor in problem.a.items()}
        self.b = {name: tensor.detach().to(self.task.device) for name, tensor in problem.b.items()}
        self._buffers = self.task.buffers
        self.task.checked(self.between(self.b, 0.5))
        self.minibatches = Minibatches(self.task, samples, batch_size, problem.generator())
        self._score_on = self.minibatches.fixed(score_samples)

    def between(self, moved: Mapping[str, Tensor], place: float) -> dict[str, Tensor]:
        """Weights ``place * A + (1 - place) * moved`` under every name; what is not floating-point is A's."""
        mixed = {}
        for name, a in self.a.items():
            b = moved[name].to(a.device, a.dtype)
            mixed[name] = place * a + (1 - place) * b if a.is_floating_point() else a
        return self.named(mixed)

    def named(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by first name, put under every name, in the models' types and on the task's device."""
        named = {}
        for name, node in self.graph.tensors.items():
            tensor = weights[name].to(self.task.device, self.a[name].dtype)
            # Gradients go through parameters only: batch_norm has none for its running statistics.
            named.update(dict.fromkeys(node.names, tensor.detach() if self._buffers & set(node.names) else tensor))
        return named

    def loss(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean loss on one batch; differentiable with respect to the weights, all of which must be given.

        Raises:
            TaskError: The model or the loss fails on the batch.
        """
        try:
            return torch.as_tensor(self.task.loss(self.task.outputs(weights, batch.inputs), batch.targets))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, TaskError | torch.OutOfMemoryError):
                raise
            raise TaskError(f"the model fails on {batch.name}: {describe_error(error)}") from error

    def score(self, alignment: Alignment) -> float:
        """Mean loss over the fixed samples and over ``lambdas``.

        Raises:
            TaskError: It is not finite.
        """
        moved = {name: alignment.apply_tensor(name, tensor) for name, tensor in self.b.items()}
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self._score_on:
                losses = [float(self.loss(self.between(moved, place), batch)) for place in self.lambdas]
                total += batch.size * sum(losses) / len(losses)
                count += batch.size
        if not math.isfinite(total):
            raise TaskError(
                f"the loss between A and aligned B is {total / count}. Are both models finite on the task's data?"
            )
        return total / count


# ---------------------------------------------------------------------- pools of samples


def first_batches(task: Task, samples: int) -> list[Batch]:
    """The task's first batches, on its device, checked; the last is cut where there are more than ``samples``.

    Raises:
        TaskError: A batch holds NaN or infinity.
    """
    found: list[Batch] = []
    count = 0
    for batch in task.batches:
        if count >= samples:
            break
        batch = batch.rows(0, samples - count) if batch.splittable and batch.size > samples - count else batch
        for tensor in (*tensors_in(batch.inputs), *tensors_in(batch.targets)):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise TaskError(f"{batch.name} holds NaN or infinity. Take it out of the task's batches.")
        found.append(batch.to(task.device))
        count += batch.size
    return found


def _pooled(batches: list[Batch]) -> list[Batch]:
    """Batches of the same shapes put together, so that minibatches of any size can be drawn from them."""
    kinds: dict[object, list[Batch]] = {}
    for at, batch in enumerate(batches):
        tensors = [*tensors_in(batch.inputs), *tensors_in(batch.targets)]
        kind = tuple((t.shape[1:], t.dtype) for t in tensors) if batch.splittable else at
        kinds.setdefault(kind, []).append(batch)
    return [same[0] if len(same) == 1 else _together(same) for same in kinds.values()]


def _together(batches: list[Batch]) -> Batch:
    inputs = [torch.cat(parts) for parts in zip(*(tensors_in(batch.inputs) for batch in batches), strict=True)]
    targets = [torch.cat(parts) for parts in zip(*(tensors_in(batch.targets) for batch in batches), strict=True)]
    into, onto = iter(inputs), iter(targets)
    return Batch(
        map_tensors(lambda _: next(into), batches[0].inputs),
        map_tensors(lambda _: next(onto), batches[0].targets),
        f"{batches[0].name} and {len(batches) - 1} more",
    )


def _rows(batch: Batch, rows: Tensor) -> Batch:
    def pick(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)]

    return Batch(map_tensors(pick, batch.inputs), map_tensors(pick, batch.targets), batch.name)
