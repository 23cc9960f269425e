"""The tests of a solver package: the contract, the entry point, and what is its own."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from typing import ClassVar

import pytest
import torch

import alignkit_example
from alignkit.jobs.solve import solve
from alignkit.plugins.plugin_registry import Registry, list_solvers
from alignkit.testing import SolverContract, mlp, planted_pair
from alignkit_example import CoordinateAscent, GreedyMatching, greedy_assignment


class TestCoordinateAscent(SolverContract):
    solver = CoordinateAscent()
    known_gaps: ClassVar = {
        "test_equivariant_to_unit_order": "it starts at the order in which the units are stored",
        "test_swap_gives_inverse": "heads are compared with their units in an order found for one side",
    }


class TestGreedyMatching(SolverContract):
    solver = GreedyMatching()
    known_gaps: ClassVar = {
        "test_swap_gives_inverse": "heads are compared with their units in an order found for one side"
    }


def is_installed() -> bool:
    try:
        distribution("alignkit-example")
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(
    not is_installed(), reason="alignkit-example is not installed: pip install plugins/alignkit-example"
)
def test_an_installed_package_is_found_by_name():
    assert list_solvers()["greedy_matching"].package == "alignkit-example 0.1.0"


def test_it_works_in_a_chain():
    registry = Registry([])
    registry.register(alignkit_example)
    pair = planted_pair(mlp(6, 20, 20, 3), noise=0.05)
    chain = solve(pair.bind(), solver="greedy_matching > weight_matching", registry=registry)
    greedy, matched = chain.stages
    assert greedy.objective_before > greedy.objective_after >= matched.objective_after


def plain_greedy(similarity):
    """The rule as one would say it: the largest entry whose row and column are both free."""
    n = len(similarity)
    columns = [-1] * n
    for flat in similarity.flatten().argsort(descending=True).tolist():
        row, column = divmod(flat, n)
        if columns[row] < 0 and column not in columns:
            columns[row] = column
    return columns


@pytest.mark.parametrize("n", [1, 2, 3, 10, 40])
def test_rounds_take_what_one_at_a_time_takes(n):
    batch = torch.randn(5, n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert greedy_assignment(batch).tolist() == [plain_greedy(matrix) for matrix in batch]


def test_ties_end_and_give_a_permutation():
    assert sorted(greedy_assignment(torch.zeros(6, 6)).tolist()) == list(range(6))
    assert sorted(greedy_assignment(torch.eye(6).flip(0).round()).tolist()) == list(range(6))


def test_the_input_is_left_alone():
    similarity = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    kept = similarity.clone()
    greedy_assignment(similarity)
    assert torch.equal(similarity, kept)
