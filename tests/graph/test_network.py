"""A graph as one of networkx."""

from __future__ import annotations

import networkx

from alignkit import SymmetryGraph
from helpers.small_graphs import ATTENTION, MLP


class TestNetworkx:
    def test_nodes_and_edges_carry_the_facts(self) -> None:
        network = ATTENTION.nx
        assert network.nodes["qk"] == {"node": "group", "size": 3, "kind": "permutation", "parent": "heads"}
        assert network.nodes["out.weight"]["layout"] == "model (heads v[heads])"
        assert network.nodes["out.weight"]["shape"] == (6, 8)
        assert [facts["relation"] for facts in network["qk"]["heads"].values()] == ["nested_in"]
        places = [(e["axis"], e["segment"], e["factor"]) for e in network["qkv.weight"]["heads"].values()]
        assert places == [(0, 0, (0,)), (0, 1, (0,)), (0, 2, (0,))]

    def test_a_nested_sum_has_a_longer_path(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "(heads:2 (q[heads]:3+v[heads]))"}, {"w": (10,)})
        assert graph.nx["w"]["v"][0]["factor"] == (1, 1, 0)

    def test_networkx_algorithms_run(self) -> None:
        assert networkx.number_weakly_connected_components(MLP.nx) == 1
        assert networkx.descendants(ATTENTION.nx, "out.weight") == {"model", "heads", "v"}
