"""Solvers that break their contract at run time: always a `SolverError` that says what they did."""

from __future__ import annotations

import warnings
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch

from alignkit import Alignment, Outcome, SoftAlignment, Solution, Solver, SolverOptions, Status, Step, hookimpl
from alignkit.errors import PluginError, SolverError
from alignkit.jobs.solve import solve
from alignkit.plugins import PluginWarning, Registry
from alignkit.testing import independent_pair, mlp, planted_pair
from helpers.plugin_code import plugin_offering

OTHER = mlp(3, 6, 2).graph()


class Unchecked(Alignment):
    """An alignment of a class of its own, which sends every unit to place 0."""

    elements = property(lambda self: {name: element * 0 for name, element in super().elements.items()})


def overwritten(problem):
    problem.b["2.bias"].add_(1)
    return Outcome(problem.start)


class Raising(Outcome):
    @property
    def stats(self):
        return 1 / 0

    @stats.setter
    def stats(self, value):
        pass


def unseen(values, problem):
    """Write where torch does not count."""
    values[0] = 7
    return Outcome(problem.start)


def elsewhere(problem):
    weight = problem.bound.module_a.get_parameter("0.weight")
    weight.data = weight.data + 1
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
    "status of another kind": (lambda p, r: Outcome(p.start, True), "status is True"),
    "stats nan": (lambda p, r: Outcome(p.start, stats={"a": float("nan")}), "stats map 'a' to nan"),
    "stats inf": (lambda p, r: Outcome(p.start, stats={"a": float("inf")}), "stats map 'a' to inf"),
    "stats beyond floats": (lambda p, r: Outcome(p.start, stats={"a": 10**400}), "not a name to a finite number"),
    "stats by number": (lambda p, r: Outcome(p.start, stats={1: 2.0}), "stats map 1 to 2.0"),
    "notes None": (lambda p, r: Outcome(p.start, notes=None), "notes are None, not a mapping from names to texts"),
    "notes list": (lambda p, r: Outcome(p.start, notes=["a"]), r"notes are \['a'\]"),
    "notes object": (lambda p, r: Outcome(p.start, notes={"a": object()}), "notes map 'a' to <object"),
    "notes number": (lambda p, r: Outcome(p.start, notes={"a": 1}), "notes map 'a' to 1, not a name to a text"),
    "notes half a character": (lambda p, r: Outcome(p.start, notes={"a": "\ud800"}), "not a name to a text"),
    "properties that raise": (lambda p, r: Raising(p.start), "ZeroDivisionError"),
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
    "report nan": (lambda p, r: r(Step(1, float("nan"))), "a finite number"),
    "report inf": (lambda p, r: r(Step(1, -float("inf"))), "a finite number"),
    "report None": (lambda p, r: r(Step(1, None)), "a finite number"),
    "report half a character": (lambda p, r: r(Step(1, 1.0, "\udfff")), "a text"),
    "report another alignment": (lambda p, r: r(Step(1, 1.0, alignment={})), "as the alignment of a step"),
    "report nothing": (lambda p, r: (r(), Outcome(p.start))[1], "missing 1 required"),
    "report text for a number": (lambda p, r: r(Step(1, "low")), "a whole number, a finite number and a text"),
    "report half a step": (lambda p, r: r(Step(0.5, 1.0)), "a whole number, a finite number and a text"),
    "writes to B": (lambda p, r: overwritten(p), "the caller's own were written to: '2.bias' of B"),
    "writes to B by data": (lambda p, r: unseen(p.b["2.bias"].data, p), "were written to: '2.bias' of B"),
    "writes to A by numpy": (lambda p, r: unseen(p.a["0.weight"].numpy(), p), "were written to: '0.weight' of A"),
    "writes to the objective": (
        lambda p, r: unseen(p.objective.b["0.bias"].numpy(), p),
        "were written to: '0.bias' of B",
    ),
    "replaces a tensor of a module": (
        lambda p, r: (p.bound.module_b.get_submodule("0").register_parameter("bias", None), Outcome(p.start))[1],
        "the caller's own model B changed",
    ),
    "points a tensor of a module elsewhere": (lambda p, r: elsewhere(p), "the caller's own model A changed"),
    "switches the mode of a module": (
        lambda p, r: (p.bound.module_a.train(), Outcome(p.start))[1],
        "the caller's own model A changed",
    ),
    "empties B": (lambda p, r: p.b.clear(), "has no attribute 'clear'"),
    "replaces an entry of B": (lambda p, r: p.b.__setitem__("2.bias", torch.ones(2)), "has no attribute"),
    "removes an entry of A": (lambda p, r: p.bound.a.pop("2.bias"), "has no attribute 'pop'"),
    "gives the problem another pair": (lambda p, r: setattr(p, "bound", None), "cannot assign to field 'bound'"),
    "raises": (lambda p, r: 1 / 0, "ZeroDivisionError"),
    "exits": (lambda p, r: exit(3), r"called exit\(3\)"),
    "runs out of stack": (lambda p, r: RUBBISH["runs out of stack"][0](p, r), "RecursionError"),
    "no memory": (lambda p, r: torch.empty(1 << 60), "RuntimeError"),
}


def made(run):
    return type(
        "Made",
        (Solver,),
        {"name": "made", "__module__": __name__, "solve": lambda self, problem, report: run(problem, report)},
    )


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


ANOTHER = planted_pair(mlp(3, 5, 2), seed=9).bind()
REPLACED = {
    "the pair": lambda p: object.__setattr__(p, "bound", ANOTHER),
    "the start": lambda p: object.__setattr__(p, "init", None),
    "the seed": lambda p: object.__setattr__(p, "seed", 99),
    "the objective": lambda p: p.__dict__.__setitem__("objective", None),
    "the sums": lambda p: p.objective.__dict__.__setitem__("sums", {}),
    "the pair of the objective": lambda p: setattr(p.objective, "bound", None),
    "everything": lambda p: p.__dict__.clear(),
}


@pytest.mark.parametrize("what", REPLACED)
def test_what_a_solver_puts_into_its_problem_has_no_say_in_the_account(what):
    """Also what an observer puts there."""

    def run(problem, report):
        start = problem.start
        REPLACED[what](problem)
        return Outcome(start)

    class Observer:
        @hookimpl
        def alignkit_solve_started(self, problem):
            REPLACED[what](problem)

    pair = planted_pair(mlp(3, 5, 2)).bind()
    init = Alignment.random(pair.graph, 1)
    plain = solve(pair, solver=made(lambda problem, report: Outcome(problem.start)), init=init, registry=Registry([]))
    solution = solve(pair, solver=made(run), init=init, registry=Registry([]))
    watched = Registry([])
    watched.register(Observer())
    seen = solve(pair, solver=made(lambda p, r: Outcome(init)), init=init, registry=watched)
    for other in (solution, seen):
        assert other.facts() | {"seconds": 0} == plain.facts() | {"seconds": 0}
        assert (other.options, other.objective_init) == (plain.options, plain.objective_init)


def test_whatever_is_accepted_can_be_saved_and_read(tmp_path):
    """Numbers of numpy and fractions become plain ones."""

    def run(problem, report):
        report(Step(np.int64(1), np.float32(0.5), "ü"))
        report(Step(True, Fraction(1, 3)))
        stats = {"a": np.float32(1.5), "b": np.int8(3), "c": Fraction(1, 4), "d": True}
        return Outcome(problem.start, stats=MappingProxyType(stats), notes=MappingProxyType({"ü": "日本"}))

    solution = solve(planted_pair(mlp(3, 5, 2)).bind(), solver=made(run), registry=Registry([]))
    solution.save(tmp_path / "solution.safetensors")
    read = Solution.load(tmp_path / "solution.safetensors", solution.graph)
    assert dict(read.stats) == {"a": 1.5, "b": 3, "c": 0.25, "d": 1}
    assert (read.history, dict(read.notes)) == (solution.history, {"ü": "日本"})


class AnyOptions(SolverOptions):
    model_config = {**SolverOptions.model_config, "arbitrary_types_allowed": True}  # noqa: RUF012
    what: object = object()


def without_options(self, **options):
    pass


def exits(self, **options):
    raise SystemExit(2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"Options": AnyOptions}, "cannot be listed or saved"),
        ({"__init__": without_options}, "options"),
        ({"__init__": exits}, "cannot be made: SystemExit"),
        ({"__init__": lambda self, **options: 1 / 0}, "cannot be made: ZeroDivisionError"),
        ({"needs": None}, "made.needs is None"),
        ({"needs": "task"}, "made.needs is 'task'"),
        ({"Options": dict}, "Options"),
        ({"name": 3}, "made.name is 3, not a text"),
    ],
)
def test_a_solver_class_that_is_not_one_is_an_error_that_names_it(body, said):
    body.setdefault("solve", lambda self, problem, report: Outcome(problem.start))
    solver = type("made", (Solver,), {"name": "made", "__module__": __name__, **body})
    with pytest.raises(SolverError, match=said):
        solve(planted_pair(mlp(3, 5, 2)).bind(), solver=solver, registry=Registry([]))


def test_the_package_of_a_solver_is_named_when_it_fails():
    registry = Registry([])
    registry.register(plugin_offering(made(lambda problem, report: None)), package="alignkit-odd 0.3")
    with pytest.raises(SolverError, match=r"solver 'made' failed\..* The solver comes from alignkit-odd 0\.3\."):
        solve(planted_pair(mlp(3, 5, 2)).bind(), solver="made", registry=registry)
    with pytest.raises(SolverError, match=f"comes from {__name__}"):
        solve(planted_pair(mlp(3, 5, 2)).bind(), solver=made(lambda problem, report: None), registry=Registry([]))


def test_ctrl_c_is_not_swallowed():
    def interrupted(problem, report):
        raise KeyboardInterrupt

    solution = solve(planted_pair(mlp(3, 5, 2)).bind(), solver=made(interrupted), registry=Registry([]))
    assert solution.status is Status.INTERRUPTED


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


STORED = {
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    "every second": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t.flatten()[:1].expand(t.shape),
    "one column of many": lambda t: torch.stack([t, t], 0).movedim(0, -1)[..., 1],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", STORED)
def test_writes_are_looked_for_however_weights_are_stored(form: str, dtype: torch.dtype) -> None:
    pair = planted_pair(mlp(3, 5, 2))
    sides = [{n: STORED[form](t.to(dtype)) for n, t in side.state_dict().items()} for side in (pair.a, pair.b)]
    plain = [{n: t.clone(memory_format=torch.contiguous_format) for n, t in side.items()} for side in sides]
    assert solve(pair.graph, *sides).alignment == solve(pair.graph, *plain).alignment


@pytest.mark.parametrize("started", [False, True], ids=["at the identity", "at a start"])
def test_a_solve_that_wrote_to_the_weights_is_accounted_for_as_they_were(started):
    """Without raising: the distances of the failed solution are those of the networks that were given."""

    def write(problem, report):
        next(iter(problem.b.values())).data.zero_()
        return Outcome(problem.start)

    pair = independent_pair(mlp(3, 5, 2)).bind()
    init = Alignment.random(pair.graph, 1) if started else None
    honest = solve(pair, solver="identity", init=init)
    failed = solve(pair, solver=made(write), init=init, throw=False, registry=Registry([]))
    assert failed.status.failed
    expected = honest.objective_before, honest.objective_init, honest.objective_init
    assert (failed.objective_before, failed.objective_init, failed.objective_after) == expected
