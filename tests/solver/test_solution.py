"""A solution is a value: it prints in a line, shows a table in a notebook, and is copied and pickled whole."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

from alignkit import Solution, solve
from alignkit.testing import attention, mlp, planted_pair


def chain() -> Solution:
    """A chain whose second stage keeps a soft alignment."""
    pair = planted_pair(mlp(4, 8, 7, 3), noise=0.3)
    return solve(pair.bind(), solver=["identity", "sinkhorn"], max_steps=4)


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copies_hold_everything(again: Callable[[Solution], Solution]) -> None:
    solution = chain()
    other = again(solution)
    assert other.alignment == solution.alignment
    assert (other.options, other.history, other.status) == (solution.options, solution.history, solution.status)
    assert (dict(other.gain), dict(other.moved)) == (dict(solution.gain), dict(solution.moved))
    assert [stage.solver for stage in other.stages] == ["identity", "sinkhorn"]
    assert other.soft is not None
    assert solution.soft is not None
    assert all(torch.equal(matrix, solution.soft.matrices[name]) for name, matrix in other.soft.matrices.items())
    assert other.explain() == solution.explain()


def test_it_prints_in_one_line() -> None:
    pair = planted_pair(mlp(4, 8, 7, 3))
    solution = solve(pair.bind())
    moved = sum(solution.moved.values())
    before = f"{solution.objective_before:.6g}"
    assert repr(solution) == f"Solution(weight_matching: OK, squared distance {before} -> 0, {moved} units moved)"


def test_a_notebook_shows_groups_units_and_gains() -> None:
    solution = solve(planted_pair(attention(), noise=0.1).bind())
    page = solution._repr_html_()
    assert page.startswith("<table><caption>Solution(weight_matching: OK")
    assert "-&gt;" in page  # the caption is escaped
    for group, gain in solution.gain.items():
        row = next(line for line in page.splitlines() if f">{group}<" in line or f" {group}<" in line)
        assert f">{solution.moved[group]}<" in row
        assert f">{gain:.6g}<" in row
