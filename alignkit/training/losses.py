"""What an aligner is trained on: labels, distance, and loss on the line between two networks ([Navon24], section 4.3).

Scores of several pairs of one graph are relaxed together: groups of one shape share every matrix product, and the
Sinkhorn operator runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.matching.sinkhorn import plan, potentials
from alignkit.matching.soft_alignment import ProjectedAlignment, SoftAlignment
from alignkit.tasks.batches import Batch
from alignkit.tasks.task import Task

SWEEPS = 40
"""Most sweeps of the Sinkhorn operator in a training step."""
TOLERANCE = 1e-3
"""Row sums of soft alignments within this of 1 are close enough to learn from."""
GRADIENT_STEPS = 4
"""Steps of the linear solver behind a gradient, as in the Sinkhorn solver."""


@dataclass(frozen=True)
class Relaxed:
    """Soft alignments of ``k`` pairs of one graph, and the logits that they were projected from.

    Attributes:
        graph: The graph.
        logits: ``[k, n, n]`` for a root, ``[k, p, p, n, n]`` for a family over ``p`` parent units.
        soft: Doubly stochastic matrices of the same shapes.
        scored: Groups whose logits depend on the scores; all others are at the centre.
    """

    graph: SymmetryGraph
    logits: Mapping[str, Tensor]
    soft: Mapping[str, Tensor]
    scored: tuple[str, ...]

    def alignment(self, at: int) -> SoftAlignment:
        """The soft alignment of one pair."""
        return ProjectedAlignment(self.graph, {name: matrix[at] for name, matrix in self.soft.items()})


def relax(
    graph: SymmetryGraph,
    scores: Sequence[Mapping[str, Float[Tensor, "units units"]]],
    log_sharpness: Float[Tensor, ""],
    *,
    project: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Relaxed:
    """Soft alignments of several pairs, families from the inside out, as `alignkit.deepalign.consensus.soft_elements`.

    Args:
        graph: The graph of all pairs.
        scores: For each pair the scores of each group, over all parents; the same groups for every pair.
        log_sharpness: Logarithm of the factor of standardised scores.
        project: False leaves out the projections that the logits do not need: `supervised_loss` looks at logits alone.
        dtype: Of logits and projections. Gradients of nearly hard alignments cancel: in float32 little is left of them.

    Returns:
        Logits and projections, differentiable with respect to scores and sharpness.
    """
    stacked = {name: torch.stack([one[name].to(dtype) for one in scores]) for name in scores[0] if name in graph.groups}
    sharpness = log_sharpness.exp()
    logits: dict[str, Tensor] = {}
    soft: dict[str, Tensor] = {}
    scored: list[str] = []
    for names in _levels(graph):
        for name in names:
            group, count = graph.groups[name], graph.instances(name)
            parts = [stacked[name]] if name in stacked else []
            for child in graph.children(name):
                if child in stacked:
                    alike = (soft[child] * _by_parents(stacked[child], graph.groups[child].size)).sum((-1, -2))
                    parts.append(_standardised(alike))
            units = count * group.size
            total = (
                sum(parts)
                if parts
                else torch.zeros(len(scores), units, units, dtype=dtype, device=log_sharpness.device)
            )
            assert isinstance(total, Tensor)
            matrices = _by_parents(sharpness * _standardised(total), group.size)
            logits[name] = matrices[:, 0, 0] if group.parent is None else matrices
            if parts:
                scored.append(name)
        wanted = [name for name in names if project or graph.groups[name].parent is not None]
        soft.update(_projected({name: logits[name] for name in wanted}))
    return Relaxed(graph, logits, soft, tuple(scored))


def _levels(graph: SymmetryGraph) -> Iterator[list[str]]:
    """Groups by how deep they are nested, the deepest first."""
    depth = {name: len(graph.ancestors(name)) for name in graph.groups}
    for level in sorted(set(depth.values()), reverse=True):
        yield [name for name in graph.groups if depth[name] == level]


def _by_parents(matrix: Float[Tensor, "k units units"], size: int) -> Float[Tensor, "k p p n n"]:
    parents = matrix.shape[-1] // size
    return matrix.reshape(-1, parents, size, parents, size).transpose(2, 3)


def _standardised(matrix: Float[Tensor, "k n m"]) -> Float[Tensor, "k n m"]:
    """Mean 0 and standard deviation 1 over the entries of each matrix; a constant matrix becomes 0."""
    centred = matrix - matrix.mean((-1, -2), keepdim=True)
    variance = centred.square().mean((-1, -2), keepdim=True)
    largest = matrix.detach().abs().amax((-1, -2), keepdim=True)
    constant = variance.detach() <= (8 * torch.finfo(matrix.dtype).eps * largest).square()
    return torch.where(constant, 0.0, centred * torch.where(constant, 1.0, variance).rsqrt())


def _projected(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Doubly stochastic matrices of several groups; those of one size together."""
    by_size: dict[int, list[str]] = {}
    for name, matrix in logits.items():
        by_size.setdefault(matrix.shape[-1], []).append(name)
    found: dict[str, Tensor] = {}
    for size, names in by_size.items():
        flat = [logits[name].reshape(-1, size, size) for name in names]
        together = torch.cat(flat)
        scaling = potentials(together, max_scalings=SWEEPS, tolerance=TOLERANCE)
        matrices = plan(together, scaling, gradient_steps=GRADIENT_STEPS)
        for name, part in zip(names, torch.split(matrices, [len(one) for one in flat]), strict=True):
            found[name] = part.reshape(logits[name].shape)
    return found


# ---------------------------------------------------------------------- losses


def supervised_loss(relaxed: Relaxed, answers: Sequence[Alignment]) -> Float[Tensor, ""]:
    """Cross-entropy of rows and of columns of the logits against known alignments; mean over groups and pairs.

    A family is judged where its parents are: the units of a parent of A against those of the parent of B that belongs
    there. [Navon24], L_supervised.

    Args:
        relaxed: Logits of ``k`` pairs.
        answers: The alignment of B to A of each of them.
    """
    losses = []
    for name in relaxed.scored:
        logits, size = relaxed.logits[name], relaxed.graph.groups[name].size
        device = logits.device
        target = torch.stack([answer.elements[name].reshape(-1, size) for answer in answers]).to(device)
        parent = relaxed.graph.groups[name].parent
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


def moved_softly(relaxed: Relaxed, b: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """``F # B`` of each pair: every floating-point tensor that a group acts on, moved; differentiable."""
    moved = []
    for at, weights in enumerate(b):
        soft = relaxed.alignment(at)
        moved.append({n: soft.apply_tensor(n, t) if t.is_floating_point() else t for n, t in weights.items()})
    return moved


def alignment_loss(
    graph: SymmetryGraph, a: Sequence[Mapping[str, Tensor]], moved: Sequence[Mapping[str, Tensor]]
) -> Float[Tensor, ""]:
    """``|| A - F # B ||^2 / (2 |A|^2)`` over the tensors that groups act on; mean over pairs.

    0 for networks that are permutations of each other and aligned; about 1 for unrelated ones that a permutation
    aligns at random. [Navon24], L_alignment.

    Args:
        graph: The graph.
        a: Weights of A of each pair, by the first name of each tensor.
        moved: What `moved_softly` returns.
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
    a: Sequence[Mapping[str, Tensor]],
    moved: Sequence[Mapping[str, Tensor]],
    places: Sequence[float],
    batches: Sequence[Batch],
) -> Float[Tensor, ""]:
    """Task loss of ``lambda A + (1 - lambda) F # B``; mean over pairs. [Navon24], L_LMC.

    Args:
        tasks: For each pair, what runs the model and measures the loss; batches of the tasks are not used.
        graph: The graph.
        a: Weights of A of each pair, by the first name of each tensor.
        moved: What `moved_softly` returns.
        places: Lambda of each pair.
        batches: Samples for each pair, on the task's device.
    """
    buffers, losses = tasks[0].buffers, []
    for task, left, right, place, batch in zip(tasks, a, moved, places, batches, strict=True):
        weights: dict[str, Tensor] = {}
        for name, node in graph.tensors.items():
            tensor = left[name]
            if tensor.is_floating_point():
                tensor = torch.lerp(right[name], tensor, place)
            # Gradients go through parameters only: batch_norm has none for its running statistics.
            weights.update(dict.fromkeys(node.names, tensor.detach() if buffers & set(node.names) else tensor))
        losses.append(torch.as_tensor(task.loss(task.outputs(weights, batch.inputs), batch.targets)))
    return torch.stack(losses).mean()
