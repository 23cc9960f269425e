"""Soft alignments of scores: standardise, sharpen, project to doubly stochastic matrices; families from the inside out.

Two parents are as alike as their softly matched children. Example: a group ``heads`` of 2 units and its family ``qk``
of 3 units a head. The scores of ``qk`` are one ``[6, 6]`` matrix, cut into four ``[3, 3]`` matrices, one for each pair
of heads. Each is projected; the sum of its entries times its scores is one entry of a ``[2, 2]`` matrix that is added
to the scores of ``heads``, which is then projected, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.deepalign.scores import comparable, standardise
from alignkit.graph import SymmetryGraph
from alignkit.matching.sinkhorn import plan, potentials
from alignkit.matching.soft_alignment import ProjectedAlignment

MAX_SCALINGS = 40
"""Maximum number of times that rows and columns are scaled; the gradient does not need them to have converged."""
TOLERANCE = 1e-3
"""Row sums of soft alignments within this of 1 are close enough to learn from."""
GRADIENT_STEPS = 4
"""Steps of the linear solver behind a gradient, as in the Sinkhorn solver."""

Projection = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""From logits ``[..., n, n]`` of some groups to (nearly) doubly stochastic matrices."""


@dataclass(frozen=True)
class Relaxed:
    """Soft alignments of ``k`` pairs of one graph, and the logits that they are projected from.

    Groups without scores, of their own or of their children, have no entry: all their elements are alike.

    Attributes:
        graph: The graph.
        logits: ``[k, n, n]`` for a root, ``[k, p, p, n, n]`` for a family over ``p`` parent units.
        families: Doubly stochastic matrices of the families.
        project: Projects the roots once they are asked for: some losses look at logits alone.
    """

    graph: SymmetryGraph
    logits: Mapping[str, Tensor]
    families: Mapping[str, Tensor]
    project: Projection

    @cached_property
    def soft(self) -> dict[str, Tensor]:
        """Doubly stochastic matrices in the shapes of the logits."""
        roots = {name: matrix for name, matrix in self.logits.items() if name not in self.families}
        return {**self.families, **project_kinds(self.graph, roots, self.project)}

    def alignment(self, at: int, dtype: torch.dtype | None = None) -> ProjectedAlignment:
        """Return the soft alignment of one pair."""
        return ProjectedAlignment(self.graph, {name: matrix[at] for name, matrix in self.soft.items()}, dtype)


def project_by_size(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Project by the Sinkhorn operator with its implicit gradient, groups of one size together."""
    by_size: dict[int, list[str]] = {}
    for name, matrix in logits.items():
        by_size.setdefault(matrix.shape[-1], []).append(name)
    soft: dict[str, Tensor] = {}
    for size, names in by_size.items():
        flat = [logits[name].reshape(-1, size, size) for name in names]
        together = torch.cat(flat)
        scaling = potentials(together, max_scalings=MAX_SCALINGS, tolerance=TOLERANCE)
        matrices = plan(together, scaling, gradient_steps=GRADIENT_STEPS)
        for name, part in zip(names, torch.split(matrices, [len(one) for one in flat]), strict=True):
            soft[name] = part.reshape(logits[name].shape)
    return soft


def relax(
    graph: SymmetryGraph,
    scores: Mapping[str, Float[Tensor, "k units units"]],
    sharpness: float | Float[Tensor, ""],
    project: Projection = project_by_size,
) -> Relaxed:
    """Make soft alignments of the scores of several pairs.

    Args:
        graph: The graph of all pairs.
        scores: Scores of each group over all parents, stacked over the pairs. In float32 little is left of the
            gradients of nearly hard alignments, which cancel.
        sharpness: Factor of standardised scores; the larger, the harder.
        project: How logits are projected.

    Returns:
        Logits and soft alignments, differentiable with respect to scores and sharpness.
    """

    def split_pairs(matrix: Float[Tensor, "k units units"], group: str) -> Float[Tensor, "k p p n n"]:
        size = graph.groups[group].size
        parents = matrix.shape[-1] // size
        return matrix.reshape(-1, parents, size, parents, size).transpose(2, 3)

    logits: dict[str, Tensor] = {}
    families: dict[str, Tensor] = {}
    depth = {name: len(graph.ancestors(name)) for name in graph.groups}
    for level in sorted(set(depth.values()), reverse=True):
        for name in (name for name in graph.groups if depth[name] == level):
            parts = [scores[name]] if name in scores else []
            for child in graph.children(name):
                if child in scores:
                    together = (families[child] * split_pairs(scores[child], child)).sum((-1, -2))
                    parts.append(standardise(together))
            if parts:
                kind = graph.groups[name].kind
                matrices = split_pairs(sharpness * comparable(kind, sum(parts[1:], parts[0])), name)
                logits[name] = matrices[:, 0, 0] if level == 0 else matrices
        if level:
            own = {name: matrix for name, matrix in logits.items() if depth[name] == level}
            families.update(project_kinds(graph, own, project))
    return Relaxed(graph, logits, families, project)


def project_kinds(graph: SymmetryGraph, logits: Mapping[str, Tensor], project: Projection) -> dict[str, Tensor]:
    """Project logits of groups that are permuted, some with signs, to matrices in the convex hulls of their elements.

    Units that may change their sign have ``logits`` for one sign and ``-logits`` for the other.
    """
    signed = {name for name in logits if graph.groups[name].kind == "signed"}
    soft = project({n: torch.logaddexp(m, -m) if n in signed else m for n, m in logits.items()})
    return {name: m * torch.tanh(logits[name]) if name in signed else m for name, m in soft.items()}
