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


@no_pretending
@pytest.mark.parametrize("pair", run.problems("small")[1::2], ids=lambda pair: pair.name)
def test_steps_of_frank_wolfe_read_few_numbers_however_many_tensors_there_are(pair):
    def counted(steps):
        with pretended.pretended() as device:
            solve(pair.bind(), solver="frank_wolfe", device=device, max_steps=1)
            with pretended.Transfers() as transfers:
                solve(pair.bind(), solver="frank_wolfe", device=device, max_steps=steps)
        return transfers

    few, many = counted(5), counted(15)
    assert many.scalars - few.scalars <= 10
    # Gradients go to the host, where units are assigned; the objective on the line comes as one tensor or two.
    assert many.to_host - few.to_host <= 10 * (len(pair.bind().graph.groups) + 3)
