"""The example of the page "Writing a rule" does what the page says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from alignkit import trace
from alignkit.plugins.plugin_registry import registry
from helpers import rule_example


class Uses(nn.Module):
    """A hidden layer that runs both ops."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(5, 8, bias=False), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.ops.mylib.unit_length(torch.ops.mylib.bias_gelu(self.one(x), self.bias)))


X = torch.linspace(-1, 1, 10).reshape(2, 5)


def test_without_its_rules_the_layer_stays() -> None:
    graph = trace(Uses(), X)
    assert not graph.groups
    assert "mylib::bias_gelu" in graph.report()


def test_with_its_rules_the_layer_is_free() -> None:
    key = registry().register(rule_example)
    try:
        graph = trace(Uses(), X)
    finally:
        registry().unregister(key)
    assert [group.size for group in graph.groups.values()] == [8]
    assert graph.spec() == {"bias": "one", "one.weight": "one .", "two.weight": ". one", "two.bias": "."}
    assert graph.verify(Uses(), X).error < 1e-12


@pytest.mark.parametrize("rule", [rule_example.bias_gelu_rule, rule_example.unit_length_rule])
def test_rules_say_what_they_do(rule: object) -> None:
    assert len(rule.__doc__ or "") > 40
