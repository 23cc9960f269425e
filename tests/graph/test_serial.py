"""A graph as JSON: what is written is read again, and other text is refused."""

from __future__ import annotations

import json

import networkx
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from alignkit import SymmetryGraph
from alignkit.errors import SpecError
from helpers.documents import unsealed
from helpers.graph_strategies import graphs
from helpers.small_graphs import ATTENTION, MLP, TRACED

quick = settings(max_examples=60, suppress_health_check=list(HealthCheck))


class TestJson:
    @quick
    @given(graphs())
    def test_round_trip(self, graph: SymmetryGraph) -> None:
        again = SymmetryGraph.from_json(graph.to_json())
        assert again == graph
        assert dict(again.tensors) == dict(graph.tensors)
        assert list(again.groups.items()) == list(graph.groups.items())

    def test_provenance_roles_dtypes_and_ties_survive(self) -> None:
        shared = torch.zeros(3, 2)
        spec = {"a": "h .", "scale": ""}
        like = {"a": shared, "b": shared, "scale": torch.tensor(1.0, dtype=torch.float16)}
        graph = SymmetryGraph.from_spec(spec, like, provenance=TRACED)
        again = SymmetryGraph.from_json(graph.to_json())
        assert again.provenance == TRACED
        assert dict(again.tensors) == dict(graph.tensors)
        assert again.tensors["a"].names == ("a", "b")

    def test_networkx_reads_it(self) -> None:
        network = networkx.node_link_graph(json.loads(ATTENTION.to_json()), edges="edges")
        assert networkx.utils.graphs_equal(
            networkx.MultiDiGraph(network.edges), networkx.MultiDiGraph(ATTENTION.nx.edges)
        )

    def test_another_version_is_refused(self) -> None:
        facts = unsealed(MLP.to_json())
        facts["version"] = 7
        with pytest.raises(SpecError, match=r"version 7 .* this release reads version 2"):
            SymmetryGraph.from_json(json.dumps(facts))

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("nodes", 0, "size"), 3, "damaged.*'fc1.weight', axis 0 has size 4, but 'h1' makes 3"),
            (("nodes", 0, "kind"), "signed", "group .h1. is permuted"),
            (("nodes", 2, "layout"), "h2 .", "damaged.*'h2'"),
            (("nodes", 2, "layout"), "h1 * .", "damaged.*not part of the notation"),
            (("nodes", 2, "layout"), "h1", "'fc1.weight' has 2 axes"),
            (("nodes", 2, "shape"), [4, 8], "nothing"),
            (("nodes", 2, "shape"), "wide", "damaged"),
            (("nodes", 2, "layout"), "h9 .", "'fc1.weight' mentions group 'h9'"),
            (("edges", 0, "axis"), 1, "edges do not agree"),
            (("graph", "fingerprint"), "0" * 32, "graph do not agree"),
            (("graph", "provenance"), {}, "damaged"),
            (("graph", "provenance"), None, "damaged"),
            (("format",), "other", "not a symmetry graph, it is 'other'"),
            (("nodes",), None, "damaged"),
            (("edges",), [], "edges do not agree"),
        ],
    )
    def test_changed_text_is_refused(self, path: tuple[str | int, ...], value: object, message: str) -> None:
        facts = unsealed(MLP.to_json())
        place = facts
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(SpecError, match=message.replace("nothing", "graph do not agree")):
            SymmetryGraph.from_json(json.dumps(facts))

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"graph": []}', "[" * 100_000])
    def test_other_text_is_refused(self, text: str) -> None:
        with pytest.raises(SpecError, match=r"JSON|not a symmetry graph"):
            SymmetryGraph.from_json(text)
