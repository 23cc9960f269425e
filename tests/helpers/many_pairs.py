"""Pairs of small networks on one graph for the tests of `solve_many`, and a solver that fails for some of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignkit import SymmetryGraph
from alignkit.solver import Outcome, Solution, Solver, SolverOptions

State = dict[str, Tensor]
SPEC = {"w1": "a .", "b1": "a", "w2": "b a", "b2": "b", "w3": ". b"}
SHAPES = {"w1": (12, 5), "b1": (12,), "w2": (9, 12), "b2": (9,), "w3": (3, 9)}
GRAPH = SymmetryGraph.from_spec(SPEC, SHAPES)


def network(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {n: (torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(dtype) for n, s in SHAPES.items()}


def pairs_of(count: int) -> list[tuple[State, State]]:
    return [(network(2 * i), network(2 * i + 1)) for i in range(count)]


def numbers(solution: Solution) -> tuple[Any, ...]:
    """What does not depend on the clock."""
    return solution.alignment, solution.status, dict(solution.options), solution.solver, dict(solution.moved)


class FailsAt(Solver[SolverOptions]):
    """Fails, in one of many ways, for some seeds."""

    name = "fails_at"

    def __init__(self, ways: dict[int, Any]) -> None:
        super().__init__()
        self.ways = ways

    def solve(self, problem, report):
        way = self.ways.get(problem.seed)
        if isinstance(way, BaseException):
            raise way
        return Outcome(problem.start) if way is None else way
