"""A soft alignment that gradients move: logits where units are permuted, rotations where they rotate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.elements.alignment import Alignment, find_node
from alignkit.graph.structure import GraphStructure
from alignkit.matching.oracles import best_of_kind
from alignkit.matching.sinkhorn import Potentials, doubly_stochastic, plan, potentials
from alignkit.matching.soft_alignment import ProjectedAlignment, SoftAlignment, act_softly
from alignkit.matching.tree_objective import TreeObjective
from alignkit.matching.turning import Turning
from alignkit.solver import Problem

GRADIENT_STEPS = 4
"""Steps of the linear solver behind a gradient. More made no difference to the results on MNIST MLPs."""


class Moved(Protocol):
    """Something between alignments that moves tensors, so that gradients can be taken, and can be rounded."""

    def apply_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Move one tensor of the graph, given by its first name; differentiable."""

    def round(self) -> Alignment:
        """Find an alignment near it."""


class Logits:
    """Logits of every group that is permuted, stacked by shape to be projected together; they begin at a start.

    Units that may change their sign have logits for either sign: the share of a pair of units is that of both signs
    together, and its entry is the share of one less that of the other.

    Args:
        start: Matrices of these groups, as in `SoftAlignment`, on the device and in the dtype of the logits.
        graph: Their graph.
        confidence: As for `first_logits`.
        scalings: Maximum number of times that a projection scales rows and columns, from the factors of the last.
    """

    def __init__(
        self, start: Mapping[str, Tensor], graph: GraphStructure, confidence: float = 1.5, scalings: int = 9
    ) -> None:
        self.scalings = scalings
        self.names: dict[tuple[bool, torch.Size], list[str]] = {}
        self.single: dict[str, Tensor] = {}
        for name, matrix in start.items():
            signed = graph.groups[name].kind == "signed"
            if matrix.shape[-1] == 1 and not signed:
                self.single[name] = matrix
            else:
                self.names.setdefault((signed, matrix.shape), []).append(name)
        self.stacks: dict[tuple[bool, torch.Size], Tensor] = {}
        for key, names in self.names.items():
            stack = torch.stack([start[name] for name in names])
            self.stacks[key] = first_logits(stack, key[0], confidence).requires_grad_()
        self._known: dict[tuple[bool, torch.Size], Potentials] = {}

    def project(self, temperature: float) -> dict[str, Tensor]:
        """Project to matrices in the convex hulls of permutations, or of those with signs; differentiable."""
        matrices = dict(self.single)
        for key, stack in self.stacks.items():
            logits = each = stack / temperature
            if key[0]:
                logits = torch.logaddexp(each[0], each[1])
            known = potentials(logits, self._known.get(key), max_scalings=self.scalings)
            self._known[key] = known
            shares = plan(logits, known, gradient_steps=GRADIENT_STEPS)
            if key[0]:
                shares = shares * torch.tanh((each[0] - each[1]) / 2)
            matrices.update(zip(self.names[key], shares.unbind(0), strict=True))
        return matrices


def first_logits(
    matrices: Float[Tensor, "*batch n n"], signed: bool, confidence: float
) -> Float[Tensor, "*signs batch n n"]:
    """Return logits whose projection is a soft alignment, or a softer one of the same order where that is surer.

    Args:
        matrices: As in `SoftAlignment`, of several groups.
        signed: Whether units may change their sign; the logits then have one dimension for both signs in front.
        confidence: How far the largest logit of a row is above the mean of the others, at most, in the mean over the
            rows of a matrix: for an alignment the logit of the units that it puts together, where all others are 0.
    """
    shares = matrices
    if signed:
        whole = doubly_stochastic(matrices.abs())
        shares = torch.stack([whole + matrices, whole - matrices]).clamp(min=0) / 2
    logs = shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
    candidates = (0, -1) if signed else (-1,)
    count = shares.shape[-1] * (2 if signed else 1)
    largest = logs.amax(candidates, keepdim=True)
    above = (largest - logs.mean(candidates, keepdim=True)) * (count / (count - 1))
    sureness = above.mean(-2, keepdim=True)
    return (logs - logs.amin((*candidates, -2), keepdim=True)) * (confidence / sureness.clamp_min(confidence))


class MovingAlignment:
    """All groups of a graph on the move from a start, or from the soft start of the problem that is there beside it.

    Where units rotate, orders may stay as they are (``confidence`` None).

    Args:
        start: Where it begins.
        problem: The pair. It says how units inside parents that are not put together at first are rotated.
        confidence: As for `first_logits`; None keeps orders.
        scalings: As for `Logits`.
    """

    def __init__(self, start: Alignment, problem: Problem, confidence: float | None, scalings: int = 9) -> None:
        self.start, self.graph = start, start.graph
        rotating = [name for name in self.graph.groups if self.graph.rotates(name)]
        self.logits: Logits | None = None
        begin: Mapping[str, Tensor] = rotations_at(problem, start)
        if confidence is not None:
            soft = problem.soft_init or SoftAlignment.from_alignment(start)
            begin = rotations_of_pairs(problem, start)
            orders = {n: m.to(problem.device, problem.dtype) for n, m in soft.matrices.items() if n not in rotating}
            self.logits = Logits(orders, self.graph, confidence, scalings)
        kinds = {name: self.graph.groups[name].kind for name in rotating}
        self.turnings = {n: Turning(kind, begin[n].to(problem.device, problem.dtype)) for n, kind in kinds.items()}

    @property
    def moves(self) -> bool:
        """Whether there is anything to move."""
        return bool(self.turnings or (self.logits is not None and self.logits.stacks))

    def now(self, temperature: float) -> Moved:
        """Return where it is; differentiable."""
        rotations = {name: turning.matrix for name, turning in self.turnings.items()}
        if self.logits is None:
            return Turned(self.start, rotations)
        # Row sums may be off while scalings are few; what is returned to the user is completed.
        return ProjectedAlignment(self.graph, {**rotations, **self.logits.project(temperature)})

    def turn(self, angle: float) -> None:
        """Turn rotations against their gradients by about this angle, in radians."""
        for turning in self.turnings.values():
            turning.step(angle)


class Turned:
    """An alignment whose orders are hard and whose rotations take gradients."""

    def __init__(self, start: Alignment, rotations: Mapping[str, Tensor]) -> None:
        self.graph, self.rotations = start.graph, rotations
        self.elements = {**start.elements, **rotations}

    def apply_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Move one tensor of the graph, given by its first name; differentiable."""
        return act_softly(find_node(self.graph, name, tensor), tensor, self.elements)

    def round(self) -> Alignment:
        """Return the alignment without what rounding left in its rotations."""
        groups = self.graph.groups
        exact = {n: best_of_kind(groups[n].kind, matrix.detach().double()) for n, matrix in self.rotations.items()}
        return Alignment(self.graph, {**self.elements, **exact})


FAINT = 1e-6
"""Weight of rotations that are known otherwise, beside a soft alignment. It counts where that says nothing: at the
centre it is 0."""


def rotations_at(problem: Problem, alignment: Alignment) -> dict[str, Tensor]:
    """Return the rotations of an alignment, or those nearest to the soft start of the problem at its places."""
    graph, soft = problem.graph, problem.soft_init
    rotations = {name: element for name, element in alignment.elements.items() if graph.rotates(name)}
    if soft is None:
        return rotations
    for name, element in rotations.items():
        matrices, parent = soft.matrices[name], graph.groups[name].parent
        if parent is not None:
            sources = alignment.flat(parent)
            matrices = matrices[torch.arange(len(sources)), sources].reshape(element.shape)
        rotations[name] = _nearest(graph, name, matrices, element)
    return rotations


def rotations_of_pairs(problem: Problem, alignment: Alignment) -> dict[str, Tensor]:
    """Return matrices of rotating groups, as in `SoftAlignment`, with a rotation for every pair of parents.

    They are those nearest to the soft start of the problem. Where there is none, it is that of the alignment for pairs
    that it puts together, and for others the best one by weights. At the centre, which is 0, nothing would tell how
    well they go together.
    """
    graph, matrices, soft = problem.graph, dict[str, Tensor](), problem.soft_init
    for root in graph.roots:
        names = [name for name in graph.tree(root) if graph.rotates(name)]
        if names == [root]:
            matrices[root] = alignment.elements[root]
        elif names:
            best = TreeObjective(problem.objective, root).best_pairs(alignment.elements)
            for name in names:
                parent = graph.groups[name].parent
                assert parent is not None, "only roots have none"
                own = alignment.elements[name].flatten(0, -3)
                best[name][torch.arange(len(own)), alignment.flat(parent)] = own
                matrices[name] = best[name]
    return (
        matrices if soft is None else {n: _nearest(graph, n, soft.matrices[n], known) for n, known in matrices.items()}
    )


def _nearest(graph: GraphStructure, group: str, soft: Tensor, known: Tensor) -> Tensor:
    """Return the rotations nearest to soft matrices, or those that are known where these say nothing."""
    return best_of_kind(graph.groups[group].kind, soft.to(known) + FAINT * known)
