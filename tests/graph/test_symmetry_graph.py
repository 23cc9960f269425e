"""`SymmetryGraph`: building, invariants, derived facts, binding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import networkx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from alignkit import SymmetryGraph
from alignkit.errors import ArgumentError, BindError, GraphError, ShapeMismatchError
from alignkit.graph import Group, TensorNode, builders, parse_layout
from helpers.graph_strategies import all_alignments, graphs
from helpers.small_graphs import ATTENTION, MLP

quick = settings(max_examples=60, suppress_health_check=list(HealthCheck))


class TestSizes:
    def test_groups_get_their_sizes_from_shapes(self) -> None:
        assert {name: group.size for name, group in MLP.groups.items()} == {"h1": 4, "h2": 5}

    def test_a_size_found_on_one_tensor_helps_on_another(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "a+b c", "x": "a", "y": "(c b)"}, {"w": (5, 3), "x": (2,), "y": (9,)})
        assert {n: g.size for n, g in graph.groups.items()} == {"a": 2, "b": 3, "c": 3}

    def test_families_are_solved_from_segments(self) -> None:
        assert (ATTENTION.groups["qk"].size, ATTENTION.groups["v"].size) == (3, 2)
        assert (ATTENTION.instances("qk"), ATTENTION.element_shape("qk")) == (4, (4, 3))

    def test_sizes_can_stand_in_the_notation(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "(a:2 b[a])"}, {"w": (6,)})
        assert graph.groups["b"] == Group("b", 3, "a")

    def test_a_dot_takes_what_is_left(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "h+.", "b": "h"}, {"w": (7,), "b": (3,)})
        assert graph.tensors["w"].notation() == "h+4"

    def test_a_group_of_one_unit_and_a_graph_without_groups_are_legal(self) -> None:
        assert SymmetryGraph.from_spec({"w": "h"}, {"w": (1,)}).order == 1
        assert SymmetryGraph.from_spec({"w": ". ."}, {"w": (2, 3)}).log10_order == 0
        assert SymmetryGraph.from_spec({}, {}).order == 1


class TestSpec:
    @quick
    @given(graphs())
    def test_round_trip(self, graph: SymmetryGraph) -> None:
        shapes = {name: node.shape for name, node in graph.tensors.items()}
        again = SymmetryGraph.from_spec(graph.spec(), shapes)
        assert again == graph
        assert again.spec() == graph.spec()
        assert dict(again.groups) == dict(graph.groups)

    def test_no_size_is_written_that_shapes_tell(self) -> None:
        assert MLP.spec()["fc2.weight"] == "h2 h1"
        spec = ATTENTION.spec()
        assert spec["out.weight"] == "model (heads:4 v[heads])"
        assert spec["qkv.weight"].count(":") == 3

    def test_one_written_size_is_enough_for_a_chain_of_products(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "(a b)", "x": "(b c)"}, {"w": (6,), "x": (12,)}, sizes={"b": 3})
        assert graph.spec() == {"w": "(a:2 b)", "x": "(b c)"}

    @pytest.mark.parametrize(
        ("one", "other"),
        [("(2 3)", "."), ("h+2+3", "h+5"), ("(h 1)", "h"), ("((h 2)+4)", "(h 2)+4"), ("(h 2 3)", "(h 6)")],
    )
    def test_two_ways_to_write_one_action_give_equal_graphs(self, one: str, other: str) -> None:
        def build(text: str) -> SymmetryGraph:
            size = {"(2 3)": 6, ".": 6, "h+2+3": 9, "h+5": 9, "(h 1)": 4, "h": 4}.get(text, 12 if "4" in text else 24)
            return SymmetryGraph.from_spec({"w": text, "b": "h"}, {"w": (size,), "b": (4,)})

        assert build(one) == build(other)

    def test_scalars_may_be_left_out(self) -> None:
        model = nn.BatchNorm1d(3)
        names = ("weight", "bias", "running_mean", "running_var")
        graph = SymmetryGraph.from_spec(dict.fromkeys(names, "h"), model)
        assert graph.spec()["num_batches_tracked"] == ""
        assert graph.tensors["running_mean"].role == "buffer"
        assert graph.tensors["weight"].role == "parameter"

    def test_one_name_of_tied_tensors_is_enough(self) -> None:
        for device in ("cpu", "meta"):
            with torch.device(device):
                model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
            model["head"].weight = model["embed"].weight
            for like in (model, model.state_dict()):
                graph = SymmetryGraph.from_spec({"head.weight": ". model"}, like)
                assert graph.tensors["embed.weight"].names == ("embed.weight", "head.weight")

    def test_tensors_on_the_meta_device_are_enough(self) -> None:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        assert builders.mlp(model).groups["layer.0"].size == 4


class TestInvariantsOfNodes:
    """A graph that is put together from nodes, not from a spec."""

    def test_names_of_groups(self) -> None:
        with pytest.raises(GraphError, match="'a b' is not a name for a group"):
            SymmetryGraph({}, {"a b": Group("a b", 2)})

    def test_empty_groups(self) -> None:
        with pytest.raises(GraphError, match="group 'a' has 0 units"):
            SymmetryGraph({}, {"a": Group("a", 0)})

    @pytest.mark.parametrize("wrong", [{3: Group("a", 2)}, {("a", 1): Group("a", 2)}, {"a": 2}, {"a": None}])
    def test_parts_have_names(self, wrong: Any) -> None:
        with pytest.raises(GraphError, match="a Group for each name, found"):
            SymmetryGraph({}, wrong)
        with pytest.raises(GraphError, match="a TensorNode for each name, found"):
            SymmetryGraph(wrong, {})
        with pytest.raises(ArgumentError, match="groups="):
            SymmetryGraph({}, list(wrong))

    def test_parents_exist(self) -> None:
        with pytest.raises(GraphError, match="group 'a' is nested in 'b', which is not a group"):
            SymmetryGraph({}, {"a": Group("a", 2, "b")})

    def test_parents_form_no_circle(self) -> None:
        with pytest.raises(GraphError, match="nested in a circle"):
            SymmetryGraph({}, {"a": Group("a", 2, "b"), "b": Group("b", 2, "a")})

    def test_groups_of_tensors_exist(self) -> None:
        node = TensorNode("w", ("w",), (2,), "", parse_layout("h:2"))
        with pytest.raises(GraphError, match="tensor 'w' mentions group 'h', which is not a group"):
            SymmetryGraph({"w": node}, {})

    def test_sizes_agree_with_the_groups(self) -> None:
        node = TensorNode("w", ("w",), (2,), "", parse_layout("h:2"))
        with pytest.raises(GraphError, match=r"tensor 'w', axis 0: group 'h' has 2 units .* but the graph says 3"):
            SymmetryGraph({"w": node}, {"h": Group("h", 3)})

    def test_axes_agree_with_the_shape(self) -> None:
        node = TensorNode("w", ("w",), (5,), "", parse_layout("(h:2 2)"))
        with pytest.raises(ShapeMismatchError, match=r"tensor 'w' has shape \(5,\), but its layout makes \(4,\)"):
            SymmetryGraph({"w": node}, {"h": Group("h", 2)})

    def test_names_of_groups_and_tensors_differ(self) -> None:
        with pytest.raises(GraphError, match="'w' is the name of a group and of a tensor"):
            SymmetryGraph.from_spec({"w": "w"}, {"w": (2,)})


class TestDerivedFacts:
    @quick
    @given(graphs())
    def test_order_and_its_logarithm_agree(self, graph: SymmetryGraph) -> None:
        assert math.isclose(graph.log10_order, math.log10(graph.order), rel_tol=1e-9, abs_tol=1e-9)

    def test_order_counts_every_element(self) -> None:
        graph = SymmetryGraph.from_spec(
            {"w": "(a b[a] c[b])", "x": "d"}, {"w": (8,), "x": (3,)}, sizes={"a": 2, "b": 2}
        )
        assert graph.order == len(set(all_alignments(graph))) == 2 * 2**2 * 2**4 * 6

    def test_order_of_a_large_graph_is_exact(self) -> None:
        assert ATTENTION.order == math.factorial(4) * 6**4 * 2**4 * math.factorial(6)

    def test_neighbours_meet_in_one_part_of_a_tensor(self) -> None:
        assert MLP.neighbours("h1") == ("h2",)
        graph = SymmetryGraph.from_spec({"w": "a+b c", "v": "a", "u": "c"}, {"w": (5, 2), "v": (2,), "u": (2,)})
        assert graph.neighbours("a") == ("c",)
        assert graph.neighbours("c") == ("a", "b")

    def test_components_are_independent_subproblems(self) -> None:
        graph = SymmetryGraph.from_spec(
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
        graph = SymmetryGraph.from_spec({"w": "h .", "x": ". ."}, {"w": (2, 3), "x": (3, 2)})
        assert graph.tensors_of("h") == ("w",)
        assert graph.uncovered == ("x",)

    def test_fingerprints_tell_graphs_apart(self) -> None:
        shapes = {"w": (4, 4)}
        fingerprints = [
            SymmetryGraph.from_spec({"w": text}, shapes).fingerprint
            for text in ("h h", "h k", "h .", ". h", ". .", "k h", "(h:2 2) .", "(2 h) .", "(h:2 d[h]) .")
        ]
        assert len(set(fingerprints)) == len(fingerprints)

    def test_the_order_of_the_tensors_does_not_matter_for_equality(self) -> None:
        shapes = {"w": (4, 2), "b": (4,)}
        one = SymmetryGraph.from_spec({"w": "h .", "b": "h"}, shapes)
        other = SymmetryGraph.from_spec({"b": "h", "w": "h ."}, dict(reversed(shapes.items())))
        assert one == other
        assert hash(one) == hash(other)

    def test_a_graph_cannot_be_changed(self) -> None:
        with pytest.raises(TypeError):
            MLP.groups["h1"] = Group("h1", 9)
        with pytest.raises(networkx.NetworkXError):
            MLP.nx.add_node("x")


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

    def test_pairs_can_be_compared_and_collected(self) -> None:
        model = nn.Linear(2, 2)
        graph = builders.mlp(model)
        pair, other = graph.bind(model, nn.Linear(2, 2)), graph.bind(model, nn.Linear(2, 2))
        assert pair != other
        assert len({pair, other, pair}) == 2

    def test_the_pair_can_be_swapped(self) -> None:
        one, two = nn.Linear(2, 2), nn.Linear(2, 2)
        pair = builders.mlp(one).bind(one, two).swapped()
        assert torch.equal(pair.a["weight"], two.weight)
        assert pair.module_b is one

    def test_every_mismatch_of_both_models_is_listed_at_once(self) -> None:
        good = {name: torch.ones(node.shape) for name, node in MLP.tensors.items()}
        bad_a = {**good, "extra": torch.ones(1), "fc1.bias": torch.tensor([1.0, float("nan"), 1, 1])}
        bad_b = {**good, "fc2.weight": torch.ones(4, 4), "fc3.weight": good["fc3.weight"].long()}
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
            "'fc3.weight' is float32 in A but int64 in B",
        ):
            assert part in message

    def test_tied_tensors_that_differ_are_refused(self) -> None:
        shared = torch.ones(3)
        graph = SymmetryGraph.from_spec({"a": "h"}, {"a": shared, "b": shared})
        good = {"a": torch.ones(3), "b": torch.ones(3)}
        graph.bind(good, {"a": torch.ones(3)})
        with pytest.raises(BindError, match="'b' and 'a' are tied in the graph but differ in B"):
            graph.bind(good, {"a": torch.ones(3), "b": torch.zeros(3)})
