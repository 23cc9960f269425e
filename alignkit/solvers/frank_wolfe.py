"""Frank-Wolfe: ascent over products of doubly stochastic matrices, all groups at once ([Crisostomi24], Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from numpy.polynomial import Polynomial
from pydantic import Field
from torch import Tensor

from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import KINDS
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.matching.canonical_order import Frame
from alignkit.matching.families import best_element
from alignkit.matching.hulls import random_inside
from alignkit.matching.objective import Objective
from alignkit.matching.relaxation import Point, Relaxation, best_step
from alignkit.matching.sinkhorn import sinkhorn
from alignkit.matching.soft_alignment import SoftAlignment, matrix_shape
from alignkit.solver import IterativeOptions, Needs, Outcome, Problem, Report, Returns, Solver, Status, Step
from alignkit.solvers.coordinate_ascent import Ascent, colour_roots, shuffle_elements

_MATRICES = 8
"""Square matrices for each group that are alive at once."""


class FrankWolfeOptions(IterativeOptions):
    """Options of Frank-Wolfe; a step moves all groups along one line."""

    start: Literal["centre", "identity", "random"] = "centre"
    """Where the first run starts without ``init``: the centre of all orders, the identity, or a random matrix scaled to
    be doubly stochastic. With ``init`` it starts half-way between ``init`` and the centre, and at a soft alignment as
    it is."""
    restarts: int = Field(0, ge=0)
    """Further runs, each half-way between a random doubly stochastic matrix and the best alignment so far with some
    units shuffled; the shuffled alignment itself competes too. The best is kept."""
    shuffle: float = Field(0.3, gt=0, le=1)
    """Fraction of the units of each group that a restart shuffles."""
    concavity: float = Field(0.05, ge=0, le=1e6)
    """Weight of the term ``-|P|^2``, in units of what a pair of units of ordinary size contributes, at the start of the
    first run. It keeps matrices soft until most of the order is settled. 0 is the method of [Crisostomi24]. Far above 1
    the networks have no say any more."""
    stages: int = Field(10, ge=1)
    """Stages in which that weight falls to 0, in equal steps."""
    stage_steps: int = Field(5, ge=1)
    """Steps of each stage but the last, which ends by ``rtol`` or ``max_steps``."""
    rtol: float = Field(1e-5, ge=0)
    """Stop when the objective can rise by less than this fraction to first order."""
    max_steps: int = Field(150, ge=1)
    """Maximum number of steps of one run."""
    polish: bool = True
    """Follow each rounding by weight matching, and let weight matching alone compete."""


class FrankWolfe(Solver[FrankWolfeOptions]):
    """Move all groups at once towards their best assignments, as far as the objective rises along the line.

    Frank-Wolfe on ``<A, P # B>`` over doubly stochastic ``P`` ([Crisostomi24]), for any graph; trees of families move
    in the convex hull of their elements. The step is exact: along a line the objective is a polynomial. A concave term
    that fades out stage by stage keeps early steps from settling: one half of the path of Liu and Qiao, "GNCCP:
    Graduated NonConvexity and Concavity Procedure", 2014. Each end is rounded by linear assignment and polished by
    weight matching; the best, never worse than ``init``, is kept. Runs are made in a canonical order of units
    (`alignkit.matching.canonical_order`), so the order in which they are stored is irrelevant.
    """

    name = "frank_wolfe"
    kinds = frozenset(KINDS)
    needs = Needs(in_memory=False)
    returns = Returns(exact_on_permuted_copies=True, monotone=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Run from every start; the best rounded alignment is returned."""
        options = self.options
        frame = Frame.of(problem.bound)
        graph = problem.graph
        relaxation = Relaxation(frame.bound, problem.device, problem.dtype, problem.objective.scale)
        unaligned = sum(problem.objective.unaligned.values())

        def note(step: Step, elements: Mapping[str, Tensor]) -> None:
            no_use = problem.init is None and step.objective > unaligned
            report(step if no_use else replace(step, alignment=frame.leave(Alignment(graph, elements))))

        best = _Best(Objective(frame.bound, problem.device), options, note)
        if problem.init is not None:
            best.offer(frame.enter(problem.init).elements, "init")
        elif not options.polish:
            best.offer(frame.enter(problem.start).elements, "identity")
        if options.polish:
            best.offer(dict.fromkeys(graph.groups), "weight matching")
            if problem.init is None and best.distance > unaligned:
                best.offer(frame.enter(problem.start).elements, "identity")
        generator = problem.generator()
        steps, converged = 0, True
        for run in range(options.restarts + 1):
            if not graph.groups or best.distance <= best.ascent.negligible:
                break
            if run:
                shuffled = shuffle_elements(graph, best.elements, options.shuffle, generator)
                best.offer(shuffled, f"shuffle {run}/{options.restarts}", run / (options.restarts + 1))
                inner = relaxation.point(random_point(graph, generator))
                start = relaxation.between(inner, relaxation.corner(shuffled), 0.5)
            else:
                start = self._start(relaxation, problem, frame)
            end, made, settled = ascend(relaxation, start, options, 0.0 if run else options.concavity)
            steps, converged = steps + made, converged and settled
            done, of = run + 1, options.restarts + 1
            best.offer(best_element(graph, end.masses), f"run {done}/{of}", done / of)
        status = Status.OK if converged else Status.MAX_STEPS
        return Outcome(frame.leave(Alignment(graph, best.elements)), status, {"steps": float(steps)})

    def memory(self, graph: SymmetryGraph) -> int:
        """Return the bytes of masses, matrices, gradients and corners of all groups, in float64 at most."""
        constant = sum(graph.unit_count(name) ** 2 for name, uses in graph.uses.items() for u in uses if not u.others)
        return 8 * (_MATRICES * sum(graph.unit_count(name) ** 2 for name in graph.groups) + constant)

    def _start(self, relaxation: Relaxation, problem: Problem, frame: Frame) -> Point:
        """Return where the first run starts."""
        if problem.soft_init is not None:
            return relaxation.point(frame.enter_softly(problem.soft_init))
        if problem.init is None and self.options.start == "random":
            return relaxation.point(random_point(problem.graph, problem.generator()))
        if problem.init is None and self.options.start == "identity":
            return relaxation.point(SoftAlignment.from_alignment(frame.enter(problem.start)))
        centre = relaxation.point(SoftAlignment.centre(problem.graph))
        if problem.init is None:
            return centre
        return relaxation.between(centre, relaxation.corner(frame.enter(problem.init).elements), 0.5)


def random_point(graph: SymmetryGraph, generator: torch.Generator) -> SoftAlignment:
    """Draw uniform random matrices, and scale them to be doubly stochastic; of other kinds, points of their hulls."""
    matrices = {}
    for name, group in graph.groups.items():
        if group.kind != "permutation":
            matrices[name] = random_inside(group.kind, matrix_shape(graph, name), generator)
            continue
        drawn = torch.rand(matrix_shape(graph, name), generator=generator, dtype=torch.float64)
        matrices[name] = sinkhorn(drawn.clamp_min(1e-6).log())
    return SoftAlignment(graph, matrices)


def ascend(
    relaxation: Relaxation, start: Point, options: FrankWolfeOptions, concavity: float = 0.0
) -> tuple[Point, int, bool]:
    """Run Frank-Wolfe, with a fading concave term; return its end, the number of steps, and whether it converged."""
    point, steps = start, 0
    stages = options.stages if concavity else 0
    for stage in range(stages + 1):
        weight = concavity * (1 - stage / stages) if stages else 0.0
        budget = options.max_steps - steps if stage == stages else options.stage_steps
        for _ in range(min(budget, options.max_steps - steps)):
            moved = _step(relaxation, point, weight, options.rtol)
            if moved is None:
                if stage == stages:
                    return point, steps, True
                break
            point, steps = moved, steps + 1
    return point, steps, False


def _step(relaxation: Relaxation, point: Point, weight: float, rtol: float) -> Point | None:
    """Make one step; return None when no direction gains.

    The objective is ``<A, P # B> - sum_g weight_g |P_g|^2``, and the corner of the step is the element that its
    gradient, ``derivative_g - 2 weight_g P_g``, favours most.
    """
    gradient = relaxation.gradient(point)
    weights = {name: weight * scale for name, scale in relaxation.scales.items()}
    slopes = {n: g - 2 * weights[n] * point.masses[n] for n, g in gradient.groups.items()}
    elements = best_element(relaxation.graph, slopes)
    corner = relaxation.corner(elements)
    on_device = {name: element.to(relaxation.device) for name, element in elements.items()}  # for every tensor
    line = relaxation.along(point, corner, on_device, gradient)
    parabolas = []
    for name, term_weight in weights.items():
        if term_weight:  # |P_g|^2 is a parabola of the step
            start = point.masses[name]
            across = corner[name] - start
            terms = (start.square(), 2 * start * across, across.square())
            parabolas.append(term_weight * torch.stack([term.sum(dtype=torch.float64) for term in terms]))
    if parabolas:
        line -= Polynomial(torch.stack(parabolas).sum(0).cpu().tolist())
    if float(line.deriv()(0.0)) <= rtol * abs(gradient.value):
        return None
    step = best_step(line)
    return relaxation.between(point, corner, step) if step > 0 else None


@dataclass
class _Best:
    """The best alignment so far, polished when asked."""

    objective: Objective
    options: FrankWolfeOptions
    report: Callable[[Step, Mapping[str, Tensor]], None]
    elements: dict[str, Tensor] = field(default_factory=dict)
    distance: float = float("inf")
    offers: int = 0

    def __post_init__(self) -> None:
        self.ascent, self.classes = Ascent(self.objective), colour_roots(self.objective.graph)

    def offer(self, elements: Mapping[str, Tensor | None], note: str, share: float | None = None) -> None:
        """Polish an alignment and keep it if it is the best; report how far the best is, and the share of the runs."""
        if self.options.polish:
            run = self.ascent.run(elements, self.classes)
            offered, distance = run.elements, run.distance
        else:
            offered = {name: element for name, element in elements.items() if element is not None}
            distance = self.objective.distance2(Alignment(self.objective.graph, offered))
        if not self.elements or distance < self.distance:
            self.elements, self.distance = offered, max(distance, 0.0)
        self.report(Step(self.offers, self.distance, note, share=share), self.elements)
        self.offers += 1
