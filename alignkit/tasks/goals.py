"""What the network in the middle is to do: what labels say, or what the two networks do on average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from alignkit.errors import TaskError
from alignkit.tasks.batches import Batch, tensors_in
from alignkit.tasks.measures import cross_entropy, next_token
from alignkit.tasks.merged_runs import Runs
from alignkit.tasks.task import Task

Weights: TypeAlias = Mapping[str, Tensor]
"""Complete weights as `alignkit.Task.checked` returns them."""
LossOnLine: TypeAlias = Callable[[float, Weights], Tensor]
"""From lambda and weights at this place of the line to their loss on a batch, the mean over its samples."""
Goal: TypeAlias = Callable[[Runs, Weights, Weights, Batch], LossOnLine]
"""From what runs networks on the line, the weights of A and B, and a batch on the task's device to the loss on it."""


def by_labels(runs: Runs, a: Weights, b: Weights, batch: Batch) -> LossOnLine:
    """Return the loss of the task, which compares outputs with targets; a `Goal`."""
    return lambda share, weights: runs(share, batch).loss_on(weights, batch)


def by_outputs(runs: Runs, a: Weights, b: Weights, batch: Batch) -> LossOnLine:
    """Return how far outputs are from the mean of those of both networks, in float64; a `Goal` that needs no targets.

    For logits it is the Kullback-Leibler divergence from the mean of both distributions, in nats a sample or token; for
    other outputs the mean squared deviation as a share of the variance of what is wanted. Outputs are logits where the
    model names them so, or where the loss of the task is the cross-entropy of classes or of next tokens.

    A and B are run as networks between them are. With BatchNorm all have the statistics of the batch then: running
    statistics are those of data, and drawn inputs are others. On 36 pairs of ResNets barriers were 0.58 on stand-ins
    and 0.36 on inputs of a domain; with running statistics for A and B 0.72 and 0.41, and no lower on data.

    Raises:
        TaskError: The model returns no floating-point tensor.
    """
    run = partial(judged_outputs, runs(0.5, batch), batch)
    with torch.no_grad():
        (of_a, axis), (of_b, _) = run(a), run(b)
        if axis is None:
            mean = torch.lerp(of_a, of_b, 0.5)
            spread = (mean - mean.mean(0)).square().mean().clamp(min=torch.finfo(torch.float32).tiny)
        else:
            wanted = torch.lerp(of_a.softmax(axis), of_b.softmax(axis), 0.5)
            entropy = torch.special.entr(wanted).sum(axis).mean()
    if axis is None:
        return lambda share, weights: (run(weights)[0] - mean).square().mean() / spread
    return lambda share, weights: -(wanted * run(weights)[0].log_softmax(axis)).sum(axis).mean() - entropy


def judged_outputs(task: Task, batch: Batch, weights: Weights) -> tuple[Tensor, int | None]:
    """Run a network and return what it is for among all that it returns, and the axis of classes if it is logits.

    Other outputs, such as hidden states and caches, may be in the order of units: their mean means nothing.

    Raises:
        TaskError: The model returns no floating-point tensor.
    """
    with batch.named_in_errors():
        outputs = task.outputs(weights, batch.inputs)
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"].double(), -1
    first = next((tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()), None)
    if first is None:
        raise TaskError(
            f"outputs in the middle are compared, and the model returns {type(outputs).__name__} without any."
        )
    axis = 1 if task.loss is cross_entropy else -1 if task.loss is next_token else None
    return first.double(), axis if first.ndim > 1 else None
