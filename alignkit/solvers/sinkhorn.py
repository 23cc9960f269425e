"""Sinkhorn re-basin: gradient descent over doubly stochastic matrices ([Pena23])."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.errors import SolverError
from alignkit.graph.elements.alignment import Alignment
from alignkit.matching.objective import divided
from alignkit.matching.sinkhorn import Potentials, doubly_stochastic, plan, potentials
from alignkit.matching.soft_alignment import ProjectedAlignment, SoftAlignment
from alignkit.solver import Outcome, Problem, Report, Returns, Solver, Status, Step
from alignkit.solvers.gradient_search import GradientOptions, search
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.tasks.path_loss import PathLoss

Kind = Literal["distance", "interpolation", "midpoint", "mixed"]

LAMBDAS = {"midpoint": (0.5,), "interpolation": (0.25, 0.5, 0.75), "mixed": (0.25, 0.5, 0.75)}
"""Lambdas at which alignments are scored."""
GRADIENT_STEPS = 4
"""Steps of the linear solver behind a gradient. More made no difference to the results on MNIST MLPs."""


class SinkhornOptions(GradientOptions):
    """Options of Sinkhorn re-basin; a step follows one gradient."""

    objective: Literal["auto", "distance", "interpolation", "midpoint", "mixed"] = "auto"
    """What to minimise. "distance": squared distance of the weights. The others are losses of the task between A and
    aligned B: "interpolation" at a random lambda in every step, "midpoint" at lambda = 1/2, "mixed" each half of the
    time. "auto": "midpoint" if there is a task, else "distance"."""
    distance_weight: float = Field(0.0, ge=0)
    """Adds this much of the squared distance, relative to the squared norms of A and B, to a loss of the task."""
    start: Literal["identity", "random", "weight_matching"] = "weight_matching"
    """Where to begin without ``init``."""
    max_steps: int = Field(300, ge=1)
    """Maximum number of gradient steps. Temperature and learning rate are planned for this many."""
    learning_rate: float = Field(0.2, gt=0)
    """Learning rate of Adam on the logits; falls to 0 along half a cosine."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the first step. Lower is closer to a permutation."""
    final_temperature: float = Field(0.3, gt=0)
    """Temperature of the last step, reached geometrically."""
    confidence: float = Field(1.5, gt=0)
    """Logit of the units that the start puts together; that of all others is 0."""
    scalings: int = Field(9, ge=1)
    """Maximum number of times that a step scales rows and columns, from the factors of the step before."""
    batch_size: int = Field(128, ge=1)
    """Samples of the task in a gradient step."""
    check_every: int = Field(20, ge=1)
    """Steps between two roundings."""
    patience: int = Field(4, ge=1)
    """Stop when this many roundings in a row were no better than the best."""


class Sinkhorn(Solver[SinkhornOptions]):
    """Descend on logits whose Sinkhorn projections are soft permutations; keep the best rounded one ([Pena23]).

    Each group has a matrix of logits, families one for each pair of parents. Gradients go through the Sinkhorn operator
    implicitly (`alignkit.matching.sinkhorn`). The soft alignment is rounded now and then; the result is the best
    of these alignments and the start, by the loss on fixed samples or by the squared distance.
    """

    name = "sinkhorn"
    returns = Returns(soft=True, exact_on_permuted_copies=True, monotone=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Descend from the start; return the best rounded alignment."""
        options = self.options
        if problem.init is not None or options.start == "identity":
            start = problem.start
        elif options.start == "random":
            start = Alignment.random(problem.graph, problem.seed)
        else:
            start = WeightMatching().solve(problem, lambda step: None).alignment
        goal = self._goal(problem)
        score = goal.score(start)
        report(Step(0, score, "start", start))
        logits = Logits(start, problem, options)
        if not logits.stacks or problem.objective.distance2(start) == 0:
            hard = {n: m.to(problem.device) for n, m in SoftAlignment.from_alignment(start).matrices.items()}
            return Outcome(start, Status.OK, {"steps": 0.0}, SoftAlignment(problem.graph, hard))
        optimizer = torch.optim.Adam(list(logits.stacks.values()), lr=options.learning_rate)

        def descend(fraction: float) -> tuple[Tensor, SoftAlignment]:
            soft = logits.soft(fraction)
            loss = goal.loss(soft)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.param_groups[0]["lr"] = options.rate(fraction)
            optimizer.step()
            return loss, soft

        end = search((start, score, logits.soft(0.0)), descend, SoftAlignment.round, goal.score, options, report)
        matrices = {n: doubly_stochastic(m.detach().double()).to(m.dtype) for n, m in end.state.matrices.items()}
        soft = SoftAlignment(problem.graph, matrices)
        return Outcome(end.best, end.status, {"steps": float(end.steps)}, soft)

    def objective(self, problem: Problem, alignment: Alignment) -> float:
        """Return the squared distance, or the loss on the samples by which alignments are compared."""
        return self._goal(problem).score(alignment)

    def _goal(self, problem: Problem) -> Goal:
        options = self.options
        kind = options.objective
        if kind == "auto":
            kind = "distance" if problem.task is None else "midpoint"
        if kind == "distance":
            return Goal(problem, kind, None, 1.0)
        if problem.task is None:
            task = "pass task=alignkit.Task(model, batches, loss)"
            raise SolverError(f"objective={kind!r} works with data: {task}, or take objective='distance'.")
        path = PathLoss(problem.task, problem.bound, LAMBDAS[kind], problem.generator(), options.sample_counts)
        return Goal(problem, kind, path, options.distance_weight)


class Logits:
    """Logits of every group, stacked by shape to be projected together; they round to ``start`` at first."""

    def __init__(self, start: Alignment, problem: Problem, options: SinkhornOptions) -> None:
        self.graph, self.options = start.graph, options
        matrices = SoftAlignment.from_alignment(start).matrices
        self.names: dict[torch.Size, list[str]] = {}
        for name, matrix in matrices.items():
            if matrix.shape[-1] > 1:
                self.names.setdefault(matrix.shape, []).append(name)
        device, dtype = problem.device, problem.dtype
        self.single = {n: matrix.to(device, dtype) for n, matrix in matrices.items() if matrix.shape[-1] == 1}
        self.stacks: dict[torch.Size, Tensor] = {}
        for shape, names in self.names.items():
            stack = options.confidence * torch.stack([matrices[name] for name in names])
            self.stacks[shape] = stack.to(device, dtype).requires_grad_()
        self._scalings: dict[torch.Size, Potentials] = {}

    def soft(self, fraction: float) -> SoftAlignment:
        """Project to doubly stochastic matrices, at the temperature after a fraction of the steps; differentiable."""
        options = self.options
        temperature = options.temperature * (options.final_temperature / options.temperature) ** fraction
        matrices = dict(self.single)
        for shape, stack in self.stacks.items():
            logits = stack / temperature
            scaling = potentials(logits, self._scalings.get(shape), max_scalings=options.scalings)
            self._scalings[shape] = scaling
            projected = plan(logits, scaling, gradient_steps=GRADIENT_STEPS)
            matrices.update(zip(self.names[shape], projected.unbind(0), strict=True))
        # Row sums may be off while scalings are few; what is returned to the user is completed.
        return ProjectedAlignment(self.graph, matrices)


@dataclass
class Goal:
    """Objective of one solve: a loss for gradients and a score for alignments; without a path, the distance."""

    problem: Problem
    kind: Kind
    path: PathLoss | None
    distance_weight: float

    def __post_init__(self) -> None:
        problem, tensors = self.problem, self.problem.graph.tensors
        moved = [name for name, node in tensors.items() if node.groups and problem.b[name].is_floating_point()]
        self.scale = problem.objective.scale
        self.a = {n: divided(problem.a[n].detach().to(problem.device), self.scale, problem.dtype) for n in moved}
        self.b = {name: problem.b[name].detach().to(problem.device, problem.dtype) for name in moved}
        self.squares = max(problem.objective.squares, 1e-300)
        self.generator = problem.generator()

    def loss(self, soft: SoftAlignment) -> Tensor:
        """Return what a gradient step descends on."""
        if self.path is None:
            return self.distance(soft)
        moved = {**self.path.b, **{name: soft.apply_tensor(name, b) for name, b in self.b.items()}}
        batch = self.path.minibatches.draw()
        drawn, coin = torch.rand(2, generator=self.generator).tolist()
        is_middle = self.kind == "midpoint" or (self.kind == "mixed" and coin < 0.5)
        loss = self.path.task.loss_on(self.path.between(moved, 0.5 if is_middle else 1 - drawn), batch)
        return loss + self.distance_weight * self.distance(soft).to(loss.device) if self.distance_weight else loss

    def distance(self, soft: SoftAlignment) -> Tensor:
        """Return ``(|A|^2 + |B|^2 - 2 <A, S # B>) / (|A|^2 + |B|^2)``: the squared distance wherever ``S`` is hard.

        It is linear in each matrix, so that, unlike ``||A - S # B||^2``, it is not lowered by averaging units, and
        aligning A to B is the same problem as aligning B to A.
        """
        inner = torch.zeros((), dtype=torch.float64, device=self.problem.device)
        for name, a in self.a.items():
            b = soft.apply_tensor(name, self.b[name]) / self.scale
            inner = inner + (a * b).sum(dtype=torch.float64)
        return 1 - 2 * (self.scale**2 * inner + self.problem.objective.fixed_value) / self.squares

    def score(self, alignment: Alignment) -> float:
        """Return what alignments are compared by; the squared distance itself where there is no task."""
        distance = self.problem.objective.distance2
        if self.path is None:
            return float(distance(alignment))
        score = self.path.score(alignment)
        return score + self.distance_weight * distance(alignment) / self.squares if self.distance_weight else score
