"""`solve` and `Solution`: what a user calls, what comes back, and what they read when it cannot work."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import safetensors
import torch
from pydantic import Field
from safetensors.torch import save_file

from alignkit.errors import AlignkitError, AlignmentError, BindError, SolverError, TaskError, WeightsError
from alignkit.graph import PinnedAxis, Provenance, SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.solve import solve
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.plugins import PluginWarning, Registry
from alignkit.plugins.hookspecs import hookimpl
from alignkit.solver import Needs, Outcome, Solver, SolverOptions, Status, Step
from alignkit.solver.solution import Solution
from alignkit.solvers.identity import Identity
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.testing import attention, convnet, independent_pair, mlp, planted_pair


class SwapOptions(SolverOptions):
    swaps: int = Field(3, ge=0)
    """How many pairs of units to exchange."""


class Swaps(Solver[SwapOptions]):
    """Exchange random pairs of units of the first group: a solver whose every move can be told."""

    name = "swaps"

    def solve(self, problem, report):
        elements = {name: element.clone() for name, element in problem.start.elements.items()}
        generator = problem.generator()
        for i in range(self.options.swaps):
            element = next(iter(elements.values()))
            two = torch.randperm(len(element), generator=generator)[:2]
            element[two] = element[two.flip(0)]
            report(Step(i + 1, float(-i), "swapped"))
        return Outcome(Alignment(problem.graph, elements), stats={"swaps": float(self.options.swaps)})


class Fails(Solver[SolverOptions]):
    name = "fails"
    error: Exception = RuntimeError("the matrix is singular")

    def solve(self, problem, report):
        report(Step(1, 1.0))
        raise self.error


class Answers(Solver[SolverOptions]):
    """Hands back whatever the test wants."""

    name = "answers"

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def solve(self, problem, report):
        return self.answer(problem) if callable(self.answer) else self.answer


class Offers:
    def __init__(self, *classes):
        self.classes = classes

    @hookimpl
    def alignkit_register_solvers(self):
        return self.classes


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
        ({"solver": 3}, "a chain of them, not int"),
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
        ({"init": "random"}, "init= takes a Solution or an Alignment, not str."),
        ({"device": "warp"}, "device='warp' cannot be used"),
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
        (lambda pair: (pair.a, pair.a, pair.b), "SymmetryGraph first, not Sequential."),
    ],
    ids=["no models", "one model", "bound twice", "no graph"],
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

    with pytest.raises(KeyboardInterrupt):
        solve(pair.bind(), solver=Interrupted(), throw=False, registry=registry)
    assert diary.lines[-1] == ("finished", None)


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


# ---------------------------------------------------------------------- explanations


@pytest.mark.parametrize("architecture", [mlp(4, 8, 7, 3), convnet(), attention()], ids=lambda a: a.name)
def test_gains_of_all_groups_add_up_to_the_whole(architecture):
    pair = planted_pair(architecture, noise=0.2)
    solution = solve(pair.bind(), init=Alignment.random(pair.graph, 5), solver="weight_matching")
    assert sum(solution.gain.values()) == pytest.approx(solution.objective_before - solution.objective_after)
    assert set(solution.gain) == set(solution.moved) == set(pair.graph.groups)


def test_the_explanation_counts_units_and_names_what_is_fixed(pair):
    text = solve(pair.bind()).explain()
    solution = solve(pair.bind())
    assert f"{solution.moved['h1']} of 8" in text
    assert f"{solution.moved['h2']} of 7" in text
    assert f"squared distance {solution.objective_before:.6g} -> 0 " in text
    assert "4.bias: the spec fixes all its axes" in text
    assert "Nothing moved" not in text


def test_units_of_families_are_counted_over_all_parents():
    pair = planted_pair(attention(heads=3, head_dim=4))
    solution = solve(pair.bind())
    assert solution.moved["qk"] > 4
    assert f"{solution.moved['qk']:>6} of 12" in solution.explain()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: independent_pair(mlp(3, 2)), "the graph has no groups"),
        (lambda: planted_pair(mlp(3, 1, 2), noise=0.1), "every group has one unit only"),
        (lambda: planted_pair(mlp(3, 5, 2)), "the solver found no order of B's units better"),
    ],
    ids=["no groups", "single units", "nothing better"],
)
def test_nothing_moved_is_a_sentence(make, said):
    solution = solve(make().bind(), solver="identity")
    assert f"Nothing moved: {said}" in solution.explain()


def test_nothing_moved_between_equal_models(pair):
    assert "Nothing moved: B equals A." in solve(pair.graph, pair.a, pair.a).explain()


def test_tensors_that_a_trace_pinned_carry_the_operation():
    architecture = mlp(3, 4, 2)
    spec = {**architecture.spec, "0.weight": ". .", "0.bias": ".", "2.weight": "out ."}
    provenance = Provenance(
        "traced", "fake", pinned=(PinnedAxis("0.weight", 0, "aten.index", "layers.0"),), unused=("0.bias",)
    )
    graph = SymmetryGraph.from_spec(spec | {"2.bias": "."}, like=architecture.model, provenance=provenance)
    uncovered = solve(graph, architecture.model, architecture.model, solver="identity").uncovered
    assert uncovered["0.weight"] == "pinned on axis 0 by aten.index in layers.0"
    assert uncovered["0.bias"] == "the traced run never used it"
    assert "inputs or outputs" in uncovered["2.bias"]


def test_inverse_takes_a_to_b(pair):
    x = pair.architecture.inputs()
    a_as_b = solve(pair.bind()).inverse().apply(pair.a.state_dict())
    for name, tensor in pair.b.state_dict().items():
        assert torch.equal(a_as_b[name], tensor)
    torch.testing.assert_close(solve(pair.bind()).inverse().apply(pair.a)(x), pair.b(x))


def test_a_solution_prints_short(pair):
    assert len(repr(solve(pair.bind()))) < 120


# ---------------------------------------------------------------------- files


def test_everything_survives_a_file(pair, registry, tmp_path):
    solution = solve(pair.bind(), solver="swaps > weight_matching", swaps=2, registry=registry)
    solution.save(tmp_path / "found.safetensors")
    read = Solution.load(tmp_path / "found.safetensors", pair.graph)
    for mine, theirs in zip((solution, *solution.stages), (read, *read.stages), strict=True):
        assert mine.alignment == theirs.alignment
        assert mine.explain() == theirs.explain()
        for name in ("options", "history", "stats", "seconds", "gain", "moved", "status", "objective_init"):
            assert getattr(mine, name) == getattr(theirs, name), name


@pytest.mark.parametrize("architecture", [mlp(3, 4, 2), mlp(3, 2), attention()], ids=lambda a: a.name)
def test_soft_alignments_are_kept(architecture, tmp_path):
    def answer(problem):
        soft = SoftAlignment.from_alignment(problem.start)
        matrices = {name: matrix.requires_grad_() for name, matrix in soft.matrices.items()}
        return Outcome(problem.start, soft=SoftAlignment(problem.graph, matrices))

    pair = planted_pair(architecture)
    solution = solve(pair.bind(), solver=Answers(answer), init=Alignment.random(pair.graph, 2))
    solution.save(tmp_path / "soft.safetensors")
    read = Solution.load(tmp_path / "soft.safetensors", pair.graph)
    assert read.soft.round() == solution.alignment
    assert all(torch.equal(matrix, read.soft.matrices[name]) for name, matrix in solution.soft.matrices.items())


def test_a_failed_solution_can_be_kept_too(pair, registry, tmp_path):
    solve(pair.bind(), solver="fails", throw=False, registry=registry).save(tmp_path / "failed.safetensors")
    read = Solution.load(tmp_path / "failed.safetensors", pair.graph)
    assert read.status is Status.FAILED
    assert "singular" in read.detail


def _rewritten(path: Path, change) -> Path:
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["alignkit"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, {"alignkit": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda header, tensors: header.update(format="other"), "is not a solution, it is 'other'"),
        (
            lambda header, tensors: header.update(version=99),
            "has version 99 of alignkit.solution",
        ),
        (lambda header, tensors: header.update(graph="00"), "belongs to another graph"),
        (lambda header, tensors: header["solution"].pop("history"), "is damaged: 'history' is missing"),
        (lambda header, tensors: header["solution"].update(status="GREAT"), "is damaged"),
        (lambda header, tensors: tensors.pop("elements/h1"), "group 'h1' has no indices"),
        (lambda header, tensors: tensors["elements/h1"].zero_(), "not a permutation"),
    ],
    ids=["format", "version", "graph", "missing fact", "unknown status", "missing group", "not a permutation"],
)
def test_a_damaged_file_says_what_is_wrong(pair, tmp_path, change, said):
    path = tmp_path / "found.safetensors"
    solve(pair.bind()).save(path)
    with pytest.raises(AlignkitError) as caught:
        Solution.load(_rewritten(path, change), pair.graph)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not a file of tensors"], ids=["missing", "empty", "text"])
def test_something_else_than_a_solution_is_refused(pair, tmp_path, content):
    path = tmp_path / "odd.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as a solution"):
        Solution.load(path, pair.graph)


def test_an_alignment_file_is_no_solution_file(pair, tmp_path):
    Alignment.identity(pair.graph).save(tmp_path / "alignment.safetensors")
    with pytest.raises(WeightsError, match=r"is not a solution, it is 'alignkit[.]alignment'"):
        Solution.load(tmp_path / "alignment.safetensors", pair.graph)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(pair, tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        solve(pair.bind()).save(tmp_path / "no" / "found.safetensors")
    assert not list(tmp_path.iterdir())
