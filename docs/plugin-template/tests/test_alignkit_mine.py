"""The solver keeps the contract, and each other hook does its work."""

from __future__ import annotations

import logging
from typing import ClassVar

import alignkit_mine
import pytest
import torch
from torch import nn

import alignkit
from alignkit.errors import UsageError
from alignkit.plugins.plugin_registry import Registry
from alignkit.testing import SolverContract, mlp, planted_pair


class TestMySolver(SolverContract):
    solver = alignkit_mine.MySolver()
    known_gaps: ClassVar = {
        "test_equivariant_to_unit_order": "the orders that are tried do not depend on the weights",
        "test_swap_gives_inverse": "the orders that are tried are not closed under inversion",
    }


@pytest.fixture
def registry() -> Registry:
    """With this package and nothing else that is installed."""
    registry = Registry([])
    registry.register(alignkit_mine)
    return registry


def test_the_solver_is_found_by_its_name(registry: Registry) -> None:
    pair = planted_pair(mlp(3, 4, 2)).bind()
    with pytest.raises(alignkit.AlignkitError, match="tries"):
        alignkit.solve(pair, solver="my_solver", tries=0, registry=registry)
    solution = alignkit.solve(pair, solver="my_solver", tries=200, registry=registry)
    assert solution.objective_after == 0  # 24 orders


@torch.library.custom_op("mine::scaled", mutates_args=())
def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


@scaled.register_fake
def _(x: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.empty_like(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.ops.mine.scaled(self.one(x), 0.5))


def test_the_rule_frees_the_units_and_the_graph_holds() -> None:
    alignkit.plugins.registry().register(alignkit_mine)  # nothing happens where the package is installed
    model, x = Scaled(), torch.randn(2, 4)
    graph = alignkit.trace(model, x)
    assert [group.size for group in graph.groups.values()] == [6]
    graph.verify(model, x)


def test_the_source_builds_a_model(registry: Registry) -> None:
    model, args, kwargs = registry.model_source("mine")("32")
    assert model(*args, **kwargs).shape == (1, 3)
    with pytest.raises(UsageError, match="mine:WIDTH"):
        alignkit_mine.small_mlp("wide")


def test_the_observer_sees_a_solve(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "alignkit_mine"):
        alignkit.solve(planted_pair(mlp(3, 4, 2)).bind(), solver="my_solver", registry=registry)
    lines = [record.getMessage() for record in caplog.records]
    assert (lines[0], lines[-1], len(lines)) == ("my_solver starts", "ends: OK", 12)
