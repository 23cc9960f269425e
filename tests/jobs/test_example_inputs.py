"""Jobs that draw inputs by themselves say so where a network does not take them, and take inputs that it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit.errors import MergeError, VerificationError


class Grid(nn.Module):
    """Takes patches of images, and a grid that says how many there are, as vision towers of language models do."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, hidden), nn.Linear(hidden, 3)

    def forward(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        if int(grid_thw.prod(-1).sum()) != len(patches):
            raise KeyError("the grid does not have as many cells as there are patches")
        return self.down(torch.tanh(self.up(patches)))


GRID = {"patches": torch.randn(28, 4), "grid_thw": torch.tensor([[1, 4, 7]])}


def graph_of(model: nn.Module) -> alignkit.SymmetryGraph:
    return alignkit.trace(model, symmetries="all", **GRID)


JOBS: dict[str, Callable[..., Any]] = {
    "fold": lambda model, *args, **kwargs: alignkit.fold(model, graph_of(model), *args, **kwargs),
    "widen": lambda model, *args, **kwargs: alignkit.widen(
        model, graph_of(model), Grid(12), graph_of(Grid(12)), *args, **kwargs
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_what_a_network_refuses_is_told_with_where_it_comes_from(job: str) -> None:
    model = Grid()
    with pytest.raises(VerificationError, match=r"does not run.*as many cells.*drawn at random.*alignkit.fold"):
        JOBS[job](model)
    JOBS[job](model, **GRID)
    JOBS[job](model, GRID["patches"], grid_thw=GRID["grid_thw"])


def test_inputs_that_were_given_are_not_called_random() -> None:
    with pytest.raises(VerificationError, match="as many cells") as caught:
        alignkit.fold(Grid(), graph_of(Grid()), **{**GRID, "grid_thw": torch.tensor([[1, 1, 1]])})
    assert "random" not in str(caught.value)


def test_inputs_by_position_and_by_name_are_drawn_together() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
            return self.down(torch.relu(self.up(x + shift)))

    model = Scaled()
    graph = alignkit.trace(model, torch.randn(2, 4), shift=torch.randn(2, 4), symmetries="all")
    check = alignkit.fold(model, graph).check
    assert check is not None and check.exact.same


def test_modules_are_found_by_running_them_on_random_inputs() -> None:
    model = Grid()
    attached, graph = {"vector": torch.randn(6)}, graph_of(model)
    folded = alignkit.fold(model, graph, **GRID)
    with pytest.raises(MergeError, match=r"does not run on inputs drawn at random.*as many cells.*Name a tensor"):
        alignkit.transport_tensors(graph, folded, folded, tensors=attached, layouts={"vector": "@up"}, model=model)


def test_probes_that_a_network_refuses_leave_weights_alone() -> None:
    model = Grid()
    solution = alignkit.solve(graph_of(model), model, Grid(), solver="deepalign")
    assert any("does not run" in note for note in solution.notes.values())
