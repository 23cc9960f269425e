"""The solver keeps the contract, on weights and on activations, entropic and exact."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch

import alignkit_ot
from alignkit.errors import SolverError
from alignkit.jobs.solve import solve
from alignkit.plugins.plugin_registry import Registry, list_solvers, registry
from alignkit.tasks.task import Task
from alignkit.testing import SolverContract, attention, independent_pair, mlp, planted_pair
from alignkit_ot import OptimalTransport
from alignkit_ot.transport import transport_plans


class TestEntropic(SolverContract):
    solver = OptimalTransport()
    seeds = (0, 1)


class TestExact(SolverContract):
    solver = OptimalTransport(regularization=0)


class TestOnActivations(SolverContract):
    solver = OptimalTransport(ground="activations")
    seeds = (0,)


def is_installed() -> bool:
    try:
        distribution("alignkit-ot")
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not is_installed(), reason="alignkit-ot is not installed: pip install plugins/alignkit-ot")
def test_an_installed_package_is_found_by_name():
    assert list_solvers()["ot"].package == "alignkit-ot 0.1.0"


def test_entropy_softens_and_rounding_undoes_it():
    pair = planted_pair(mlp(4, 8, 7, 3), noise=0.2).bind()
    hard, soft = (solve(pair, solver=OptimalTransport(regularization=r)) for r in (0, 0.5))
    assert all(bool(((m < 1e-9) | (m > 1 - 1e-9)).all()) for m in hard.soft.matrices.values())
    assert all(int((m > 0.01).sum()) > len(m) for m in soft.soft.matrices.values())
    assert soft.soft.round() == soft.alignment


def test_it_works_in_a_chain():
    own = Registry([])
    own.register(alignkit_ot)
    pair = independent_pair(attention()).bind()
    chain = solve(pair, solver="ot > weight_matching", registry=own)
    assert [stage.solver for stage in chain.stages] == ["ot", "weight_matching"]
    assert chain.stages[0].objective_after >= chain.objective_after


def test_a_task_is_used_where_there_is_one():
    pair = planted_pair(mlp(4, 8, 7, 3))
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    task = Task(pair.a, (inputs, torch.zeros(64, 3)), "mse")
    by_data = solve(pair.bind(), solver=OptimalTransport(), task=task)
    assert by_data.alignment == pair.answer
    assert -1 <= by_data.history[-1].objective < -0.8  # minus the mean correlation, to which dead units add nothing
    by_weights = solve(pair.bind(), solver=OptimalTransport(ground="weights"), task=task)
    assert by_weights.history[-1].objective == pytest.approx(0, abs=1e-6)  # a squared distance
    with pytest.raises(SolverError, match=r"task=alignkit\.Task"):
        solve(pair.bind(), solver=OptimalTransport(ground="activations"))


@pytest.mark.parametrize("regularization", [0, 0.001, 0.1, 10])
@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (1, 4), (2, 3, 4, 4)])
def test_plans_move_all_mass(shape, regularization):
    similarity = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plans = transport_plans(similarity, regularization)
    assert plans.shape == shape
    assert float(plans.min()) >= 0
    assert torch.allclose(plans.sum((-1, -2)), torch.ones(shape[:-2], dtype=torch.float64), atol=1e-6)
    if regularization == 0:
        for axis, count in ((-1, shape[-2]), (-2, shape[-1])):
            sums = plans.sum(axis)
            assert torch.allclose(sums, torch.full_like(sums, 1 / count))
    shifted = similarity + torch.randn(shape[-2], 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(transport_plans(shifted, regularization), plans, atol=1e-6)


def test_units_that_are_all_alike_share_everything():
    assert torch.equal(transport_plans(torch.ones(3, 3), 0), torch.full((3, 3), 1 / 9, dtype=torch.float64))


def test_similarities_that_are_no_numbers_are_refused():
    with pytest.raises(SolverError, match="NaN or infinity"):
        transport_plans(torch.tensor([[0.0, float("nan")], [1.0, 0.0]]), 0.1)


def test_the_code_of_the_readme_runs():
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    name = None if is_installed() else registry().register(alignkit_ot)
    found: dict[str, Any] = {"__name__": "readme"}
    try:
        exec(compile(code, "README.md", "exec"), found)
    finally:
        if name is not None:
            registry().unregister(name)
    assert found["fusion"].plans["h1"].shape == (8, 20)
