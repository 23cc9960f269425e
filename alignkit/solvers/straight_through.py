"""Straight-through matching: gradients of the task's loss move free weights, which choose the order ([Ainsworth23])."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.graph import Pair
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import KINDS
from alignkit.matching.objective import Objective
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.solver import Needs, Outcome, Problem, Report, Returns, Solver, Status, Step
from alignkit.solvers.coordinate_ascent import Ascent, colour_roots
from alignkit.solvers.gradient_search import HIGHEST_RATE, GradientOptions, falling, search
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.tasks.goals import by_labels, by_outputs
from alignkit.tasks.line import Line
from alignkit.tasks.path_loss import PathLoss

MIDDLE = (0.5,)
MOMENTUM, MEMORY = 0.9, 0.999
"""Shares that stay of earlier gradients and of their mean squares, as in Adam."""
NEGLIGIBLE = 1e-4
"""Gradients below this fraction of the first root mean square barely move a weight. Adam brings all others to one size,
and without a limit it would do so with rounding errors where the loss does not depend on a weight (biases of keys)."""
BATCH = 256
"""Samples in a gradient step."""


class StraightThroughOptions(GradientOptions):
    """Options of straight-through matching; a step follows one gradient."""

    objective: Literal["midpoint", "outputs"] = "midpoint"
    """What to minimise in the middle: the loss of the task, or, without labels, how far outputs are from the mean of
    those of A and B."""
    max_steps: int = Field(200, ge=1)
    """Maximum number of gradient steps. The learning rate is planned for this many."""
    learning_rate: float = Field(3e-3, gt=0, le=HIGHEST_RATE)
    """Learning rate of Adam on the free weights; falls to 0 along half a cosine."""
    projection_sweeps: int = Field(2, ge=1)
    """Maximum number of sweeps of coordinate ascent in a projection, from the order of the step before."""


class StraightThrough(Solver[StraightThroughOptions]):
    """Learn free weights whose nearest reordering of B is good in the middle of the line to A ([Ainsworth23], 3.3).

    Forward, the free weights are projected to the nearest ``P # B`` by the oracle of each kind of group (linear
    assignments, polar factors), and the loss is that of ``(A + P # B) / 2``. Backward, the projection counts as the
    identity. The result is the best alignment met, the start among them, by the loss in the middle on fixed samples.
    From a soft alignment ``S`` the free weights begin at ``(A + S # B) / 2``.
    """

    name = "straight_through"
    kinds = frozenset(KINDS)
    needs = Needs(task=True)
    returns = Returns(exact_on_permuted_copies=True, monotone=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Learn from the start, by default that of weight matching; return the best alignment."""
        path = self._path(problem)
        start = WeightMatching().solve(problem, lambda step: None).alignment if problem.init is None else problem.start
        score = path.score(start)
        report(Step(0, score, "start", start))
        if not problem.graph.groups or problem.objective.distance2(start) == 0:
            return Outcome(start, Status.OK, {"steps": 0.0})
        free = FreeWeights(problem, start, self.options)

        def descend(fraction: float) -> tuple[Tensor, Alignment]:
            current = free.project()
            middle = {n: t.requires_grad_(t.is_floating_point()) for n, t in free.middle(current).items()}
            loss = path.on(path.minibatches.draw())(*MIDDLE, path.named(middle))
            free.step(loss, middle, fraction)
            return loss.cpu(), current  # the next projection needs finite weights, and waits for the device anyway

        begin, given = (start, score, start), problem.init is not None
        end = search(begin, descend, lambda same: same, path.score, self.options, report, given=given)
        return Outcome(end.best, end.status, {"steps": float(end.steps)})

    def objective(self, problem: Problem, alignment: Alignment) -> float:
        """Return the loss in the middle between A and aligned B, on the samples by which alignments are compared."""
        return self._path(problem).score(alignment)

    def _path(self, problem: Problem) -> PathLoss:
        assert problem.task is not None, "needs.check asked for a task"
        goal = by_outputs if self.options.objective == "outputs" else by_labels
        counts = self.options.sample_counts(BATCH)
        return PathLoss(problem.task, problem.bound, MIDDLE, problem.generator(), counts, goal)


class IsotropicAdam:
    """Adam with one step size for all entries of a tensor: steps do not depend on the axes that it is given in."""

    def __init__(self, like: Tensor) -> None:
        self._slope = torch.zeros_like(like)
        self._square = like.new_zeros(())
        self._steps = 0

    def direction(self, gradient: Tensor, least: float) -> Tensor:
        """Return a step to take the negative of, whose entries are of size 1 while gradients point one way.

        Gradients whose entries are far below ``least`` make small steps.
        """
        self._steps += 1
        self._slope.lerp_(gradient, 1 - MOMENTUM)
        self._square.lerp_(gradient.square().mean(), 1 - MEMORY)
        size = (self._square / (1 - MEMORY**self._steps)).sqrt() + least
        return self._slope / torch.where(size > 0, size * (1 - MOMENTUM**self._steps), 1.0)


class FreeWeights:
    """The weights that gradients move, and their projection to reorderings of B.

    They begin halfway between A and the start: near enough to other reorderings to choose among them. Tensors that
    rotate are moved by Adam with one step size for each, whose steps do not depend on axes.
    """

    def __init__(self, problem: Problem, start: Alignment, options: StraightThroughOptions) -> None:
        self.graph, self.device, self.options, self.current = problem.graph, problem.device, options, start

        def move(tensor: Tensor) -> Tensor:
            return tensor.detach().to(problem.device, problem.dtype if tensor.is_floating_point() else tensor.dtype)

        self.a, self.b = ({name: move(tensor) for name, tensor in side.items()} for side in (problem.a, problem.b))
        soft = None if problem.soft_init is None else problem.soft_init.completed(problem.device, problem.dtype)
        self.weights = self.middle(start if soft is None else soft)
        self.moving = {n: t for n, t in self.weights.items() if t.is_floating_point()}
        rotated = {n for n in self.moving if any(map(self.graph.rotates, self.graph.tensors[n].groups))}
        self.isotropic = {name: IsotropicAdam(self.moving[name]) for name in rotated}
        entries = [tensor for name, tensor in self.moving.items() if name not in rotated]
        self.optimizer = torch.optim.Adam([*entries, torch.zeros(0)])
        self.least = 0.0
        self.classes = colour_roots(self.graph)

    def middle(self, alignment: Alignment | SoftAlignment) -> dict[str, Tensor]:
        """Return new tensors ``(A + P # B) / 2`` by first name; what is not floating-point is A's."""
        return Line(self.a, {name: alignment.apply_tensor(name, tensor) for name, tensor in self.b.items()}).at(0.5)

    def project(self) -> Alignment:
        """Find the reordering of B nearest to the free weights, by coordinate ascent from the last one."""
        objective = Objective(Pair(self.graph, self.weights, self.b), self.device)
        run = Ascent(objective, 0.0, self.options.projection_sweeps).run(self.current.elements, self.classes)
        self.current = Alignment(self.graph, run.elements)
        return self.current

    def step(self, loss: Tensor, middle: Mapping[str, Tensor], fraction: float) -> None:
        """Move the free weights by the gradient at the middle, as if the projection were the identity."""
        names = list(self.moving)
        gradients = torch.autograd.grad(loss, [middle[n] for n in names], allow_unused=True)
        known = {n: 0.5 * gradient for n, gradient in zip(names, gradients, strict=True) if gradient is not None}
        if not self.least:
            total = sum((g.square().sum(dtype=torch.float64) for g in known.values()), torch.zeros(()))
            root_mean_square = math.sqrt(float(total) / max(1, sum(g.numel() for g in known.values())))
            self.least = 2 * NEGLIGIBLE * max(root_mean_square, 1e-30)
        rate = falling(self.options.learning_rate, fraction)
        for name, tensor in self.moving.items():
            if name not in self.isotropic:
                tensor.grad = known.get(name)
            elif name in known:
                step = self.isotropic[name].direction(known[name], self.least)
                tensor.sub_(step, alpha=rate)
        self.optimizer.param_groups[0].update(lr=rate, eps=self.least)
        self.optimizer.step()
