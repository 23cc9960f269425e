"""A solution is what was accounted for: solvers, observers and callers that write later change nothing."""

from __future__ import annotations

import pickle

import pytest
import torch

from alignkit import Alignment, Outcome, SoftAlignment, Solver, Step, hookimpl
from alignkit.errors import SolverError
from alignkit.jobs.solve import solve
from alignkit.plugins import Registry
from alignkit.testing import mlp, planted_pair

FIELDS = ("options", "gain", "moved", "stats", "notes")


class Keeping(Solver):
    """Returns an outcome and keeps hold of everything in it."""

    name = "keeping"

    def solve(self, problem, report):
        report(Step(1, 1.0))
        self.alignment = Alignment.random(problem.graph, 1)
        self.stats, self.notes = {"runs": 1.0}, {"weights": "mine"}
        self.soft = SoftAlignment.from_alignment(self.alignment)
        return Outcome(self.alignment, stats=self.stats, soft=self.soft, notes=self.notes)


class Vandal:
    """Writes to everything that an observer is given."""

    @hookimpl
    def alignkit_solve_finished(self, problem, solver, solution):
        vandalise(solution)


def vandalise(solution):
    """Write to every part of a solution that can be reached without underscores; what refuses may."""
    for element in solution.alignment.elements.values():
        element.zero_()
        element.numpy()[...] = 0
    for matrix in solution.soft.matrices.values() if solution.soft else ():
        matrix.fill_(9)
    for name in FIELDS:
        with pytest.raises(AttributeError):
            getattr(solution, name).clear()
        with pytest.raises(TypeError):
            getattr(solution, name)["runs"] = 0
        with pytest.raises(AttributeError):
            setattr(solution, name, {})


def snapshot(solution):
    parts = {name: dict(getattr(solution, name)) for name in FIELDS}
    soft = {n: m.tolist() for n, m in solution.soft.matrices.items()} if solution.soft else None
    elements = {n: e.tolist() for n, e in solution.alignment.elements.items()}
    return parts, elements, soft, solution.history, solution.objective_after


def test_what_an_observer_writes_does_not_reach_the_caller():
    pair = planted_pair(mlp(3, 5, 2)).bind()
    registry = Registry([])
    registry.register(Vandal())
    assert snapshot(solve(pair, solver=Keeping, registry=registry)) == snapshot(
        solve(pair, solver=Keeping, registry=Registry([]))
    )


def test_what_a_solver_keeps_is_not_what_the_caller_has(tmp_path):
    solver = Keeping()
    solution = solve(planted_pair(mlp(3, 5, 2)).bind(), solver=solver, registry=Registry([]))
    before = snapshot(solution)
    solver.stats.clear()
    solver.notes["weights"] = object()
    for mapping in (solver.alignment.elements, solver.soft.matrices):
        for tensor in mapping.values():
            tensor.zero_()
    vandalise(solution)
    assert snapshot(solution) == before
    solution.save(tmp_path / "s.safetensors")
    assert snapshot(type(solution).load(tmp_path / "s.safetensors", solution.graph)) == before
    assert snapshot(pickle.loads(pickle.dumps(solution))) == before


class Shifting(Alignment):
    """Changes its elements every time that it is asked."""

    turn = 0

    @property
    def elements(self):
        self.turn += 1
        return Alignment.random(self.graph, self.turn).elements


def test_an_alignment_of_a_class_of_its_own_is_fixed_when_it_is_accounted_for():
    made = type("Made", (Solver,), {"name": "made", "solve": lambda s, p, r: Outcome(Shifting.identity(p.graph))})
    pair = planted_pair(mlp(3, 5, 2)).bind()
    solution = solve(pair, solver=made, registry=Registry([]))
    assert type(solution.alignment) is Alignment
    moved = solution.apply(dict(pair.b))
    distance = sum(float((pair.a[n].double() - moved[n].double()).square().sum()) for n in pair.a)
    assert solution.objective_after == pytest.approx(distance)


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(
    "write",
    [
        lambda tensors: tensors.clear(),
        lambda tensors: tensors.update({"0.weight": torch.zeros(5, 3)}),
        lambda tensors: tensors.__setitem__("0.weight", torch.zeros(5, 3)),
        lambda tensors: tensors.pop("0.weight"),
    ],
)
def test_a_solver_cannot_empty_or_exchange_what_it_is_given(side, write):
    def solving(self, problem, report):
        write(getattr(problem, side))
        return Outcome(problem.start)

    made = type("Made", (Solver,), {"name": "made", "solve": solving})
    with pytest.raises(SolverError, match="'made' failed"):
        solve(planted_pair(mlp(3, 5, 2)).bind(), solver=made, registry=Registry([]))
