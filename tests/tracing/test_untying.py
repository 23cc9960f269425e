"""Heads that are tied to an embedding: untied for a gain that has no other place to go, or kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from alignkit import fold, trace
from alignkit.graph import Untie
from helpers.folding_nets import NETS

TIED = [name for name, make in NETS.items() if any(isinstance(f, Untie) for f in make().graph.folds)]


@pytest.mark.parametrize("name", TIED)
def test_a_tied_head_is_untied_where_the_last_gain_needs_it(name: str) -> None:
    net = NETS[name]()
    graph = trace(net.model, *net.inputs, symmetries="all")
    assert [fold for fold in graph.folds if isinstance(fold, Untie)] == [
        fold for fold in net.graph.folds if isinstance(fold, Untie)
    ]
    streams = [group.kind for group in graph.groups.values() if group.size == 8 and group.parent is None]
    assert streams == ["centred" if name == "gpt" else "orthogonal"]
    folded = fold(net.model, graph, *net.inputs)
    assert folded.check is not None and folded.check.exact.error < 1e-12
    assert graph.verify(folded.network, *net.inputs).error < 1e-9
    one, two = net.model.state_dict(), folded.network.state_dict()
    assert one.keys() == two.keys()


@pytest.mark.parametrize("name", TIED)
def test_it_stays_tied_where_that_is_wanted(name: str) -> None:
    net = NETS[name]()
    graph = trace(net.model, *net.inputs, symmetries="all", keep_tied=True)
    assert not any(isinstance(fold, Untie) for fold in graph.folds)
    assert "tied" in {blocked.reason for blocked in graph.blocked}
    streams = [group.kind for group in graph.groups.values() if group.size == 8 and group.parent is None]
    assert streams and set(streams) <= {"permutation", "signed"}
    folded = fold(net.model, graph, *net.inputs)
    own = folded.network.state_dict()
    first = next(fold for fold in net.graph.folds if isinstance(fold, Untie))
    assert own[first.tensor].data_ptr() == own[first.source].data_ptr()
    assert graph.verify(folded.network, *net.inputs).error < 1e-9


class NoGain(nn.Module):
    """A tied head behind a norm without a gain: nothing has to be untied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6, elementwise_affine=False)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x)))


class TwoEmbeddings(nn.Module):
    """One tensor is embedding, embedding again, and head: only the head is untied."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Embedding(7, 6), nn.Embedding(7, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 7)
        self.right.weight = self.head.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.left(x) + self.right(x.flip(1))))


class OneModule(nn.Module):
    """The embedding is read as a head by code of the model: there is no second parameter to untie."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.embed(x)) @ self.embed.weight.T


class NormInTheStream(nn.Module):
    """The stream begins behind a norm that adds its gain to it: untied or not, it does not rotate."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6), nn.LayerNorm(6)
        self.up, self.down, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 7)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        stream = self.first(self.embed(x))
        return self.head(self.norm(stream + self.down(nn.functional.gelu(self.up(stream)))))


@pytest.mark.parametrize(("model", "untied"), [(NoGain, 0), (TwoEmbeddings, 1), (OneModule, 0), (NormInTheStream, 0)])
def test_only_heads_are_untied(model: type[nn.Module], untied: int) -> None:
    torch.manual_seed(0)
    net, x = model().double().eval(), torch.randint(7, (2, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    graph = trace(net, x, symmetries="all")
    heads = [fold for fold in graph.folds if isinstance(fold, Untie)]
    assert [(fold.tensor, fold.source) for fold in heads] == [("head.weight", "left.weight")] * untied
    folded = fold(net, graph, x)
    if untied:
        assert folded.network.left.weight is folded.network.right.weight
        assert folded.network.head.weight is not folded.network.left.weight
    assert folded.check is not None and folded.check.exact.error < 1e-12
