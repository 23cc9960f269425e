"""How much of a solve is done: solvers that know it say so in their steps, for bars with the time left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import alignkit

torch.manual_seed(0)
A, B = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in "ab")
X = torch.randn(32, 4)
GRAPH = alignkit.trace(A, X[:2])
KNOWING = {
    "weight_matching": {"restarts": 4, "patience": 5},
    "frank_wolfe": {"restarts": 2},
    "sinkhorn": {"max_steps": 60, "check_every": 10},
    "straight_through": {"max_steps": 60, "check_every": 10},
}
"""Solvers whose work has an end that is known when they begin."""


class Shares:
    """The shares of all steps, one list a solve."""

    def __init__(self) -> None:
        self.seen: list[float | None] = []

    @alignkit.hookimpl
    def alignkit_solve_step(self, step: alignkit.Step) -> None:
        self.seen.append(step.share)


@pytest.mark.parametrize("solver", KNOWING)
def test_shares_rise_to_the_end(solver: str) -> None:
    task, shares = alignkit.Task(A, (X, torch.randn(32, 3)), "mse"), Shares()
    with alignkit.plugins.watched(shares):
        alignkit.solve(GRAPH, A, B, solver=solver, task=task, **KNOWING[solver])
    known = [share for share in shares.seen if share is not None]
    assert len(known) > 1
    assert known == sorted(known)
    assert known[0] > 0
    assert known[-1] <= 1


def test_every_restart_is_told_whether_it_was_better_or_not() -> None:
    solution = alignkit.solve(GRAPH, A, B, restarts=6, patience=6)
    restarts = [step for step in solution.history if step.note.startswith("restart")]
    assert [step.iteration for step in restarts] == [1, 2, 3, 4, 5, 6]
    assert [step.objective for step in restarts] == sorted((step.objective for step in restarts), reverse=True)
