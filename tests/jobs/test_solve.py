"""`solve` and `Solution`: what a user calls, what comes back, and what they read when it cannot work."""

from __future__ import annotations

import warnings

import pytest
import torch

from alignkit.errors import AlignmentError, BindError, SolverError, TaskError
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.solve import solve
from alignkit.plugins import PluginWarning, Registry
from alignkit.plugins.hookspecs import hookimpl
from alignkit.solver import Needs, Outcome, Status, Step
from alignkit.solvers.identity import Identity
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.testing import convnet, mlp, planted_pair
from helpers.answering_solvers import Answers, Fails, Offers, Swaps


@pytest.fixture
def registry():
    made = Registry([])
    made.register(Offers(Swaps, Fails))
    return made


@pytest.fixture
def pair():
    return planted_pair(mlp(4, 8, 7, 3))


# ---------------------------------------------------------------------- the front door


def test_the_default_solver_recovers_a_permuted_copy(pair):
    solution = solve(pair.bind())
    assert solution.alignment == pair.answer
    assert solution.objective_after == 0 < solution.objective_before
    assert solution.solver == "weight_matching"
    assert solution.status is Status.OK
    x = pair.architecture.inputs()
    torch.testing.assert_close(solution.apply(pair.b)(x), pair.a(x))


def test_a_graph_with_two_models_is_bound_on_the_way(pair):
    bound, direct = solve(pair.bind()), solve(pair.graph, pair.a, pair.b)
    from_dicts = solve(pair.graph, pair.a.state_dict(), pair.b.state_dict())
    assert bound.alignment == direct.alignment == from_dicts.alignment


@pytest.mark.parametrize("solver", ["swaps", Swaps, Swaps(), ["swaps"]], ids=["name", "class", "instance", "sequence"])
def test_all_ways_to_name_a_solver_are_the_same(pair, registry, solver):
    solution = solve(pair.bind(), solver=solver, registry=registry)
    assert solution.alignment == solve(pair.bind(), solver="swaps", registry=registry).alignment
    assert solution.solver == "swaps"


def test_options_and_seed_reach_the_solver_and_the_record(pair, registry):
    solution = solve(pair.bind(), solver="swaps", swaps=1, seed=4, registry=registry)
    assert solution.options == {"seed": 4, "swaps": 1}
    assert solution.stats == {"swaps": 1.0}
    assert solution.history == (Step(1, 0.0, "swapped"),)
    assert solution.moved["h1"] == 2
    found = {tuple(solve(pair.bind(), solver=Swaps(seed=s)).alignment.elements["h1"].tolist()) for s in range(5)}
    assert len(found) > 1
    again = solve(pair.bind(), solver=Swaps(seed=9, swaps=1), seed=4, registry=registry)
    assert again.alignment == solution.alignment


def test_init_is_a_solution_or_an_alignment(pair, registry):
    start = Alignment.random(pair.graph, 3)
    from_alignment = solve(pair.bind(), solver="swaps", swaps=0, init=start, registry=registry)
    from_solution = solve(pair.bind(), solver="swaps", swaps=0, init=from_alignment, registry=registry)
    assert from_alignment.alignment == from_solution.alignment == start
    assert from_solution.objective_init == from_solution.objective_after != from_solution.objective_before


def test_objectives_are_measured_and_not_believed(pair, registry):
    solution = solve(pair.bind(), solver="swaps", registry=registry)
    aligned = solution.apply(pair.b.state_dict())
    distance = sum((t.double() - aligned[n].double()).square().sum() for n, t in pair.a.state_dict().items())
    assert solution.objective_after == pytest.approx(float(distance), rel=1e-12)
    assert solution.history[-1].objective == -2.0


def test_float64_weights_and_frozen_ones_are_fine(pair):
    pair.a.double().requires_grad_(False)
    pair.b.double()
    assert solve(pair.bind()).alignment == pair.answer


# ---------------------------------------------------------------------- chains


def test_each_stage_of_a_chain_starts_where_the_last_ended(pair, registry):
    chain = solve(pair.bind(), solver="swaps > weight_matching", swaps=2, registry=registry)
    first, second = chain.stages
    assert [stage.solver for stage in chain.stages] == ["swaps", "weight_matching"]
    assert second.objective_init == first.objective_after
    assert chain.alignment == second.alignment == pair.answer
    assert (chain.solver, chain.objective_before) == ("swaps > weight_matching", first.objective_before)
    assert chain.history == first.history + second.history
    assert first.options["swaps"] == 2
    assert f"stage 2, weight_matching: {second.objective_init:.6g} -> 0" in chain.explain()


def test_a_chain_mixes_names_classes_and_instances(pair, registry):
    chain = solve(pair.bind(), solver=["swaps", Swaps(swaps=0), WeightMatching], swaps=1, registry=registry)
    assert [len(stage.history) for stage in chain.stages[:2]] == [1, 0]
    assert chain.solver == "swaps > swaps > weight_matching"


def test_a_chain_ends_at_the_stage_that_fails(pair, registry):
    chain = solve(pair.bind(), solver="swaps > fails > weight_matching", throw=False, registry=registry)
    assert chain.status is Status.FAILED
    assert [stage.solver for stage in chain.stages] == ["swaps", "fails"]
    assert chain.alignment == chain.stages[0].alignment


# ---------------------------------------------------------------------- failures


def test_a_solver_that_raises_is_named_with_its_reason(pair, registry):
    with pytest.raises(SolverError, match=r"solver 'fails' failed.*RuntimeError: the matrix is singular") as caught:
        solve(pair.bind(), solver="fails", registry=registry)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_throw_false_keeps_the_start_and_says_what_happened(pair, registry):
    start = Alignment.random(pair.graph, 1)
    solution = solve(pair.bind(), solver="fails", init=start, throw=False, registry=registry)
    assert solution.status is Status.FAILED
    assert solution.alignment == start
    assert solution.history == (Step(1, 1.0),)
    assert "RuntimeError: the matrix is singular" in solution.explain()


def test_errors_of_alignkit_are_passed_on_as_they_are(pair):
    class Refuses(Fails):
        error = TaskError("the batches are empty")

    with pytest.raises(TaskError, match="the batches are empty"):
        solve(pair.bind(), solver=Refuses())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "found NoneType"),
        (lambda problem: problem.start, "found Alignment"),
        (Outcome("element"), "found str"),
        (Outcome(Alignment.identity(mlp(2, 3, 2).graph())), "another graph"),
    ],
    ids=["nothing", "bare alignment", "no alignment", "other graph"],
)
def test_an_answer_that_is_no_outcome_is_refused(pair, answer, said):
    with pytest.raises(SolverError, match=said):
        solve(pair.bind(), solver=Answers(answer))
    assert solve(pair.bind(), solver=Answers(answer), throw=False).status is Status.INVALID


def test_a_failure_that_the_solver_reports_itself_raises_too(pair):
    solver = Answers(lambda problem: Outcome(problem.start, Status.NONFINITE))
    with pytest.raises(SolverError, match="NaN or inf although the weights are finite"):
        solve(pair.bind(), solver=solver)
    assert solve(pair.bind(), solver=solver, throw=False).status is Status.NONFINITE


def test_running_out_of_steps_is_a_result_with_a_note(pair):
    solver = Answers(lambda problem: Outcome(problem.start, Status.MAX_STEPS))
    solution = solve(pair.bind(), solver=solver)
    assert not solution.status.failed
    assert "Raise max_steps" in solution.explain()


# ---------------------------------------------------------------------- wrong calls


class WithTask(Identity):
    name = "with_task"
    needs = Needs(task=True)


class WithModules(Identity):
    name = "with_modules"
    needs = Needs(modules=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"solver": "sinkhron"}, "no solver is named 'sinkhron'."),
        ({"solver": "weight_matchin"}, "Did you mean 'weight_matching'?"),
        ({"solver": "swaps >"}, "solver='swaps >' has an empty stage"),
        ({"solver": ""}, "has an empty stage"),
        ({"solver": "swaps > sawps"}, "no solver is named 'sawps'. Did you mean 'swaps'?"),
        ({"solver": []}, "solver= is an empty sequence"),
        ({"solver": "swaps", "swap": 1}, "there is no option 'swap'. Did you mean 'swaps'?"),
        ({"solver": "swaps", "swaps": -1}, "swaps=-1: input should be greater than or equal to 0."),
        ({"solver": "swaps", "swaps": "many"}, "swaps='many': input should be a valid integer"),
        (
            {"solver": "swaps", "swaps": -1, "sead": 2},
            "there is no option 'sead'. Did you mean 'seed'?",
        ),
        ({"solver": "swaps", "swap": 1}, "Options of 'swaps': seed, swaps."),
        (
            {"solver": "swaps > identity", "swapz": 1},
            "('swaps', 'identity') has an option 'swapz'. Did you mean 'swaps'?",
        ),
        (
            {"solver": Swaps(), "swaps": 1},
            "solver= is an instance, so its options are already set. Write Swaps(swaps=...) instead.",
        ),
        ({"solver": "swaps", "seed": -1}, "seed=-1: input should be greater than or equal to 0."),
        ({"solver": WithTask}, "solver 'with_task' works with data: pass task=alignkit.Task"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(pair, registry, arguments, said):
    with pytest.raises(SolverError) as caught:
        solve(pair.bind(), registry=registry, **arguments)
    assert said in str(caught.value)


def test_a_wrong_call_raises_even_without_throw(pair):
    with pytest.raises(SolverError, match="no solver is named"):
        solve(pair.bind(), solver="nothing_like_it", throw=False)


def test_needs_are_checked_before_the_first_stage_runs(pair):
    ran = []
    first = Answers(lambda problem: ran.append(1) or Outcome(problem.start))
    with pytest.raises(SolverError, match="'with_task' works with data"):
        solve(pair.bind(), solver=[first, WithTask()])
    assert not ran


def test_modules_are_asked_for_where_they_are_needed(pair):
    with pytest.raises(SolverError, match=r"bind modules instead of state dicts or files"):
        solve(pair.graph, pair.a.state_dict(), pair.b.state_dict(), solver=WithModules)
    assert solve(pair.bind(), solver=WithModules).status is Status.OK


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda pair: (pair.graph,), "call solve(graph, a, b)"),
        (lambda pair: (pair.graph, pair.a), "call solve(graph, a, b)"),
        (lambda pair: (pair.bind(), pair.a, pair.b), "the graph is bound to its networks already: call solve(pair)"),
    ],
    ids=["no models", "one model", "bound twice"],
)
def test_something_else_than_a_graph_says_how_to_call(pair, build, said):
    with pytest.raises(BindError) as caught:
        solve(*build(pair))
    assert said in str(caught.value)


def test_weights_that_do_not_fit_are_a_bind_error(pair):
    with pytest.raises(BindError):
        solve(pair.graph, pair.a, mlp(4, 8, 6, 3).model)


def test_init_of_another_graph_is_refused(pair):
    with pytest.raises(AlignmentError, match="init= belongs to another graph"):
        solve(pair.bind(), init=Alignment.identity(convnet().graph()))


# ---------------------------------------------------------------------- observers


class Diary:
    def __init__(self):
        self.lines, self.problems = [], []

    @hookimpl
    def alignkit_solve_started(self, problem, solver):
        self.problems.append(problem)
        self.lines.append(("started", solver.name))

    @hookimpl
    def alignkit_solve_step(self, problem, step):
        assert problem is self.problems[-1]
        self.lines.append(("step", step.iteration))

    @hookimpl
    def alignkit_solve_finished(self, problem, solution):
        assert problem is self.problems[-1]
        self.lines.append(("finished", solution.status.name if solution else None))


def test_observers_hear_every_stage_from_start_to_finish(pair, registry):
    diary = Diary()
    registry.register(diary)
    solve(pair.bind(), solver="swaps > identity", swaps=2, registry=registry)
    assert diary.lines == [
        ("started", "swaps"),
        ("step", 1),
        ("step", 2),
        ("finished", "OK"),
        ("started", "identity"),
        ("finished", "OK"),
    ]


def test_observers_hear_of_failures_and_interrupts(pair, registry):
    diary = Diary()
    registry.register(diary)
    with pytest.raises(SolverError):
        solve(pair.bind(), solver="fails", registry=registry)
    assert diary.lines[-1] == ("finished", "FAILED")

    class Interrupted(Fails):
        error = KeyboardInterrupt()

    solve(pair.bind(), solver=Interrupted(), registry=registry)
    assert diary.lines[-1] == ("finished", "INTERRUPTED")


def test_an_observer_that_raises_changes_no_result(pair, registry):
    class Breaks:
        @hookimpl
        def alignkit_solve_started(self, problem):
            raise KeyError("colour")

        @hookimpl
        def alignkit_solve_step(self, step):
            raise KeyError("colour")

    plain = solve(pair.bind(), solver="swaps", registry=registry)
    registry.register(Breaks(), name="breaks")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        watched = solve(pair.bind(), solver="swaps", registry=registry)
    assert watched.alignment == plain.alignment
    assert watched.history == plain.history
    said = [str(w.message) for w in warned if w.category is PluginWarning]
    assert [("solve_started" in text, "solve_step" in text) for text in said] == [
        (True, False),
        (False, True),
    ]
    assert all("observer 'breaks'" in text for text in said)
