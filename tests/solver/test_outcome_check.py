"""Solvers that break their contract at run time: always a `SolverError` that says what they did."""

from __future__ import annotations

import warnings

import pytest
import torch

from alignkit import Alignment, Outcome, SoftAlignment, Solver, Status, Step, hookimpl
from alignkit.errors import PluginError, SolverError
from alignkit.jobs.solve import solve
from alignkit.plugins import PluginWarning, Registry
from alignkit.testing import mlp, planted_pair

OTHER = mlp(3, 6, 2).graph()


class Unchecked(Alignment):
    """An alignment of a class of its own, which sends every unit to place 0."""

    elements = property(lambda self: {name: element * 0 for name, element in super().elements.items()})


def overwritten(problem):
    problem.b["2.bias"].add_(1)
    return Outcome(problem.start)


RUBBISH = {
    "None": (lambda p, r: None, "found NoneType"),
    "an alignment": (lambda p, r: p.start, "Expected an Outcome that holds an Alignment, found Alignment"),
    "a class": (lambda p, r: Outcome, "found type"),
    "a generator": (lambda p, r: (x for x in "ab"), "found generator"),
    "indices": (lambda p, r: Outcome(dict(p.start.elements)), "found dict"),
    "a soft alignment": (lambda p, r: Outcome(SoftAlignment.centre(p.graph)), "found SoftAlignment"),
    "another graph": (lambda p, r: Outcome(Alignment.identity(OTHER)), "belongs to another graph"),
    "no permutation": (
        lambda p, r: Outcome(Unchecked.identity(p.graph)),
        "not an element of the symmetry group",
    ),
    "status text": (lambda p, r: Outcome(p.start, "ok"), "status is 'ok', not a Status"),
    "status None": (lambda p, r: Outcome(p.start, None), "status is None"),
    "stats None": (lambda p, r: Outcome(p.start, stats=None), "stats are None"),
    "stats list": (lambda p, r: Outcome(p.start, stats=[1]), r"stats are \[1\]"),
    "stats text": (lambda p, r: Outcome(p.start, stats={"a": "b"}), "map 'a' to 'b'"),
    "stats tensor": (lambda p, r: Outcome(p.start, stats={"a": torch.ones(2)}), "map 'a' to tensor"),
    "soft text": (lambda p, r: Outcome(p.start, soft="x"), "soft alignment is 'x'"),
    "soft of another graph": (
        lambda p, r: Outcome(p.start, soft=SoftAlignment.centre(OTHER)),
        "soft alignment belongs to another graph",
    ),
    "report text": (lambda p, r: (r("hello"), Outcome(p.start))[1], "reported 'hello'"),
    "report nothing": (lambda p, r: (r(), Outcome(p.start))[1], "missing 1 required"),
    "report text for a number": (lambda p, r: r(Step(1, "low")), "a whole number, a number and a text"),
    "report half a step": (lambda p, r: r(Step(0.5, 1.0)), "a whole number, a number and a text"),
    "writes to B": (lambda p, r: overwritten(p), "wrote to tensors that are the caller's own: '2.bias' of B"),
    "raises": (lambda p, r: 1 / 0, "ZeroDivisionError"),
    "exits": (lambda p, r: exit(3), r"called exit\(3\)"),
    "runs out of stack": (lambda p, r: RUBBISH["runs out of stack"][0](p, r), "RecursionError"),
    "no memory": (lambda p, r: torch.empty(1 << 60), "RuntimeError"),
}


def made(run):
    return type("Made", (Solver,), {"name": "made", "solve": lambda self, problem, report: run(problem, report)})


@pytest.mark.parametrize("case", RUBBISH)
def test_it_is_an_error_that_says_what_was_done(case):
    run, said = RUBBISH[case]
    pair = planted_pair(mlp(3, 5, 2)).bind()
    with pytest.raises(SolverError, match=said):
        solve(pair, solver=made(run), registry=Registry([]))
    solution = solve(planted_pair(mlp(3, 5, 2)).bind(), solver=made(run), registry=Registry([]), throw=False)
    assert solution.status in (Status.FAILED, Status.INVALID)
    assert solution.alignment == Alignment.identity(pair.graph)
    assert "made" in solution.explain()


def test_ctrl_c_is_not_swallowed():
    def interrupted(problem, report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(planted_pair(mlp(3, 5, 2)).bind(), solver=made(interrupted), registry=Registry([]))


def test_weights_made_in_inference_mode_can_be_solved():
    """They have no counter of writes."""
    graph = mlp(3, 5, 2).graph()
    with torch.inference_mode():
        weights = {name: torch.randn(node.shape) for name, node in graph.tensors.items()}
    assert solve(graph, weights, weights, registry=Registry([])).objective_after == 0


class Raises:
    """An observer that raises in every hook; it counts the calls."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    @hookimpl
    def alignkit_solve_started(self):
        self.calls += 1
        raise self.error

    @hookimpl
    def alignkit_solve_step(self):
        self.calls += 1
        raise self.error

    @hookimpl
    def alignkit_solve_finished(self):
        self.calls += 1
        raise self.error


ERRORS = [ValueError("x"), RecursionError(), MemoryError(), StopIteration(), AssertionError("y")]
EXITS = [SystemExit(5), GeneratorExit(), BaseException("panic")]


@pytest.mark.parametrize("error", [*ERRORS, *EXITS])
def test_an_observer_that_raises_everywhere_costs_three_warnings_and_no_result(error):
    registry, observer = Registry([]), Raises(error)
    registry.register(observer, name="bad")
    pair = planted_pair(mlp(3, 5, 2)).bind()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert solve(pair, registry=registry).objective_after == 0
    assert observer.calls >= 9
    ours = [w for w in caught if issubclass(w.category, PluginWarning)]
    assert len(ours) == 3  # one a hook, however often it is called
    assert all(type(error).__name__ in str(w.message) for w in ours)


def test_an_observer_that_removes_itself():
    registry = Registry([])

    class Once:
        @hookimpl
        def alignkit_solve_started(self):
            registry.unregister("once")

    registry.register(Once(), name="once")
    assert solve(planted_pair(mlp(3, 5, 2)).bind(), registry=registry).objective_after == 0
    assert not registry.plugins.manager.has_plugin("once")


def test_registering_what_is_there_already_changes_nothing():
    registry, observer = Registry([]), Raises(ValueError())
    name = registry.register(observer)
    assert registry.register(observer) == name
    with pytest.raises(PluginError, match="registered already"):
        registry.register(Raises(ValueError()), name=name)
