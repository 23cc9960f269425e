"""Sinkhorn re-basin: gradient descent over doubly stochastic matrices ([Pena23])."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.errors import SolverError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import KINDS
from alignkit.matching.objective import divided
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.solver import Outcome, Problem, Report, Returns, Solver, Status, Step
from alignkit.solvers.gradient_search import HIGHEST_RATE, GradientOptions, falling, search
from alignkit.solvers.moving_alignment import Moved, MovingAlignment
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.tasks.goals import by_labels, by_outputs
from alignkit.tasks.path_loss import PathLoss

Kind = Literal["distance", "interpolation", "midpoint", "mixed", "outputs"]

MIDDLE = (0.5,)
LAMBDAS = {"midpoint": MIDDLE, "outputs": MIDDLE, "interpolation": (0.25, 0.5, 0.75), "mixed": (0.25, 0.5, 0.75)}
"""Lambdas at which alignments are scored."""
CONFIDENCE, SOFT_CONFIDENCE = 1.5, 4.0
"""Logits of what a start puts together. Soft starts know of second choices, and need not be as undecided: after 150
steps the mean barrier of 8 pairs of MNIST MLPs was 0.0063 with 4, and 0.0080 with 1.5. After 500 it was not lower."""
BATCH, SOFT_BATCH = 128, 512
"""Samples in a gradient step. The first steps from a soft start, which is good already, do harm where gradients are
noisy: on 12 pairs of MNIST MLPs that no table holds the mean barrier after 150 steps was 0.0113 with 128 samples and
0.0091 with 512."""
RATE = 0.2
"""Learning rate of logits where nothing rotates."""
ROUNDED = 1e-20
"""Squared distances below this part of the squares of both networks are rounding of rotations."""


class SinkhornOptions(GradientOptions):
    """Options of Sinkhorn re-basin; a step follows one gradient."""

    objective: Literal["auto", "distance", "interpolation", "midpoint", "mixed", "outputs"] = "auto"
    """What to minimise. "distance": squared distance of the weights. The others are losses of the task between A and
    aligned B: "interpolation" at a random lambda in every step, "midpoint" at lambda = 1/2, "mixed" each half of the
    time. "outputs" is without labels: how far outputs in the middle are from the mean of those of A and B. "auto":
    "midpoint" if there is a task, else "distance"."""
    distance_weight: float = Field(0.0, ge=0)
    """Adds this much of the squared distance, relative to the squared norms of A and B, to a loss of the task."""
    start: Literal["identity", "random", "weight_matching"] = "weight_matching"
    """Where to begin without ``init``."""
    max_steps: int = Field(300, ge=1)
    """Maximum number of gradient steps. Temperature and learning rate are planned for this many."""
    learning_rate: float | None = Field(None, gt=0, le=HIGHEST_RATE)
    """Learning rate of Adam on the logits; falls to 0 along half a cosine. None is 0.2; where units rotate it keeps the
    order of all others, and turns rotations alone."""
    turn_rate: float = Field(0.06, gt=0, le=1)
    """Angle in radians by which the first step turns units that rotate; falls to 0 along half a cosine."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the first step. Lower is closer to a permutation."""
    final_temperature: float = Field(0.3, gt=0)
    """Temperature of the last step, reached geometrically."""
    confidence: float | None = Field(None, gt=0)
    """Logit of the units that the start puts together; that of all others is 0. A soft start has logits of its own, and
    is softened where it is surer. None is 1.5, and 4 for a soft start."""
    scalings: int = Field(9, ge=1)
    """Maximum number of times that a step scales rows and columns, from the factors of the step before."""
    batch_size: int | None = Field(None, ge=1)
    """Samples of the task in a gradient step. None is 128, and 512 from a soft start."""
    check_every: int = Field(20, ge=1)
    """Steps between two roundings."""
    patience: int = Field(4, ge=1)
    """Stop when this many roundings in a row were no better than the best. A start that was given (``init``, or the
    end of the stage before in a chain) has to be improved on first."""


class Sinkhorn(Solver[SinkhornOptions]):
    """Descend on logits whose Sinkhorn projections are soft permutations; keep the best rounded one ([Pena23]).

    Each group has a matrix of logits, families one for each pair of parents. Gradients go through the Sinkhorn operator
    implicitly (`alignkit.matching.sinkhorn`). Units that may change their sign have logits for either sign, and those
    that rotate are turned within their group (`alignkit.matching.turning`). The soft alignment is rounded now and then;
    the result is the best of these alignments and the start, by the loss on fixed samples or by the squared distance.
    A soft alignment to start from gives the logits.
    """

    name = "sinkhorn"
    kinds = frozenset(KINDS)
    returns = Returns(soft=True, exact_on_permuted_copies=True, monotone=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Descend from the start; return the best rounded alignment."""
        options, graph = self.options, problem.graph
        if problem.init is not None or options.start == "identity":
            start = problem.start
        elif options.start == "random":
            start = Alignment.random(graph, problem.seed)
        else:
            start = WeightMatching().solve(problem, lambda step: None).alignment
        descent = self._descent(problem)
        score = descent.score(start)
        report(Step(0, score, "start", start))
        keeps_orders = options.learning_rate is None and any(map(graph.rotates, graph.groups))
        sure = options.confidence or (CONFIDENCE if problem.soft_init is None else SOFT_CONFIDENCE)
        moving = MovingAlignment(start, problem, None if keeps_orders else sure, options.scalings)
        if not moving.moves or problem.objective.distance2(start) <= ROUNDED * problem.objective.squares:
            return Outcome(
                start, Status.OK, {"steps": 0.0}, SoftAlignment.from_alignment(start).completed(problem.device)
            )
        logits = [] if moving.logits is None else [*moving.logits.stacks.values()]
        optimizer = torch.optim.Adam(logits) if logits else None

        def state(fraction: float) -> Moved:
            return moving.now(options.temperature * (options.final_temperature / options.temperature) ** fraction)

        def descend(fraction: float) -> tuple[Tensor, Moved]:
            now = state(fraction)
            loss = descent.loss(now)
            loss.backward()  # type: ignore[no-untyped-call]
            if optimizer is not None:
                optimizer.param_groups[0]["lr"] = falling(options.learning_rate or RATE, fraction)
                optimizer.step()
                optimizer.zero_grad()
            moving.turn(falling(options.turn_rate, fraction))
            return loss, now

        begin, given = (start, score, state(0.0)), problem.init is not None
        end = search(begin, descend, lambda now: now.round(), descent.score, options, report, given=given)
        soft = end.state if isinstance(end.state, SoftAlignment) else SoftAlignment.from_alignment(end.best)
        return Outcome(end.best, end.status, {"steps": float(end.steps)}, soft.completed(problem.device))

    def objective(self, problem: Problem, alignment: Alignment) -> float:
        """Return the squared distance, or the loss on the samples by which alignments are compared."""
        return self._descent(problem).score(alignment)

    def _descent(self, problem: Problem) -> Descent:
        options = self.options
        kind = options.objective
        if kind == "auto":
            kind = "distance" if problem.task is None else "midpoint"
        if kind == "distance":
            return Descent(problem, kind, None, 1.0)
        if problem.task is None:
            task = "pass task=alignkit.Task(model, batches, loss)"
            raise SolverError(f"objective={kind!r} works with data: {task}, or take objective='distance'.")
        goal = by_outputs if kind == "outputs" else by_labels
        counts = options.sample_counts(BATCH if problem.soft_init is None else SOFT_BATCH)
        path = PathLoss(problem.task, problem.bound, LAMBDAS[kind], problem.generator(), counts, goal)
        return Descent(problem, kind, path, options.distance_weight)


@dataclass
class Descent:
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

    def loss(self, soft: Moved) -> Tensor:
        """Return what a gradient step descends on."""
        if self.path is None:
            return self.distance(soft)
        moved = {**self.path.b, **{name: soft.apply_tensor(name, b) for name, b in self.b.items()}}
        batch = self.path.minibatches.draw()
        drawn, coin = torch.rand(2, generator=self.generator).tolist()
        is_middle = self.kind in ("midpoint", "outputs") or (self.kind == "mixed" and coin < 0.5)
        share = 0.5 if is_middle else 1 - drawn
        loss = self.path.on(batch)(share, self.path.between(moved, share))
        return loss + self.distance_weight * self.distance(soft).to(loss.device) if self.distance_weight else loss

    def distance(self, soft: Moved) -> Tensor:
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
