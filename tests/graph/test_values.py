"""Graphs, pairs and alignments as values: they pickle, copy and print."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from alignkit import Alignment, Pair, SoftAlignment, SymmetryGraph

GRAPH = SymmetryGraph.from_spec(
    {"qkv": "(heads (qk[heads]+qk[heads]+v[heads])) model", "out": "model (heads v[heads])"},
    {"qkv": (2 * 7, 3), "out": (3, 2 * 3)},
    sizes={"heads": 2, "qk": 2},
)
WAYS = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "deepcopy": copy.deepcopy, "copy": copy.copy}


def pair() -> Pair:
    return GRAPH.bind(*({n: torch.randn(t.shape) for n, t in GRAPH.tensors.items()} for _ in range(2)))


@pytest.mark.parametrize("way", WAYS)
class TestCopies:
    def test_a_graph(self, way):
        copied = WAYS[way](GRAPH)
        assert type(copied) is SymmetryGraph and copied == GRAPH
        assert copied.spec() == GRAPH.spec() and copied.provenance == GRAPH.provenance

    def test_an_alignment(self, way):
        alignment = Alignment.random(GRAPH, 3)
        assert WAYS[way](alignment) == alignment

    def test_a_soft_alignment(self, way):
        soft = SoftAlignment.from_alignment(Alignment.random(GRAPH, 3))
        copied = WAYS[way](soft)
        assert type(copied) is SoftAlignment and copied.graph == GRAPH
        assert all(torch.equal(copied.matrices[name], matrix) for name, matrix in soft.matrices.items())

    def test_a_soft_alignment_with_gradients(self, way):
        shares = torch.full((3, 3), 1 / 3, requires_grad=True)
        soft = SoftAlignment(GRAPH, {**SoftAlignment.centre(GRAPH).matrices, "model": shares * 1.0})
        assert torch.equal(WAYS[way](soft).matrices["model"], shares)

    def test_a_pair(self, way):
        networks = pair()
        copied = WAYS[way](networks)
        assert copied.graph == GRAPH
        assert all(torch.equal(copied.a[name], tensor) for name, tensor in networks.a.items())
        assert all(torch.equal(copied.b[name], tensor) for name, tensor in networks.b.items())


class TestPrinting:
    def test_short_texts(self):
        assert repr(GRAPH) == "SymmetryGraph(2 tensors, 2 groups, 2 families, 10^3.2 symmetries)"
        assert repr(pair()) == f"Pair(graph={GRAPH!r})"
        assert repr(Alignment.identity(GRAPH)) == "Alignment(4 groups, 0 of 15 units moved)"
        assert repr(SoftAlignment.centre(GRAPH)) == "SoftAlignment(4 groups, mean largest share 0.42)"

    def test_notebooks_show_a_table_with_a_row_for_each_group(self):
        alignment = Alignment.random(GRAPH, 1)
        for value in (GRAPH, pair(), alignment, SoftAlignment.centre(GRAPH)):
            html = value._repr_html_()
            assert html.startswith("<table>") and html.endswith("</table>")
            assert all(f">{'  ' * len(GRAPH.ancestors(name))}{name}<" in html for name in GRAPH.groups)
        assert f">{alignment.moved()['v']}<" in alignment._repr_html_()
