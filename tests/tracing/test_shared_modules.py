"""One module under several names: found in the coverage run, where CoaT shares its positional convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from helpers.trace_checks import proved


class SharesAModule(nn.Module):
    """Two blocks that hold the same convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.two = self.one
        self.head = nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.one(x).tanh()
        return self.head(x + self.two(x))


def test_a_module_under_two_names_has_one_layout() -> None:
    graph = proved(SharesAModule(), torch.linspace(-1, 1, 14).reshape(1, 2, 7))
    assert [group.size for group in graph.groups.values()] == [6]
    assert graph.spec()["one.weight"] == f"{next(iter(graph.groups))} . ."
    assert "two.weight" in graph.tensors["one.weight"].names
