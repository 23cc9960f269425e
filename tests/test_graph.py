"""`PermutationGraph`: building, invariants, derived facts, JSON, networkx, drawings, binding."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import networkx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from alignkit import PermutationGraph
from alignkit.errors import AlignkitError, BindError, GraphError, ShapeMismatchError, SpecError
from alignkit.graph import Group, PinnedAxis, Provenance, TensorNode, builders, parse_layout
from graph_strategies import all_alignments, graphs

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

MLP = PermutationGraph.from_spec(
    {"fc1.weight": "h1 .", "fc1.bias": "h1", "fc2.weight": "h2 h1", "fc2.bias": "h2", "fc3.weight": ". h2"},
    {"fc1.weight": (4, 7), "fc1.bias": (4,), "fc2.weight": (5, 4), "fc2.bias": (5,), "fc3.weight": (3, 5)},
)
ATTENTION = PermutationGraph.from_spec(
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


class TestSizes:
    def test_groups_get_their_sizes_from_shapes(self) -> None:
        assert {name: group.size for name, group in MLP.groups.items()} == {"h1": 4, "h2": 5}

    def test_a_size_found_on_one_tensor_helps_on_another(self) -> None:
        graph = PermutationGraph.from_spec({"w": "a+b c", "x": "a", "y": "(c b)"}, {"w": (5, 3), "x": (2,), "y": (9,)})
        assert {n: g.size for n, g in graph.groups.items()} == {"a": 2, "b": 3, "c": 3}

    def test_families_are_solved_from_segments(self) -> None:
        assert (ATTENTION.groups["qk"].size, ATTENTION.groups["v"].size) == (3, 2)
        assert (ATTENTION.instances("qk"), ATTENTION.perm_shape("qk")) == (4, (4, 3))

    def test_sizes_can_stand_in_the_notation(self) -> None:
        graph = PermutationGraph.from_spec({"w": "(a:2 b[a])"}, {"w": (6,)})
        assert graph.groups["b"] == Group("b", 3, "a")

    def test_a_dot_takes_what_is_left(self) -> None:
        graph = PermutationGraph.from_spec({"w": "h+.", "b": "h"}, {"w": (7,), "b": (3,)})
        assert graph.tensors["w"].notation() == "h+4"

    def test_a_group_of_one_unit_and_a_graph_without_groups_are_legal(self) -> None:
        assert PermutationGraph.from_spec({"w": "h"}, {"w": (1,)}).order == 1
        assert PermutationGraph.from_spec({"w": ". ."}, {"w": (2, 3)}).log10_order == 0
        assert PermutationGraph.from_spec({}, {}).order == 1


class TestSpec:
    @quick
    @given(graphs())
    def test_round_trip(self, graph: PermutationGraph) -> None:
        shapes = {name: node.shape for name, node in graph.tensors.items()}
        again = PermutationGraph.from_spec(graph.spec(), shapes)
        assert again == graph
        assert again.spec() == graph.spec()
        assert dict(again.groups) == dict(graph.groups)

    def test_no_size_is_written_that_shapes_tell(self) -> None:
        assert MLP.spec()["fc2.weight"] == "h2 h1"
        spec = ATTENTION.spec()
        assert spec["out.weight"] == "model (heads:4 v[heads])"
        assert spec["qkv.weight"].count(":") == 3

    def test_one_written_size_is_enough_for_a_chain_of_products(self) -> None:
        graph = PermutationGraph.from_spec({"w": "(a b)", "x": "(b c)"}, {"w": (6,), "x": (12,)}, sizes={"b": 3})
        assert graph.spec() == {"w": "(a:2 b)", "x": "(b c)"}

    @pytest.mark.parametrize(
        ("one", "other"),
        [("(2 3)", "."), ("h+2+3", "h+5"), ("(h 1)", "h"), ("((h 2)+4)", "(h 2)+4"), ("(h 2 3)", "(h 6)")],
    )
    def test_two_ways_to_write_one_action_give_equal_graphs(self, one: str, other: str) -> None:
        def build(text: str) -> PermutationGraph:
            size = {"(2 3)": 6, ".": 6, "h+2+3": 9, "h+5": 9, "(h 1)": 4, "h": 4}.get(text, 12 if "4" in text else 24)
            return PermutationGraph.from_spec({"w": text, "b": "h"}, {"w": (size,), "b": (4,)})

        assert build(one) == build(other)

    def test_scalars_may_be_left_out(self) -> None:
        model = nn.BatchNorm1d(3)
        names = ("weight", "bias", "running_mean", "running_var")
        graph = PermutationGraph.from_spec(dict.fromkeys(names, "h"), model)
        assert graph.spec()["num_batches_tracked"] == ""
        assert graph.tensors["running_mean"].role == "buffer"
        assert graph.tensors["weight"].role == "parameter"

    def test_one_name_of_tied_tensors_is_enough(self) -> None:
        for device in ("cpu", "meta"):
            with torch.device(device):
                model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
            model["head"].weight = model["embed"].weight
            for like in (model, model.state_dict()):
                graph = PermutationGraph.from_spec({"head.weight": ". model"}, like)
                assert graph.tensors["embed.weight"].names == ("embed.weight", "head.weight")

    def test_tensors_on_the_meta_device_are_enough(self) -> None:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        assert builders.mlp(model).groups["layer0"].size == 4


class TestInvariantsOfNodes:
    """A graph that is put together from nodes, not from a spec."""

    def test_names_of_groups(self) -> None:
        with pytest.raises(GraphError, match="'a b' is no name for a group"):
            PermutationGraph({}, {"a b": Group("a b", 2)})

    def test_empty_groups(self) -> None:
        with pytest.raises(GraphError, match="group 'a' has 0 units"):
            PermutationGraph({}, {"a": Group("a", 0)})

    def test_parents_exist(self) -> None:
        with pytest.raises(GraphError, match="group 'a' is nested in 'b', which is no group"):
            PermutationGraph({}, {"a": Group("a", 2, "b")})

    def test_parents_form_no_circle(self) -> None:
        with pytest.raises(GraphError, match="nested in a circle"):
            PermutationGraph({}, {"a": Group("a", 2, "b"), "b": Group("b", 2, "a")})

    def test_groups_of_tensors_exist(self) -> None:
        node = TensorNode("w", ("w",), (2,), "", parse_layout("h:2"))
        with pytest.raises(GraphError, match="tensor 'w' mentions group 'h', which is no group"):
            PermutationGraph({"w": node}, {})

    def test_sizes_agree_with_the_groups(self) -> None:
        node = TensorNode("w", ("w",), (2,), "", parse_layout("h:2"))
        with pytest.raises(GraphError, match=r"tensor 'w', axis 0: group 'h' has 2 units .* but the graph says 3"):
            PermutationGraph({"w": node}, {"h": Group("h", 3)})

    def test_axes_agree_with_the_shape(self) -> None:
        node = TensorNode("w", ("w",), (5,), "", parse_layout("(h:2 2)"))
        with pytest.raises(ShapeMismatchError, match=r"tensor 'w' has shape \(5,\), but its layout makes \(4,\)"):
            PermutationGraph({"w": node}, {"h": Group("h", 2)})

    def test_names_of_groups_and_tensors_differ(self) -> None:
        with pytest.raises(GraphError, match="'w' is the name of a group and of a tensor"):
            PermutationGraph.from_spec({"w": "w"}, {"w": (2,)})


class TestDerivedFacts:
    @quick
    @given(graphs())
    def test_order_and_its_logarithm_agree(self, graph: PermutationGraph) -> None:
        assert math.isclose(graph.log10_order, math.log10(graph.order), rel_tol=1e-9, abs_tol=1e-9)

    def test_order_counts_every_element(self) -> None:
        graph = PermutationGraph.from_spec(
            {"w": "(a b[a] c[b])", "x": "d"}, {"w": (8,), "x": (3,)}, sizes={"a": 2, "b": 2}
        )
        assert graph.order == len(set(all_alignments(graph))) == 2 * 2**2 * 2**4 * 6

    def test_order_of_a_large_graph_is_exact(self) -> None:
        assert ATTENTION.order == math.factorial(4) * 6**4 * 2**4 * math.factorial(6)

    def test_neighbours_meet_in_one_part_of_a_tensor(self) -> None:
        assert MLP.neighbours("h1") == ("h2",)
        graph = PermutationGraph.from_spec({"w": "a+b c", "v": "a", "u": "c"}, {"w": (5, 2), "v": (2,), "u": (2,)})
        assert graph.neighbours("a") == ("c",)
        assert graph.neighbours("c") == ("a", "b")

    def test_components_are_independent_subproblems(self) -> None:
        graph = PermutationGraph.from_spec(
            {"w": "a b", "x": "b", "y": "c+d .", "z": "d"}, {"w": (2, 3), "x": (3,), "y": (5, 2), "z": (2,)}
        )
        assert set(graph.components()) == {frozenset("ab"), frozenset("c"), frozenset("d")}
        assert ATTENTION.components() == (frozenset(("heads", "qk", "v", "model")),)

    def test_trees(self) -> None:
        assert ATTENTION.roots == ("heads", "model")
        assert ATTENTION.children("heads") == ("qk", "v")
        assert ATTENTION.tree("heads") == ("heads", "qk", "v")
        assert ATTENTION.ancestors("v") == ("heads",)

    def test_tensors_of_a_group_and_uncovered_tensors(self) -> None:
        graph = PermutationGraph.from_spec({"w": "h .", "x": ". ."}, {"w": (2, 3), "x": (3, 2)})
        assert graph.tensors_of("h") == ("w",)
        assert graph.uncovered == ("x",)

    def test_fingerprints_tell_graphs_apart(self) -> None:
        shapes = {"w": (4, 4)}
        fingerprints = [
            PermutationGraph.from_spec({"w": text}, shapes).fingerprint
            for text in ("h h", "h k", "h .", ". h", ". .", "k h", "(h:2 2) .", "(2 h) .", "(h:2 d[h]) .")
        ]
        assert len(set(fingerprints)) == len(fingerprints)

    def test_the_order_of_the_tensors_does_not_matter_for_equality(self) -> None:
        shapes = {"w": (4, 2), "b": (4,)}
        one = PermutationGraph.from_spec({"w": "h .", "b": "h"}, shapes)
        other = PermutationGraph.from_spec({"b": "h", "w": "h ."}, dict(reversed(shapes.items())))
        assert one == other
        assert hash(one) == hash(other)

    def test_a_graph_cannot_be_changed(self) -> None:
        with pytest.raises(TypeError):
            MLP.groups["h1"] = Group("h1", 9)
        with pytest.raises(networkx.NetworkXError):
            MLP.nx.add_node("x")


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
        graph = PermutationGraph.from_spec({"w": "(heads:2 (q[heads]:3+v[heads]))"}, {"w": (10,)})
        assert graph.nx["w"]["v"][0]["factor"] == (1, 1, 0)

    def test_networkx_algorithms_run(self) -> None:
        assert networkx.number_weakly_connected_components(MLP.nx) == 1
        assert networkx.descendants(ATTENTION.nx, "out.weight") == {"model", "heads", "v"}


class TestJson:
    @quick
    @given(graphs())
    def test_round_trip(self, graph: PermutationGraph) -> None:
        again = PermutationGraph.from_json(graph.to_json())
        assert again == graph
        assert dict(again.tensors) == dict(graph.tensors)
        assert list(again.groups.items()) == list(graph.groups.items())

    def test_provenance_roles_dtypes_and_ties_survive(self) -> None:
        shared = torch.zeros(3, 2)
        spec = {"a": "h .", "scale": ""}
        like = {"a": shared, "b": shared, "scale": torch.tensor(1.0, dtype=torch.float16)}
        graph = PermutationGraph.from_spec(spec, like, provenance=TRACED)
        again = PermutationGraph.from_json(graph.to_json())
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
        facts["graph"]["version"] = 7
        with pytest.raises(SpecError, match=r"version 7 .* this release reads 1"):
            PermutationGraph.from_json(json.dumps(facts))

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("nodes", 0, "size"), 3, "broken.*'fc1.weight', axis 0 has size 4, but 'h1' makes 3"),
            (("nodes", 0, "kind"), "signed", "graph do not agree"),
            (("nodes", 2, "layout"), "h2 .", "broken.*'h2'"),
            (("nodes", 2, "layout"), "h1 * .", "broken.*not part of the notation"),
            (("nodes", 2, "layout"), "h1", "'fc1.weight' has 2 axes"),
            (("nodes", 2, "shape"), [4, 8], "nothing"),
            (("nodes", 2, "shape"), "wide", "broken"),
            (("nodes", 2, "layout"), "h9 .", "'fc1.weight' mentions 'h9'"),
            (("edges", 0, "axis"), 1, "edges do not agree"),
            (("graph", "fingerprint"), "0" * 32, "graph do not agree"),
            (("graph", "provenance"), {}, "broken"),
            (("graph", "provenance"), None, "broken"),
            (("graph", "format"), "other", "no permutation graph"),
            (("nodes",), None, "broken"),
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
            PermutationGraph.from_json(json.dumps(facts))

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"graph": []}', "[" * 100_000])
    def test_other_text_is_refused(self, text: str) -> None:
        with pytest.raises(SpecError, match="JSON"):
            PermutationGraph.from_json(text)


class TestDrawings:
    def test_the_report_tells_groups_and_what_is_fixed(self) -> None:
        graph = PermutationGraph.from_spec(
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
        assert "No group" in PermutationGraph.from_spec({"w": "."}, {"w": (2,)}).report()

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
        graph = PermutationGraph.from_spec({'odd "name"': "h"}, {'odd "name"': (2,)})
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
        figure = PermutationGraph.from_spec(spec, shapes).draw()
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert "blocks.0.up" in texts
        assert "blocks.1.up" not in texts
        assert "... to blocks.5: 5 more like this" in texts

    def test_layers_of_another_width_are_drawn_themselves(self) -> None:
        spec, shapes = {}, {}
        for block, width in enumerate((8, 8, 9, 8)):
            spec |= {f"b.{block}.up": f"h{block} .", f"b.{block}.down": f". h{block}"}
            shapes |= {f"b.{block}.up": (width, 4), f"b.{block}.down": (4, width)}
        texts = {text.get_text() for text in PermutationGraph.from_spec(spec, shapes).draw().axes[0].texts}
        assert {"b.0", "b.1", "b.2", "b.3"} <= texts

    def test_a_graph_without_tensors_can_be_drawn(self, tmp_path: Path) -> None:
        PermutationGraph.from_spec({}, {}).draw(tmp_path / "empty.png")

    def test_an_unknown_format_leaves_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(GraphError, match=r"graph\.xyz"):
            MLP.draw(tmp_path / "graph.xyz")
        assert not list(tmp_path.iterdir())

    def test_without_matplotlib_the_error_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "alignkit.graph.picture", raising=False)
        for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(AlignkitError, match=r'pip install "alignkit\[plot\]"'):
            MLP.draw()


class TestBind:
    def test_modules_state_dicts_and_files(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        graph = builders.mlp(model)
        torch.save(model.state_dict(), tmp_path / "a.pt")
        for source in (model, model.state_dict(), tmp_path / "a.pt", str(tmp_path / "a.pt")):
            pair = graph.bind(source, model)
            assert torch.equal(pair.a["0.weight"], model[0].weight)
            assert not pair.a["0.weight"].requires_grad
            assert pair.module_b is model
            assert (pair.module_a is model) == (source is model)

    def test_the_pair_can_be_swapped(self) -> None:
        one, two = nn.Linear(2, 2), nn.Linear(2, 2)
        pair = builders.mlp(one).bind(one, two).swapped()
        assert torch.equal(pair.a["weight"], two.weight)
        assert pair.module_b is one

    def test_every_mismatch_of_both_models_is_listed_at_once(self) -> None:
        good = {name: torch.ones(node.shape) for name, node in MLP.tensors.items()}
        bad_a = {**good, "extra": torch.ones(1), "fc1.bias": torch.tensor([1.0, float("nan"), 1, 1])}
        bad_b = {**good, "fc2.weight": torch.ones(4, 4), "fc3.weight": good["fc3.weight"].double()}
        del bad_b["fc2.bias"]
        with pytest.raises(BindError) as caught:
            MLP.bind(bad_a, bad_b)
        message = str(caught.value)
        assert "5 problems" in message
        for part in (
            "'extra' of A is not in the graph",
            "'fc1.bias' of A holds NaN or infinity",
            "'fc2.weight' has shape (4, 4) in B, the graph says (5, 4)",
            "'fc2.bias' is missing in B",
            "'fc3.weight' is float32 in A but float64 in B",
        ):
            assert part in message

    def test_tied_tensors_that_differ_are_refused(self) -> None:
        shared = torch.ones(3)
        graph = PermutationGraph.from_spec({"a": "h"}, {"a": shared, "b": shared})
        good = {"a": torch.ones(3), "b": torch.ones(3)}
        graph.bind(good, {"a": torch.ones(3)})
        with pytest.raises(BindError, match="'b' and 'a' are tied in the graph but differ in B"):
            graph.bind(good, {"a": torch.ones(3), "b": torch.zeros(3)})
