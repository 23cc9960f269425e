"""What an aligner is trained on ([Navon24], section 4.3): labels, distance, and loss on the line between networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from alignkit.deepalign.relaxation import Relaxed
from alignkit.graph import SymmetryGraph
from alignkit.graph.bind import StateDict
from alignkit.graph.elements.alignment import Alignment
from alignkit.tasks.batches import Batch
from alignkit.tasks.line import Line
from alignkit.tasks.task import Task


def supervised_loss(relaxed: Relaxed, answers: Sequence[Alignment]) -> Float[Tensor, ""]:
    """Compute the cross-entropy of rows and of columns of the logits against known alignments; mean over groups, pairs.

    A family is judged where its parents are: the units of a parent of A against those of the parent of B that belongs
    there. [Navon24], L_supervised.

    Args:
        relaxed: Logits of ``k`` pairs.
        answers: The alignment of B to A of each of them.
    """
    losses = []
    for name, logits in relaxed.logits.items():
        group, device = relaxed.graph.groups[name], logits.device
        size, parent = group.size, group.parent
        target = torch.stack([answer.elements[name].reshape(-1, size) for answer in answers]).to(device)
        if parent is not None:
            sources = torch.stack([answer.flat(parent) for answer in answers]).to(device)
            count = sources.shape[1]
            pairs = torch.arange(len(answers), device=device)[:, None]
            logits = logits[pairs, torch.arange(count, device=device), sources]
        logits, target = logits.reshape(-1, size, size), target.reshape(-1, size)
        rows = cross_entropy(logits.mT, target)  # classes are on axis 1: the columns of each row
        columns = cross_entropy(logits, target.argsort(-1))
        losses.append((rows + columns) / 2)
    return torch.stack(losses).mean()


def move_softly(relaxed: Relaxed, b: Sequence[StateDict]) -> list[dict[str, Tensor]]:
    """Compute ``F # B`` of each pair: every floating-point tensor that a group acts on is moved; differentiable."""
    moved = []
    for at, weights in enumerate(b):
        soft = relaxed.alignment(at)
        moved.append({n: soft.apply_tensor(n, t) if t.is_floating_point() else t for n, t in weights.items()})
    return moved


def alignment_loss(graph: SymmetryGraph, a: Sequence[StateDict], moved: Sequence[StateDict]) -> Float[Tensor, ""]:
    """Compute ``|| A - F # B ||^2 / (2 |A|^2)`` over the tensors that groups act on; mean over pairs.

    0 for networks that are permutations of each other and aligned; about 1 for unrelated ones that a permutation
    aligns at random. [Navon24], L_alignment.

    Args:
        graph: The graph.
        a: StateDict of A of each pair, by the first name of each tensor.
        moved: What `move_softly` returns.
    """
    losses = []
    for left, right in zip(a, moved, strict=True):
        names = [n for n, node in graph.tensors.items() if node.groups and left[n].is_floating_point()]
        distance = torch.stack([(left[n] - right[n]).square().sum() for n in names]).sum()
        size = torch.stack([left[n].detach().square().sum() for n in names]).sum()
        losses.append(distance / (2 * size).clamp_min(torch.finfo(size.dtype).tiny))
    return torch.stack(losses).mean()


def interpolation_loss(
    tasks: Sequence[Task],
    graph: SymmetryGraph,
    a: Sequence[StateDict],
    moved: Sequence[StateDict],
    lambdas: Sequence[float],
    batches: Sequence[Batch],
) -> Float[Tensor, ""]:
    """Compute the loss of the task at ``(1 - lambda) A + lambda F # B``; mean over pairs. [Navon24], L_LMC.

    Args:
        tasks: For each pair, what runs the model and measures the loss; batches of the tasks are not used.
        graph: The graph.
        a: StateDict of A of each pair, by the first name of each tensor.
        moved: What `move_softly` returns.
        lambdas: Where on the line each pair is measured.
        batches: Samples for each pair, on the task's device.
    """
    losses = []
    for task, left, right, share, batch in zip(tasks, a, moved, lambdas, batches, strict=True):
        weights = Line(left, right).at(share)
        losses.append(task.loss_on({name: weights[first] for name, first in graph.first_names.items()}, batch))
    return torch.stack(losses).mean()
