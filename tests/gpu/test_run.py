"""Solvers on a device: the script that checks them on a GPU, run on the CPU and on a pretended device.

The pretended device (tests/gpu/pretended.py) computes what the CPU computes, but refuses what a GPU refuses. So a
solver that makes a tensor on the CPU where the problem is on the device fails here, on a machine without any GPU.
"""

from __future__ import annotations

import json

import pytest
import torch

import pretended
import run
from alignkit.jobs.solve import solve
from alignkit.plugins.plugin_registry import list_solvers
from alignkit.solver import Outcome, Solver, SolverOptions
from alignkit.testing import mlp, planted_pair

no_pretending = pytest.mark.skipif(
    not pretended.registered(), reason=f"torch {torch.__version__} cannot have devices that are written in Python"
)


@pytest.mark.slow
def test_the_script_runs_on_the_cpu_and_says_so(capsys, tmp_path):
    path = tmp_path / "lines.json"
    assert run.main(["--device", "cpu", "--steps", "3", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "device: cpu; size: small" in said
    assert "nothing about a GPU" in said
    lines = json.loads(path.read_text())["lines"]
    assert {line["solver"] for line in lines} == set(list_solvers())
    assert all(line["same_order"] and line["to_device"] == line["to_host"] == 0 for line in lines)


@pytest.mark.slow
@no_pretending
@pytest.mark.parametrize("solver", sorted(list_solvers()))
def test_solvers_work_where_the_problem_is(solver):
    for pair in run.problems("small")[::2]:
        line = run.check(pair, solver, torch.device(pretended.NAME), steps=2)
        assert line.reason == "", line.reason
        assert line.same_order, f"{pair}: another order than on the CPU"
        assert line.difference == 0


@no_pretending
def test_a_solver_that_makes_tensors_on_the_cpu_is_caught():
    class Careless(Solver[SolverOptions]):
        name = "careless"

        def solve(self, problem, report):
            name = next(iter(problem.objective.a))
            problem.objective.a[name] + torch.zeros(problem.a[name].shape)
            return Outcome(problem.start)

    pair = planted_pair(mlp(4, 5, 2)).bind()
    solve(pair, solver=Careless())
    with pretended.pretended() as device, pytest.raises(Exception, match="same device"):
        solve(pair, solver=Careless(), device=device)


@no_pretending
def test_transfers_are_counted():
    with pretended.pretended() as device, pretended.Transfers() as counted:
        there = torch.arange(6.0).to(device)
        assert float(there.sum()) == 15
        assert torch.equal(there[torch.tensor([0, 2])].cpu(), torch.tensor([0.0, 2.0]))
        assert (there * 2).device == device
    assert (counted.to_device, counted.to_host, counted.scalars) == (2, 1, 1)
    assert counted.bytes == 6 * 4 + 2 * 8 + 2 * 4


LOOPS = {
    "sinkhorn": {"max_steps": (5, 15), "check_every": 100},
    "frank_wolfe": {"max_steps": (5, 15)},
    "straight_through": {"max_steps": (5, 15), "check_every": 100},
    "deepalign": {"consensus_rounds": (1, 3), "midpoint_steps": (2, 6)},
}
"""Options of solvers with loops; where there are two values, the second makes the loop longer."""


@no_pretending
@pytest.mark.parametrize("solver", LOOPS)
@pytest.mark.parametrize("pair", run.problems("small")[1::2], ids=lambda pair: pair.name)
def test_loops_read_nothing_from_a_device_but_what_is_assigned(pair, solver):
    def reads(which):
        options = {name: value[which] if isinstance(value, tuple) else value for name, value in LOOPS[solver].items()}
        with pretended.pretended() as device:
            task = run.task(pair, device)
            with pretended.Transfers() as transfers:
                solve(pair.bind(), solver=solver, task=task, device=device, **options)
        return transfers.scalars + transfers.to_host

    reads(0)  # what is computed once, such as the readings of a graph
    more, groups = reads(1) - reads(0), len(pair.bind().graph.groups)
    # Units are assigned on the host, so gradients or similarities go there; beside them a step may read three numbers.
    # Each of the two sweeps of a projection looks twice at the groups inside others.
    allowed = {"frank_wolfe": 10 * (groups + 3), "straight_through": 10 * (4 * groups + 3)}
    assert more <= allowed.get(solver, 0)
