"""`SolverContract`: what a user may expect of any solver, as a pytest class."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from alignkit.errors import PluginWarning, SolverError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.proof.verify import relative_difference
from alignkit.jobs.solve import solve
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.plugins.hookspecs import hookimpl
from alignkit.plugins.plugin_registry import Registry
from alignkit.solver import Problem, Solver, Status
from alignkit.solver.solution import Solution
from alignkit.tasks.task import Task
from alignkit.testing.kind_problems import KIND_ARCHITECTURES
from alignkit.testing.problems import (
    ARCHITECTURES,
    ProblemPair,
    independent_pair,
    mlp,
    planted_pair,
    torch_attention,
)
from alignkit.text import did_you_mean

ROUNDED = 1e-20
"""Part of the squared distance that rounding leaves of a copy in which units are rotated."""
TOLERANCE = 1e-9
"""Relative slack where two float64 sums are taken in a different order."""


class _Interrupts:
    """Presses Ctrl-C after some steps."""

    def __init__(self, last: int) -> None:
        self._left = last

    @hookimpl
    def alignkit_solve_step(self) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


class SolverContract:
    """Subclass it as ``TestMine``, set ``solver``, and run pytest.

    Attributes:
        solver: The solver, ready to use. Options that make it fast are welcome.
        known_gaps: For each test that cannot pass, the reason. Such a test must fail (a strict xfail): once
            the gap is closed, the entry has to go.
        seeds: Seeds of the problems. More seeds find rarer failures.
    """

    solver: ClassVar[Solver[Any]]
    known_gaps: ClassVar[Mapping[str, str]] = {}
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        tests = [name for name in dir(cls) if name.startswith("test_")]
        for name in cls.known_gaps:
            if name not in tests:
                raise TypeError(f"{cls.__name__}.known_gaps: there is no test {name!r}.{did_you_mean(name, tests)}")

    @pytest.fixture(autouse=True)
    def _expect_known_gaps(self, request: pytest.FixtureRequest) -> None:
        reason = self.known_gaps.get(getattr(request.node, "originalname", request.node.name))
        if reason is not None:
            request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError))

    def task(self, pair: ProblemPair) -> Task | None:
        """Return the task for solvers that need one: reproduce what A computes."""
        return reproduction(pair) if self.solver.needs.task else None

    def test_returns_bijections(self) -> None:
        """Every group gets an element of its kind, a permutation for most, and every reported step is a number."""
        for pair in self.pairs():
            solution = self.solve_pair(pair)
            assert solution.graph == pair.graph, f"{pair}: the alignment is of another graph"
            for group, element in solution.alignment.elements.items():
                if pair.graph.groups[group].kind == "permutation":
                    ordered = torch.arange(element.shape[-1]).expand(element.shape)
                    assert torch.equal(element.sort(-1).values, ordered), f"{pair}: group {group} is not a permutation"
            Alignment(pair.graph, solution.alignment.elements)  # raises for what is no element
            assert all(math.isfinite(step.objective) for step in solution.history), f"{pair}: a step is not finite"

    def test_function_is_preserved(self) -> None:
        """Aligned B computes what B computes."""
        for pair in self.pairs():
            aligned = self.solve_pair(pair).apply(pair.b)
            inputs = pair.architecture.inputs(seed=7).double()
            before, after = outputs(pair.b, inputs), outputs(aligned, inputs)
            worst = relative_difference([before], [after])
            assert worst <= TOLERANCE, f"{pair}: outputs moved by {worst:.3g} of the largest"

    def test_permuted_copy_is_recovered(self) -> None:
        """If B is a moved A, the element is found exactly, where the solver promises it; rotations up to rounding."""
        if not self.solver.returns.exact_on_permuted_copies:
            pytest.skip("not promised: returns.exact_on_permuted_copies is False")
        for pair in self.pairs(independent=False):
            solution = self.solve_pair(pair)
            left, slack = solution.objective_after, ROUNDED * solution.objective_before * bool(pair.graph.dimension)
            assert left <= slack, f"{pair}: squared distance {left:.6g} is left"
            assert solution.alignment == pair.answer, f"{pair}: another order than the planted one"

    def test_soft_result_comes_with_the_hard_one(self) -> None:
        """A soft alignment is there when promised, and in the convex hull of alignments."""
        for pair in self.pairs(planted=False):
            soft = self.solve_pair(pair).soft
            assert (soft is not None) == self.solver.returns.soft, f"{pair}: returns.soft is {self.solver.returns.soft}"
            if soft is not None:
                SoftAlignment(pair.graph, soft.matrices, tolerance=1e-3)  # raises for what is not in the hull

    def test_equivariant_to_unit_order(self) -> None:
        """Reordering the units of A and B reorders the answer, and changes nothing else."""
        for pair in self.pairs():
            left, right = (Alignment.random(pair.graph, seed) for seed in (11, 12))
            shuffled = ProblemPair(pair.name, pair.architecture, pair.graph, left.apply(pair.a), right.apply(pair.b))
            expected = left @ self.solve_pair(pair).alignment @ right.inverse()
            same = self.is_same(shuffled, self.solve_pair(shuffled), expected)
            assert same, f"{pair}: the answer depends on the order of the units"

    def test_swap_gives_inverse(self) -> None:
        """Aligning A to B is the inverse of aligning B to A."""
        for pair in self.pairs():
            swapped = ProblemPair(pair.name, pair.architecture, pair.graph, pair.b, pair.a)
            expected = self.solve_pair(pair).inverse()
            assert self.is_same(swapped, self.solve_pair(swapped), expected), f"{pair}: the two directions disagree"

    def test_same_seed_same_result(self) -> None:
        """The global random state has no say, and a solver can be used twice."""
        for pair in self.pairs(planted=False):
            runs = []
            for global_seed in (1, 2):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(global_seed)
                    runs.append(self.solve_pair(pair, seed=3))
            assert runs[0].alignment == runs[1].alignment, f"{pair}: two runs with one seed differ"
            assert runs[0].history == runs[1].history, f"{pair}: two runs with one seed took different steps"

    def test_inputs_are_untouched(self) -> None:
        """Models, ``init`` and the global random state stay as they were."""
        for pair in self.pairs(planted=False):
            pair.a.train()
            init = Alignment.random(pair.graph, 1)
            kept = copy.deepcopy((pair.a, pair.b)), {name: element.clone() for name, element in init.elements.items()}
            random_state = torch.get_rng_state()
            self.solve_pair(pair, init=init)
            assert torch.equal(torch.get_rng_state(), random_state), f"{pair}: the global random state was used"
            for before, after in zip(kept[0], (pair.a, pair.b), strict=True):
                assert before.training == after.training, f"{pair}: the training mode was changed"
                new = after.state_dict(keep_vars=True)
                for name, old in before.state_dict(keep_vars=True).items():
                    assert torch.equal(old, new[name]), f"{pair}: {name} was changed"
                    assert old.requires_grad == new[name].requires_grad, f"{pair}: requires_grad of {name} was changed"
                    assert new[name].grad is None, f"{pair}: {name} was given a gradient"
            for group, element in kept[1].items():
                assert torch.equal(element, init.elements[group]), f"{pair}: init changed"

    def test_options_are_frozen_and_checked(self) -> None:
        """Options cannot be changed later, and a mistyped one gets a suggestion."""
        with pytest.raises(ValueError, match="frozen"):
            self.solver.options.seed = 1
        with pytest.raises(SolverError, match=r"no option 'sede'.* Did you mean 'seed'"):
            type(self.solver)(sede=1)

    def test_solution_survives_a_file(self, tmp_path: Path) -> None:
        """What was saved is what is loaded."""
        pair = independent_pair(mlp(3, 4, 2))
        solution = self.solve_pair(pair)
        solution.save(tmp_path / "solution.safetensors")
        read = Solution.load(tmp_path / "solution.safetensors", pair.graph)
        assert read.alignment == solution.alignment
        assert (read.options, read.history, read.status) == (solution.options, solution.history, solution.status)

    def test_groups_of_one_unit(self) -> None:
        """One unit can only stay where it is."""
        for sizes in ((3, 1, 2), (3, 1, 1, 2), (3, 1, 4, 2)):
            pair = planted_pair(mlp(*sizes), noise=0.1)
            for task in self.tasks(pair):
                assert self.solve_pair(pair, task=task).moved["h1"] == 0

    def test_graph_without_groups(self) -> None:
        """Nothing to align is not an error."""
        pair = independent_pair(mlp(3, 2))
        for task in self.tasks(pair):
            solution = self.solve_pair(pair, task=task)
            assert solution.alignment == Alignment.identity(pair.graph)
            assert solution.objective_after == solution.objective_before
            assert "no groups" in solution.explain()

    def test_modules_that_compute_inside(self) -> None:
        """Attention of torch is aligned like any other module, with and without data."""
        for seed in self.seeds:
            pair = independent_pair(torch_attention(), seed=seed)
            inputs = pair.architecture.inputs(seed=7).double()
            for task in self.tasks(pair):
                aligned = self.solve_pair(pair, task=task).apply(pair.b)
                worst = relative_difference([outputs(pair.b, inputs)], [outputs(aligned, inputs)])
                assert worst <= TOLERANCE, f"{pair}: outputs moved by {worst:.3g} of the largest"

    def test_never_worse_than_its_start(self) -> None:
        """From any ``init``, the solver's own objective does not rise."""
        for pair in self.pairs():
            starts = [Alignment.identity(pair.graph), Alignment.random(pair.graph, 4)]
            for init in [*starts, pair.answer] if pair.answer else starts:
                solution = self.solve_pair(pair, init=init)
                problem = Problem(pair.bind(), init, self.task(pair))
                start, end = (self.solver.objective(problem, at) for at in (init, solution.alignment))
                assert end <= start + TOLERANCE * max(abs(start), 1), f"{pair}: {start:.9g} rose to {end:.9g}"

    def test_interrupts_return_the_best_step(self) -> None:
        """Ctrl-C after any step gives an alignment as good as the best that was reported, and as the start.

        It is that of the step: ``report(Step(iteration, objective, note, alignment))``.
        """
        for pair in self.pairs(planted=False):
            init = Alignment.random(pair.graph, 4)
            problem = Problem(pair.bind(), init, self.task(pair))
            steps = len(self.solve_pair(pair, init=init).history)
            for last in sorted({min(1, steps), (steps + 1) // 2, steps} - {0}):
                registry = Registry([])
                registry.register(_Interrupts(last))
                solution = self.solve_pair(pair, init=init, registry=registry)
                assert solution.status is Status.INTERRUPTED, f"{pair}: it went on after Ctrl-C"
                assert len(solution.history) == last, f"{pair}: it reported steps after Ctrl-C"
                bounds = [self.solver.objective(problem, init), *(step.objective for step in solution.history)]
                reached = self.solver.objective(problem, solution.alignment)
                slack = TOLERANCE * max(abs(min(bounds)), 1)
                worse = f"{reached:.9g} is worse than {min(bounds):.9g}, which was reported"
                assert reached <= min(bounds) + slack, f"{pair}, Ctrl-C after step {last}: {worse}"

    def test_history_never_rises(self) -> None:
        """Reported objectives never rise, where the solver promises it."""
        if not self.solver.returns.monotone:
            pytest.skip("not promised: returns.monotone is False")
        for pair in self.pairs():
            values = [step.objective for step in self.solve_pair(pair).history]
            for before, after in pairwise(values):
                slack = TOLERANCE * max(abs(before), 1)
                assert after <= before + slack, f"{pair}: the objective rose from {before:.9g} to {after:.9g}"

    @staticmethod
    def is_same(pair: ProblemPair, solution: Solution, expected: Alignment) -> bool:
        """Tell whether a solution is the expected one; where groups rotate, whether it is as good.

        A run that ends by a tolerance leaves rotations a little beside their limit.
        """
        if not pair.graph.dimension:
            return solution.alignment == expected
        distance = Problem(pair.bind()).objective.distance2(expected)
        return math.isclose(solution.objective_after, distance, rel_tol=1e-6, abs_tol=1e-9)

    def pairs(self, *, planted: bool = True, independent: bool = True) -> Iterator[ProblemPair]:
        """Yield the problems: moved copies and unrelated networks of each architecture, for each seed.

        Architectures with groups of other kinds than permutations, where the solver takes them, have the first seed.
        """
        kinds = {build: build().graph().groups.values() for build in KIND_ARCHITECTURES.values()}
        taken = [build for build, groups in kinds.items() if {group.kind for group in groups} <= self.solver.kinds]
        for seed in self.seeds:
            for build in (*ARCHITECTURES.values(), *(taken if seed == self.seeds[0] else ())):
                if planted:
                    yield planted_pair(build(), seed=seed)
                if independent:
                    yield independent_pair(build(), seed=seed)

    def solve_pair(self, pair: ProblemPair, **arguments: Any) -> Solution:
        """Solve a pair with the solver under test, away from installed plugins.

        The solver leaves the state of the process as it is: random states, torch's defaults, warnings filters.
        """
        arguments.setdefault("task", self.task(pair))
        arguments.setdefault("registry", Registry([]))
        with warnings.catch_warnings():
            warnings.simplefilter("error", PluginWarning)
            try:
                return solve(pair.bind(), solver=self.solver, **arguments)
            except PluginWarning as warning:
                raise AssertionError(f"{pair}: {warning}") from warning

    def tasks(self, pair: ProblemPair) -> list[Task | None]:
        """List what a solver may be given: a task, and none where it needs none."""
        needed = self.task(pair)
        return [needed] if needed is not None else [None, reproduction(pair)]


def reproduction(pair: ProblemPair) -> Task:
    """Return the task to reproduce what A computes."""
    inputs = pair.architecture.inputs(32, seed=5)
    return Task(pair.a, (inputs, outputs(pair.a, inputs.double()).to(inputs.dtype)), "mse")


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a model computes in float64 and eval mode."""
    with torch.no_grad():
        out: Tensor = copy.deepcopy(model).double().eval()(inputs)
    return out
