"""Soft alignments to start from: who takes them, how they are handed on, and what is refused."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import alignkit
from alignkit import Alignment, SoftAlignment
from alignkit.errors import AlignmentError
from alignkit.matching.canonical_order import Frame
from alignkit.matching.hulls import brought_inside, random_inside, why_outside
from alignkit.matching.soft_alignment import matrix_shape
from alignkit.plugins.plugin_registry import Registry
from alignkit.solver import Outcome, Problem, Solver, SolverOptions, Step
from alignkit.solvers.moving_alignment import MovingAlignment
from alignkit.solvers.sinkhorn import Sinkhorn
from alignkit.solvers.straight_through import FreeWeights, StraightThrough
from alignkit.tasks.path_loss import PathLoss
from alignkit.testing import KIND_ARCHITECTURES, attention, convnet, independent_pair, mlp, planted_pair
from alignkit.testing.contract import reproduction

quick = settings(max_examples=25, suppress_health_check=list(HealthCheck))
ARCHITECTURES = {**KIND_ARCHITECTURES, "mlp": lambda: mlp(4, 6, 5, 3), "convnet": convnet, "attention": attention}
architectures = pytest.mark.parametrize("name", ARCHITECTURES)
SOLVERS = {
    "sinkhorn": {"max_steps": 30, "check_every": 5},
    "sinkhorn with orders": {"max_steps": 30, "check_every": 5, "learning_rate": 0.1},
    "straight_through": {"max_steps": 20, "check_every": 5, "objective": "outputs", "learning_rate": 0.03},
    "frank_wolfe": {"max_steps": 40},
}
solvers = pytest.mark.parametrize("solver", SOLVERS)


def random_soft(graph, seed):
    """A point inside the hull of every group."""
    generator = torch.Generator().manual_seed(seed)
    kinds = {name: group.kind for name, group in graph.groups.items()}
    return SoftAlignment(
        graph, {n: random_inside(kind, matrix_shape(graph, n), generator) for n, kind in kinds.items()}
    )


def blend(first, second, share=0.5):
    """What lies between two alignments."""
    one, other = (SoftAlignment.from_alignment(each).matrices for each in (first, second))
    return SoftAlignment(first.graph, {n: torch.lerp(m.double(), other[n].double(), share) for n, m in one.items()})


def solve_from(pair, solver, init):
    task = reproduction(pair)
    needs_data = solver == "straight_through"
    return alignkit.solve(
        pair.bind(), solver=solver.split()[0], init=init, task=task if needs_data else None, **SOLVERS[solver]
    )


@architectures
@solvers
def test_what_comes_out_is_never_worse_than_the_start(name, solver):
    pair = independent_pair(ARCHITECTURES[name](), seed=1)
    soft = random_soft(pair.graph, 2)
    solution = solve_from(pair, solver, soft)
    values = [step.objective for step in solution.history]
    assert values == sorted(values, reverse=True)
    assert solution.objective_init == pytest.approx(Problem(pair.bind()).objective.distance2(soft.round()))
    if solver != "straight_through":
        assert solution.objective_after <= solution.objective_init * (1 + 1e-9)


@pytest.mark.parametrize("name", ["signed", "mlp", "convnet", "attention"])
@solvers
def test_what_a_soft_start_knows_is_found(name, solver):
    """The answer is a half of it, and the other half points elsewhere."""
    pair = planted_pair(ARCHITECTURES[name](), seed=3)
    assert pair.answer is not None
    solution = solve_from(pair, solver, blend(Alignment.random(pair.graph, 8), pair.answer, 0.55))
    assert solution.objective_after <= 1e-9 * max(solution.objective_before, 1e-9)


@architectures
@solvers
def test_every_stage_starts_where_the_last_one_ended_softly(name, solver):
    pair = independent_pair(ARCHITECTURES[name](), seed=4)
    task = reproduction(pair)
    registry, bound = alignkit.plugins.registry(), pair.bind()
    stages = [registry.solver(solver.split()[0])(**SOLVERS[solver])]
    chain = alignkit.solve(bound, solver=["deepalign", *stages], task=task)
    first, second = chain.stages
    assert first.soft is not None
    again = alignkit.solve(bound, solver=stages, init=first, task=task)
    assert [step.objective for step in again.history] == [step.objective for step in second.history]
    assert again.alignment == second.alignment == chain.alignment
    hard = alignkit.solve(bound, solver=stages, init=first.alignment, task=task)
    assert hard.objective_init == again.objective_init


class Looks(Solver[SolverOptions]):
    """Keeps its start, and remembers what it was."""

    name = "looks"

    def __init__(self, soft=None):
        super().__init__()
        self.own, self.seen = soft, []

    def solve(self, problem, report):
        self.seen.append((problem.init, problem.soft_init))
        report(Step(0, 0.0))
        return Outcome(problem.start, soft=self.own)


def test_a_soft_alignment_goes_one_stage_further_and_no_more():
    pair = independent_pair(mlp(4, 6, 3))
    given_soft, own = random_soft(pair.graph, 0), random_soft(pair.graph, 1)
    stages = [Looks(), Looks(own), Looks(), Looks()]
    alignkit.solve(pair.bind(), solver=stages, init=given_soft, registry=Registry([]))
    handed = [stage.seen[0][1] for stage in stages]
    for found, expected in zip(handed, (given_soft, None, own, None), strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found.matrices["h1"], expected.matrices["h1"])
    assert all(stage.seen[0][0] == given_soft.round() for stage in stages)


class TestWhereItBegins:
    """The first step sees the soft alignment itself."""

    @architectures
    def test_logits_project_to_it(self, name):
        pair = independent_pair(ARCHITECTURES[name](), seed=2)
        soft = random_soft(pair.graph, 5)
        problem = Problem(pair.bind(), soft.round(), dtype=torch.float64, soft_init=soft)
        moved = MovingAlignment(problem.start, problem, confidence=1e9, scalings=1000).now(1.0)
        for group, matrix in moved.matrices.items():
            if pair.graph.rotates(group):
                eye = torch.eye(matrix.shape[-1], dtype=torch.float64)
                torch.testing.assert_close((matrix @ matrix.mT).detach(), eye.expand_as(matrix))
                assert bool(((matrix.detach() * soft.matrices[group]).sum((-1, -2)) >= 0).all())
            elif pair.graph.groups[group].kind == "permutation":
                torch.testing.assert_close(matrix.detach(), soft.matrices[group], atol=1e-6, rtol=1e-6)
            else:
                torch.testing.assert_close(matrix.detach().sign(), soft.matrices[group].sign())

    @architectures
    def test_what_is_hard_is_softened_as_an_alignment_is(self, name):
        pair = independent_pair(ARCHITECTURES[name](), seed=2)
        start = Alignment.random(pair.graph, 5)
        plain, soft = (
            MovingAlignment(start, Problem(pair.bind(), start, dtype=torch.float64, soft_init=s), confidence=1.5)
            for s in (None, SoftAlignment.from_alignment(start))
        )
        for group, matrix in plain.now(1.0).matrices.items():
            torch.testing.assert_close(soft.now(1.0).matrices[group], matrix)

    @architectures
    def test_free_weights_are_in_the_middle_of_the_line_to_it(self, name):
        pair = independent_pair(ARCHITECTURES[name](), seed=2)
        soft = random_soft(pair.graph, 5)
        task = reproduction(pair)
        problem = Problem(pair.bind(), soft.round(), task, dtype=torch.float64, soft_init=soft)
        free = FreeWeights(problem, problem.start, StraightThrough().options)
        for tensor, weights in free.weights.items():
            if problem.b[tensor].is_floating_point():
                moved = soft.apply_tensor(tensor, problem.b[tensor].double())
                torch.testing.assert_close(weights.double(), (problem.a[tensor].double() + moved) / 2)

    @architectures
    @quick
    @given(seed=st.integers(0, 2**31))
    def test_frank_wolfe_sees_it_in_canonical_order(self, name, seed):
        pair = independent_pair(ARCHITECTURES[name](), seed=seed % 7)
        own, alignment = pair.bind(), Alignment.random(pair.graph, seed)
        frame = Frame.of(own)
        entered = frame.enter_softly(SoftAlignment.from_alignment(alignment))
        expected = SoftAlignment.from_alignment(frame.enter(alignment))
        for group, matrix in expected.matrices.items():
            torch.testing.assert_close(entered.matrices[group], matrix, atol=1e-6, rtol=1e-6)
        soft = random_soft(pair.graph, seed)
        for tensor in pair.graph.tensors:
            inner = [
                (a[tensor].double() * each.apply_tensor(tensor, b[tensor].double())).sum()
                for each, (a, b) in ((soft, (own.a, own.b)), (frame.enter_softly(soft), (frame.bound.a, frame.bound.b)))
            ]
            torch.testing.assert_close(*inner)


class TestPatience:
    """Patience begins once a start that was given has been improved on."""

    STEPS: ClassVar = {"max_steps": 24, "check_every": 2, "patience": 3}

    @pytest.mark.parametrize(
        "solver", [Sinkhorn(learning_rate=1e-9, **STEPS), StraightThrough(learning_rate=1e-9, **STEPS)]
    )
    def test_it_does_not_stop_what_has_not_begun(self, solver):
        pair = independent_pair(mlp(4, 6, 3))
        task = reproduction(pair)
        bound = pair.bind()
        own = alignkit.solve(bound, solver=solver, task=task)
        assert own.stats["steps"] == 6
        for init in (own.alignment, own, SoftAlignment.from_alignment(own.alignment)):
            assert alignkit.solve(bound, solver=solver, init=init, task=task).stats["steps"] == 24
        chain = alignkit.solve(bound, solver=["weight_matching", solver], task=task)
        assert chain.stats["steps"] == 24

    def test_it_does_stop_what_was_improved_on(self):
        pair = planted_pair(mlp(6, 10, 10, 4), noise=0.2)
        solver = Sinkhorn(max_steps=500, check_every=2, patience=3)
        solution = alignkit.solve(pair.bind(), solver=solver, init=Alignment.random(pair.graph, 1))
        assert solution.objective_after < solution.objective_init
        assert solution.stats["steps"] < 500


@given(
    st.sampled_from(sorted({g.kind for a in ARCHITECTURES.values() for g in a().graph().groups.values()})),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
@quick
def test_completed_matrices_are_inside_and_close(kind, half, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = random_inside(kind, (2, 2 * half, 2 * half), generator)
    nearly = matrix + 2e-3 * torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
    for given_matrix in (matrix, nearly):
        inside = brought_inside(kind, given_matrix)
        assert why_outside(kind, inside, 1e-9) == ""
        assert float((inside - matrix).abs().max()) < 0.05
    torch.testing.assert_close(brought_inside(kind, matrix), matrix, atol=1e-7, rtol=0)


def without(matrices, **changes):
    return {name: matrix for name, matrix in {**matrices, **changes}.items() if matrix is not None}


BAD = {
    "a group is missing": (lambda m: without(m, h1=None), "'h1' has no matrix"),
    "another size": (lambda m: without(m, h1=torch.eye(7)), r"'h1' needs .* of shape \(6, 6\), found .*\(7, 7\)"),
    "another shape": (lambda m: without(m, h1=torch.eye(6)[None]), r"\(1, 6, 6\)"),
    "whole numbers": (lambda m: without(m, h1=torch.eye(6).long()), "'h1' needs a floating-point matrix"),
    "complex": (lambda m: without(m, h1=torch.eye(6).to(torch.complex64)), "'h1' needs a floating-point matrix"),
    "no values": (lambda m: without(m, h1=torch.empty(6, 6, device="meta")), "'h1'"),
    "NaN": (lambda m: without(m, h1=torch.eye(6).fill_diagonal_(torch.nan)), "'h1' holds NaN or infinity"),
    "infinity": (lambda m: without(m, h1=torch.eye(6) * torch.inf), "'h1' holds NaN or infinity"),
    "rows are too heavy": (lambda m: without(m, h1=1.5 * torch.eye(6)), "'h1' is not doubly stochastic"),
    "columns are too heavy": (lambda m: without(m, h1=torch.eye(6)[[0, 0, 1, 2, 3, 4]]), "not doubly stochastic"),
    "below 0": (
        lambda m: without(m, h1=torch.eye(6) + 0.1 * (torch.eye(6).roll(1, 0) - torch.eye(6).roll(2, 0))),
        "a share is -0.1, below 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_soft_alignment_is_refused(case):
    change, message = BAD[case]
    graph = mlp(4, 6, 5, 3).graph()
    with pytest.raises(AlignmentError, match=message):
        SoftAlignment(graph, change(SoftAlignment.centre(graph).matrices))


def test_one_of_another_graph_is_refused():
    pair = independent_pair(mlp(4, 6, 3))
    for init in (SoftAlignment.centre(mlp(4, 7, 3).graph()), SoftAlignment.centre(convnet().graph())):
        with pytest.raises(AlignmentError, match="init= belongs to another graph"):
            alignkit.solve(pair.bind(), solver="sinkhorn", init=init)
        solved = alignkit.solve_many(pair.graph, [(pair.a, pair.b)], init=[init])
        assert "init= belongs to another graph" in solved.reasons[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_its_dtype_and_gradients_do_not_matter(dtype):
    pair = independent_pair(mlp(4, 6, 3))
    soft = blend(Alignment.random(pair.graph, 0), Alignment.random(pair.graph, 1), 0.25)  # exact in each of them
    other = SoftAlignment(pair.graph, {n: m.to(dtype).requires_grad_() for n, m in soft.matrices.items()})
    for solver in ("sinkhorn", "frank_wolfe"):
        one, two = (solve_from(pair, solver, init) for init in (soft, other))
        assert one.alignment == two.alignment
        assert [step.objective for step in one.history] == [step.objective for step in two.history]


@pytest.mark.parametrize(
    ("init", "options", "size"), [("hard", {}, 128), ("soft", {}, 512), ("soft", {"batch_size": 7}, 7)]
)
def test_steps_from_soft_starts_see_more_samples(monkeypatch, init, options, size):
    seen = []

    class Watched(PathLoss):
        def on(self, batch):
            seen.append(batch.size)
            return super().on(batch)

    monkeypatch.setattr("alignkit.solvers.sinkhorn.PathLoss", Watched)
    pair = independent_pair(mlp(3, 4, 2), seed=0)
    inputs = pair.architecture.inputs(600)
    task = alignkit.Task(pair.a, (inputs, pair.a(inputs).detach()), "mse")
    start = Alignment.identity(pair.graph)
    starts = {"hard": start, "soft": SoftAlignment.from_alignment(start)}
    solver = Sinkhorn(max_steps=2, check_every=2, score_samples=600, **options)
    alignkit.solve(pair.bind(), solver=solver, task=task, init=starts[init])
    assert max(seen[-2:]) == size  # the rest of an epoch is a smaller batch
