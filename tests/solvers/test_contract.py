"""Every built-in solver keeps the contract; a new solver is tested because it is registered."""

from __future__ import annotations

import pytest
import torch

from alignkit.errors import SolverError
from alignkit.graph.elements.alignment import Alignment
from alignkit.plugins.plugin_registry import Registry
from alignkit.solver import Outcome, Problem, Returns, Solver, SolverOptions, Step
from alignkit.solvers.identity import Identity
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.testing import SolverContract, attention, convnet, mlp, planted_pair, residual, torch_attention

KNOWN_GAPS = {
    "identity": {
        "test_equivariant_to_unit_order": "it is the baseline that looks at no weights",
        "test_never_worse_than_its_start": "it is the baseline that ignores its start",
    },
    "straight_through": {
        "test_swap_gives_inverse": "the task is to do what A does, so the two directions are two problems",
    },
}
FASTER = {
    "sinkhorn": {"max_steps": 20, "check_every": 10},
    "straight_through": {"max_steps": 20, "learning_rate": 0.05},
}
SLOW = {"frank_wolfe", "sinkhorn", "straight_through"}

for _name, _info in Registry([]).solvers().items():  # installed packages test their own
    _body = {"solver": _info.solver(**FASTER.get(_name, {})), "known_gaps": KNOWN_GAPS.get(_name, {})}
    _class = type(f"Test_{_name}", (SolverContract,), _body)
    globals()[f"Test_{_name}"] = pytest.mark.slow(_class) if _name in SLOW else _class


def mlp_of_three():
    return mlp(4, 8, 7, 3)


@pytest.mark.parametrize("build", [mlp_of_three, convnet, attention, residual, torch_attention])
def test_the_graphs_of_the_problems_hold_and_answers_are_right(build):
    pair = planted_pair(build(), seed=3)
    pair.graph.verify(pair.a, pair.architecture.inputs())
    aligned = pair.answer.apply(pair.b.state_dict())
    assert all(torch.equal(tensor, aligned[name]) for name, tensor in pair.a.state_dict().items())
    noisy = planted_pair(build(), seed=3, noise=0.1).bind()
    assert (
        0 < Problem(noisy).objective.distance2(pair.answer) < Problem(noisy).objective.distance2(Problem(noisy).start)
    )


# ---------------------------------------------------------------------- each law catches its breaker


class Breaker(Solver[SolverOptions]):
    """Weight matching that misbehaves in one way."""

    name = "breaker"
    returns = Returns(exact_on_permuted_copies=True, monotone=True)

    def solve(self, problem, report):
        return WeightMatching().solve(problem, report)


class Random(Breaker):
    def solve(self, problem, report):
        return Outcome(Alignment.random(problem.graph, int(torch.randint(99, ()))))


class Scribbles(Breaker):
    def solve(self, problem, report):
        next(iter(problem.b.values())).add_(1)
        return super().solve(problem, report)


class Evaluates(Breaker):
    def solve(self, problem, report):
        problem.bound.module_a.eval()
        return super().solve(problem, report)


class Climbs(Breaker):
    def solve(self, problem, report):
        report(Step(1, 1.0))
        report(Step(2, 2.0))
        return super().solve(problem, report)


class ReportsNaN(Breaker):
    def solve(self, problem, report):
        report(Step(1, float("nan")))
        return super().solve(problem, report)


class PromisesSoft(Breaker):
    returns = Returns(soft=True)


class AlwaysTheSame(Breaker):
    """Returns one and the same order for everything."""

    def solve(self, problem, report):
        return Outcome(Alignment.random(problem.graph, 8))


class LooseOptions(SolverOptions):
    model_config = {**SolverOptions.model_config, "frozen": False}  # noqa: RUF012


class Loose(Solver[LooseOptions]):
    name = "loose"

    def solve(self, problem, report):
        return Outcome(problem.start)


@pytest.mark.parametrize(
    ("solver", "test"),
    [
        (Identity, "test_equivariant_to_unit_order"),
        (Identity, "test_never_worse_than_its_start"),
        (Random, "test_same_seed_same_result"),
        (Random, "test_inputs_are_untouched"),
        (Scribbles, "test_inputs_are_untouched"),
        (Evaluates, "test_inputs_are_untouched"),
        (Climbs, "test_history_never_rises"),
        (ReportsNaN, "test_returns_bijections"),
        (PromisesSoft, "test_soft_result_comes_with_the_hard_one"),
        (AlwaysTheSame, "test_permuted_copy_is_recovered"),
        (AlwaysTheSame, "test_swap_gives_inverse"),
        (AlwaysTheSame, "test_never_worse_than_its_start"),
        (Loose, "test_options_are_frozen_and_checked"),
    ],
)
def test_each_law_catches_a_solver_that_breaks_it(solver, test):
    contract = type("Contract", (SolverContract,), {"solver": solver()})()
    with pytest.raises((AssertionError, pytest.fail.Exception, SolverError)):
        getattr(contract, test)()


def test_a_gap_that_names_no_test_is_refused():
    with pytest.raises(TypeError, match=r"no test 'test_swap_gives_inverses'\. Did you mean 'test_swap_gives_inverse'"):
        type("Contract", (SolverContract,), {"known_gaps": {"test_swap_gives_inverses": "typo"}})


CLOSED = """
from alignkit.solvers.weight_matching import WeightMatching
from alignkit.testing import SolverContract, attention, convnet, mlp, planted_pair, residual, torch_attention

class TestClosed(SolverContract):
    solver = WeightMatching()
    known_gaps = {"test_graph_without_groups": "there was one"}
"""


def test_a_gap_that_was_closed_has_to_go(tmp_path, capsys):
    file = tmp_path / "test_closed_gap.py"
    file.write_text(CLOSED)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    options = ["-k", "graph_without_groups", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini")]
    assert pytest.main([str(file), *options]) == pytest.ExitCode.TESTS_FAILED
    assert "[XPASS(strict)] there was one" in capsys.readouterr().out
