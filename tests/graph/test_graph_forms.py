"""The other forms of a graph: networkx, JSON, report, Mermaid, Graphviz and the picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import networkx
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from alignkit import SymmetryGraph
from alignkit.errors import AlignkitError, GraphError, SpecError
from alignkit.graph import PinnedAxis, Provenance
from helpers.graph_strategies import graphs

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

MLP = SymmetryGraph.from_spec(
    {"fc1.weight": "h1 .", "fc1.bias": "h1", "fc2.weight": "h2 h1", "fc2.bias": "h2", "fc3.weight": ". h2"},
    {"fc1.weight": (4, 7), "fc1.bias": (4,), "fc2.weight": (5, 4), "fc2.bias": (5,), "fc3.weight": (3, 5)},
)
ATTENTION = SymmetryGraph.from_spec(
    {
        "qkv.weight": "(heads qk[heads])+(heads qk[heads])+(heads v[heads]) model",
        "out.weight": "model (heads v[heads])",
        "scale": "",
    },
    {"qkv.weight": (4 * 8, 6), "out.weight": (6, 8), "scale": ()},
    sizes={"heads": 4},
)
TRACED = Provenance(
    "traced", "fake", (PinnedAxis("out.weight", 0, "aten.index", "block.0"),), ("aten.foo",), ("scale",)
)


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
        facts = json.loads(MLP.to_json())
        facts["version"] = 7
        with pytest.raises(SpecError, match=r"version 7 .* this release reads version 1"):
            SymmetryGraph.from_json(json.dumps(facts))

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("nodes", 0, "size"), 3, "damaged.*'fc1.weight', axis 0 has size 4, but 'h1' makes 3"),
            (("nodes", 0, "kind"), "signed", "graph do not agree"),
            (("nodes", 2, "layout"), "h2 .", "damaged.*'h2'"),
            (("nodes", 2, "layout"), "h1 * .", "damaged.*not part of the notation"),
            (("nodes", 2, "layout"), "h1", "'fc1.weight' has 2 axes"),
            (("nodes", 2, "shape"), [4, 8], "nothing"),
            (("nodes", 2, "shape"), "wide", "damaged"),
            (("nodes", 2, "layout"), "h9 .", "'fc1.weight' mentions 'h9'"),
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
        facts = json.loads(MLP.to_json())
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


class TestDrawings:
    def test_the_report_tells_groups_and_what_is_fixed(self) -> None:
        graph = SymmetryGraph.from_spec(
            {**ATTENTION.spec(), "fixed": "."}, {**{n: t.shape for n, t in ATTENTION.tensors.items()}, "fixed": (3,)},
            provenance=TRACED,
        )  # fmt: skip
        report = graph.report()
        assert "4 tensors, 2 groups, 2 families, 1 component" in report
        assert "traced on fake tensors" in report
        lines = report.splitlines()
        assert "    qk   4 x 3 units  1 tensor" in lines
        assert "  out.weight, axis 0: pinned by aten.index in block.0" in lines
        assert "  aten.foo" in lines
        assert lines[lines.index("Tensors on which no group acts:") + 1] == "  fixed"

    def test_the_report_of_a_graph_without_groups(self) -> None:
        assert "No group" in SymmetryGraph.from_spec({"w": "."}, {"w": (2,)}).report()

    def test_mermaid_names_every_node_and_axis(self) -> None:
        text = ATTENTION.mermaid()
        assert text.startswith("flowchart")
        for part in (
            "heads<br/>4 units",
            "qk<br/>4 x 3 units",
            "model (heads v[heads])",
            "scale<br/>scalar",
            "|axis 1|",
        ):
            assert part in text

    def test_graphviz_names_every_node_and_escapes(self) -> None:
        graph = SymmetryGraph.from_spec({'odd "name"': "h"}, {'odd "name"': (2,)})
        assert '"odd \\"name\\"\\nh"' in graph.dot()
        assert "&quot;name&quot;" in graph.mermaid()

    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
    def test_the_picture_is_written(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"graph{suffix}"
        ATTENTION.draw(path)
        assert path.stat().st_size > 1000
        assert list(tmp_path.iterdir()) == [path]

    def test_the_picture_labels_every_layer_and_group(self) -> None:
        texts = {text.get_text() for text in MLP.draw().axes[0].texts}
        assert {"fc1", "fc2", "fc3", "h1", "h2", "h1 (4)", "h2 (5)"} <= texts

    def test_repeated_layers_are_drawn_once(self) -> None:
        shapes: dict[str, tuple[int, ...]] = {"embed.weight": (9, 4)}
        spec = {"embed.weight": ". model"}
        for block in range(6):
            shapes |= {f"blocks.{block}.up.weight": (8, 4), f"blocks.{block}.down.weight": (4, 8)}
            spec |= {f"blocks.{block}.up.weight": f"h{block} model", f"blocks.{block}.down.weight": f"model h{block}"}
        figure = SymmetryGraph.from_spec(spec, shapes).draw()
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert "blocks.0.up" in texts
        assert "blocks.1.up" not in texts
        assert "... to blocks.5: 5 more like this" in texts

    def test_layers_of_another_width_are_drawn_themselves(self) -> None:
        spec, shapes = {}, {}
        for block, width in enumerate((8, 8, 9, 8)):
            spec |= {f"b.{block}.up": f"h{block} .", f"b.{block}.down": f". h{block}"}
            shapes |= {f"b.{block}.up": (width, 4), f"b.{block}.down": (4, width)}
        texts = {text.get_text() for text in SymmetryGraph.from_spec(spec, shapes).draw().axes[0].texts}
        assert {"b.0", "b.1", "b.2", "b.3"} <= texts

    def test_a_graph_without_tensors_can_be_drawn(self, tmp_path: Path) -> None:
        SymmetryGraph.from_spec({}, {}).draw(tmp_path / "empty.png")

    def test_an_unknown_format_leaves_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(GraphError, match=r"graph\.xyz"):
            MLP.draw(tmp_path / "graph.xyz")
        assert not list(tmp_path.iterdir())

    def test_without_matplotlib_the_error_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "alignkit.graph.drawing.picture", raising=False)
        for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(AlignkitError, match=r'pip install "alignkit\[plot\]"'):
            MLP.draw()
