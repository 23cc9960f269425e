"""Weight matching: coordinate ascent over groups, one linear assignment at a time ([Ainsworth23], Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import KINDS
from alignkit.matching.principal_axes import CanonicalForm
from alignkit.solver import IterativeOptions, Needs, Outcome, Problem, Report, Returns, Solver, Status, Step
from alignkit.solvers.coordinate_ascent import Ascent, colour_roots, shuffle_elements

ALIKE, FAR = 1e-2, 1e-3
"""Networks whose tensors differ by less than the first part of their squares may be copies, perhaps with noise. Those
whose distance is less than the second part of these are brought together already, as fine-tunes of one base are."""


class WeightMatchingOptions(IterativeOptions):
    """Options of weight matching; a step is one sweep over all groups."""

    rtol: float | None = Field(None, ge=0)
    """Stop when a sweep lowers the squared distance by less than this fraction. None: 1e-9, or 1e-5 where spaces
    rotate, whose last digits take most of the sweeps."""
    restarts: int = Field(0, ge=0)
    """Further runs, each in a random order of groups and from the best alignment so far with some units shuffled. The
    best run is kept."""
    shuffle: float = Field(0.3, gt=0, le=1)
    """Fraction of the units of each group that a restart shuffles."""
    patience: int = Field(20, ge=1)
    """Stop when this many restarts in a row found nothing better."""
    start: Literal["centre", "identity", "random"] = "centre"
    """Where the first run starts without ``init``. "centre" takes the groups that are not yet matched at the mean of
    all their orders, so the result does not depend on the order in which the units are stored."""
    products: Literal["auto", "float64", "float32"] = "auto"
    """Type in which similarities are multiplied. "auto" is float32 for large groups of weights of at most 32 bits, and
    float64 elsewhere. Steps are accepted by the objective in float64 either way."""


class WeightMatching(Solver[WeightMatchingOptions]):
    """Match one group of units at a time, all others fixed, until nothing changes.

    Coordinate ascent on ``<A, P # B>`` ([Ainsworth23], Algorithm 1), for any graph. A step is taken only when
    the true objective improves, so runs are monotone and end. The algorithm is `alignkit.solvers.coordinate_ascent`;
    this class adds where to start, and restarts. Networks whose tensors are equally large may be copies: where the
    first run does not bring them together, another one starts from their canonical forms.
    """

    name = "weight_matching"
    kinds = frozenset(KINDS)
    needs = Needs(in_memory=False)
    returns = Returns(exact_on_permuted_copies=True, monotone=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Run once, then restart; the best result is returned."""
        options = self.options
        ascent = self.ascent(problem)
        generator = problem.generator()
        classes = colour_roots(problem.graph)
        start: Mapping[str, Tensor | None] = problem.start.elements
        if problem.init is None and options.start == "centre":
            start = dict.fromkeys(problem.graph.groups)
        elif problem.init is None and options.start == "random":
            start = Alignment.random(problem.graph, int(torch.randint(2**31, (), generator=generator))).elements
        is_centre = any(element is None for element in start.values())
        unaligned = sum(problem.objective.unaligned.values())

        def sweep(step: Step) -> None:
            no_use = problem.init is None and step.objective > unaligned
            report(replace(step, alignment=None) if no_use else step)

        best = ascent.run(start, classes, sweep)
        if problem.init is None and best.distance > unaligned:
            # Nearly aligned networks can be left in a worse place than they were: start where they are.
            best = ascent.run(problem.start.elements, classes, sweep)
        if problem.init is None and best.distance > FAR * problem.objective.squares and may_be_copies(problem):
            run = ascent.run(between_forms(problem).elements, classes)
            if run.distance < best.distance:
                best = run
                report(Step(1, best.distance, "from canonical forms", Alignment(problem.graph, best.elements)))
        runs, idle = 1, 0
        while runs <= options.restarts and idle < options.patience and best.distance > ascent.negligible:
            if runs == 1 and not is_centre:
                start = dict.fromkeys(problem.graph.groups)
            else:
                start = shuffle_elements(problem.graph, best.elements, options.shuffle, generator)
            run = ascent.run(start, colour_roots(problem.graph, generator))
            idle = 0 if run.distance < best.distance - ascent.negligible else idle + 1
            if run.distance < best.distance:
                best = run
            share = (runs + 1) / (options.restarts + 1)
            note, alignment = f"restart {runs}/{options.restarts}", Alignment(problem.graph, best.elements)
            report(Step(runs, best.distance, note, alignment, share))
            runs += 1
        status = Status.OK if best.converged else Status.MAX_STEPS
        stats = {"runs": float(runs), "sweeps": float(len(best.steps))}
        return Outcome(Alignment._of_valid(problem.graph, best.elements), status, stats)

    def ascent(self, problem: Problem) -> Ascent:
        """Return the coordinate ascent that every run of a solve uses."""
        objective = problem.objective.with_products(self.options.products)
        return Ascent(objective, self.options.rtol, self.options.max_steps)


def may_be_copies(problem: Problem) -> bool:
    """Tell whether each tensor of B is as large as that of A, so that B may be a copy that no start led to."""
    if problem.bound.is_stored:
        return False
    sums = problem.objective.sums.values()
    return all(abs(each.squares_a - each.squares_b) <= ALIKE * (each.squares_a + each.squares_b) for each in sums)


def between_forms(problem: Problem) -> Alignment:
    """Return what brings the canonical form of B to that of A: where all of them are told, a copy to its original."""
    forms = (CanonicalForm.of(problem.graph, side, tolerance=0) for side in (problem.a, problem.b))
    to_a, to_b = (form.alignment for form in forms)
    return to_a.inverse() @ to_b
