"""Notebooks show what the result of every job says of itself."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
import torch
from torch import nn

import alignkit
from alignkit.text import Explained


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


A, B, X = net(0), net(1), torch.ones(2, 4)
GRAPH = alignkit.trace(A, X)
JOBS: dict[str, Callable[[], Any]] = {
    "distance": lambda: alignkit.distance(GRAPH, A, B),
    "merge": lambda: alignkit.merge(GRAPH, A, B),
    "transport": lambda: alignkit.transport(GRAPH, A, B, tuned=A),
    "align_many": lambda: alignkit.align_many(GRAPH, A, B),
    "canonicalize": lambda: alignkit.canonicalize(GRAPH, [B], A),
    "solve_many": lambda: alignkit.solve_many(GRAPH, [(A, B)]),
    "fold": lambda: alignkit.fold(A, GRAPH),
    "check": lambda: alignkit.check(A, X),
    "estimate": lambda: alignkit.estimate(GRAPH, "merge"),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_notebook_shows_the_explanation(job: str) -> None:
    result = JOBS[job]()
    assert isinstance(result, Explained)
    shown = result._repr_html_()
    assert shown.startswith("<pre")
    assert result.explain() in unescape(shown)
