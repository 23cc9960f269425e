"""Kinds of groups: the group axioms for each and for families of each, files, what they say, and networks of each."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alignkit import Alignment, SymmetryGraph
from alignkit.errors import AlignmentError, GraphError, SpecError, VerificationError
from alignkit.graph import Group, format_layout, parse_layout
from alignkit.graph.kinds import KINDS, PLANES, GroupKind
from alignkit.testing import KIND_ARCHITECTURES, planted_pair
from helpers.documents import unsealed
from helpers.graph_strategies import distinct_weights, graphs, slow_apply

quick = settings(max_examples=60, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**31)
MARKED = [kind for kind, facts in KINDS.items() if facts.mark]
ROTATING = [kind for kind in MARKED if KINDS[kind].rotates]


def products(signs: int, owner: str) -> SymmetryGraph:
    """Units that own several signs: each has a factor with one of them, and what reads the units has all."""
    unit = "u[e]" if "e" in owner else "u"
    own = [f"-s{i}[u]" for i in range(signs)]
    spec = {f"factor{i}": f"{owner} ({unit} {sign}) ." for i, sign in enumerate(own)}
    spec |= {"gate": f"{owner} {unit} .", "down": f"{owner} . ({unit} {' '.join(own)})"}
    like = dict.fromkeys(spec, (2, 5, 3) if "e" in owner else (1, 5, 3)) | {"down": (2 if "e" in owner else 1, 3, 5)}
    return SymmetryGraph.from_spec(spec, like, sizes={f"s{i}": 1 for i in range(signs)})


graphs_of_products = st.builds(products, st.integers(1, 3), st.sampled_from([".", "e", "=e"]))
graphs_of_kinds = (
    st.one_of(graphs((kind, "permutation")) for kind in MARKED) | graphs(tuple(KINDS)) | graphs_of_products
)


def family(kind: GroupKind, size: int = 4) -> SymmetryGraph:
    """Heads that change places, and units of a kind in each: one element for both query heads of a kv head."""
    own = f"{KINDS[kind].mark}d[kv]"
    return SymmetryGraph.from_spec(
        {"wq": f"(kv q[kv] {own}) .", "wk": f"(kv {own}) .", "out": f". (kv q[kv] {own})"},
        {"wq": (3 * 2 * size, 5), "wk": (3 * size, 5), "out": (5, 3 * 2 * size)},
        sizes={"kv": 3, "q": 2},
    )


def root(kind: GroupKind, size: int = 4) -> SymmetryGraph:
    mark = KINDS[kind].mark
    return SymmetryGraph.from_spec({"w": f"{mark}h .", "v": f". {mark}h"}, {"w": (size, 3), "v": (2, size)})


def numbers(graph: SymmetryGraph) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in distinct_weights(graph).items()}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    largest = max((float(t.abs().max()) for t in a.values() if t.numel()), default=0.0)
    return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], rtol=0, atol=1e-12 * largest) for n in a)


class TestGroupAxioms:
    @quick
    @given(graphs_of_kinds, seeds, seeds, seeds)
    def test_composition_is_associative_with_inverses_and_a_neutral_element(
        self, graph: SymmetryGraph, one: int, two: int, three: int
    ) -> None:
        f, g, h = (Alignment.random(graph, seed) for seed in (one, two, three))
        identity = Alignment.identity(graph)
        assert (f @ g) @ h == f @ (g @ h)
        assert f @ identity == f == identity @ f
        assert f @ f.inverse() == identity == f.inverse() @ f
        assert (f @ f.inverse()).is_identity
        assert (f @ g).inverse() == g.inverse() @ f.inverse()

    @quick
    @given(graphs_of_kinds, seeds, seeds)
    def test_applying_a_product_is_applying_one_after_the_other(self, graph: SymmetryGraph, one: int, two: int) -> None:
        g, h, weights = Alignment.random(graph, one), Alignment.random(graph, two), numbers(graph)
        assert close((g @ h).apply(weights), g.apply(h.apply(weights)))
        assert close(g.inverse().apply(g.apply(weights)), weights)

    @quick
    @given(graphs_of_kinds, seeds)
    def test_applying_agrees_with_moving_single_elements(self, graph: SymmetryGraph, seed: int) -> None:
        weights, g = numbers(graph), Alignment.random(graph, seed)
        assert close(g.apply(weights), slow_apply(graph, g, weights))

    @quick
    @given(graphs(("signed", "permutation")), seeds, st.sampled_from([torch.float32, torch.bfloat16, torch.complex64]))
    def test_signs_are_exact_in_bits(self, graph: SymmetryGraph, seed: int, dtype: torch.dtype) -> None:
        g, weights = Alignment.random(graph, seed), {n: t.to(dtype) for n, t in distinct_weights(graph).items()}
        back = g.inverse().apply(g.apply(weights))
        assert all(torch.equal(back[name].view(torch.uint8), weights[name].view(torch.uint8)) for name in weights)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("graph", [root, family])
    def test_isometries_keep_the_size_of_every_tensor(self, kind, graph) -> None:
        weights = numbers(graph(kind))
        moved = Alignment.random(graph(kind), 1).apply(weights)
        assert all(math.isclose(moved[name].norm(), weights[name].norm(), rel_tol=1e-13) for name in weights)
        assert any(not torch.equal(moved[name], weights[name]) for name in weights)

    @pytest.mark.parametrize("kind", MARKED)
    def test_random_elements_are_spread_evenly(self, kind) -> None:
        """The mean of a uniform element is the projection to what every element keeps: 0, but for the ones."""
        graph = root(kind)
        mean = sum(Alignment.random(graph, seed).as_matrices()["h"].double() for seed in range(2000)) / 2000
        kept = torch.full((4, 4), 0.25 if kind == "centred" else 0.0, dtype=torch.float64)
        assert (mean - kept).abs().max() < 0.08
        if kind not in PLANES:
            signs = [Alignment.random(graph, seed).as_matrices()["h"].double().det() > 0 for seed in range(100)]
            assert 20 < sum(signs) < 80


class TestElements:
    def test_an_index_with_a_tilde_brings_a_unit_with_its_sign_changed(self) -> None:
        g = Alignment(root("signed", 3), {"h": torch.tensor([~2, 0, ~1])})
        w = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
        weights = {"w": torch.cat([w, torch.zeros(3, 1)], 1), "v": torch.ones(2, 3)}
        assert g.apply(weights)["w"][:, :2].tolist() == [[-5, -6], [1, 2], [-3, -4]]
        assert g.apply(weights)["v"].tolist() == [[-1, 1, -1]] * 2
        assert g.flat("h").tolist() == [~2, 0, ~1]
        assert g.moved() == {"h": 3}
        assert Alignment(root("signed", 3), {"h": torch.tensor([0, ~1, 2])}).moved() == {"h": 1}

    @pytest.mark.parametrize("kind", ROTATING)
    def test_matrices_times_units_are_the_aligned_units(self, kind) -> None:
        graph, weights = root(kind), numbers(root(kind))
        g = Alignment.random(graph, 3)
        torch.testing.assert_close(g.as_matrices()["h"] @ weights["w"], g.apply(weights)["w"])

    def test_planes_are_those_of_their_pairing(self) -> None:
        pairs = {"planes": [{0, 2}, {1, 3}], "adjacent_planes": [{0, 1}, {2, 3}]}
        for kind, planes in pairs.items():
            matrix = Alignment.random(root(kind), 0).elements["h"]
            assert {frozenset(row.nonzero().flatten().tolist()) for row in matrix} == set(map(frozenset, planes))

    def test_a_rotation_in_a_family_acts_on_what_arrives(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "(heads ~d[heads])"}, {"w": (4,)}, sizes={"heads": 2})
        mirror = torch.tensor([[0.0, -1], [1, 0]], dtype=torch.float64)
        g = Alignment(graph, {"heads": torch.tensor([1, 0]), "d": torch.stack([mirror, torch.eye(2).double()])})
        assert g.apply({"w": torch.tensor([10.0, 11, 20, 21])})["w"].tolist() == [-21, 20, 10, 11]
        assert g.moved() == {"heads": 2, "d": 4}

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
    @pytest.mark.parametrize("kind", ROTATING)
    def test_rotations_are_rounded_once(self, kind, dtype) -> None:
        graph = family(kind)
        weights = {name: (tensor / 7).to(dtype) for name, tensor in numbers(graph).items()}
        g = Alignment.random(graph, 2)
        wide = g.apply({name: tensor.to(torch.promote_types(dtype, torch.float64)) for name, tensor in weights.items()})
        for name, tensor in g.apply(weights).items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, wide[name].to(dtype))

    def test_what_a_dtype_cannot_hold_after_rotation_is_told(self) -> None:
        weights = {"w": torch.full((4, 3), 6e4).half(), "v": torch.ones(2, 4).half()}
        hadamard = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double() / 2
        with pytest.raises(AlignmentError, match=r"'w' overflows: .* float16 holds up to 6.55e"):
            Alignment(root("orthogonal"), {"h": hadamard}).apply(weights)

    @pytest.mark.parametrize("kind", MARKED)
    def test_only_permutations_act_on_whole_numbers(self, kind) -> None:
        weights = {name: tensor.long() for name, tensor in numbers(root(kind)).items()}
        with pytest.raises(AlignmentError, match=r"'w' holds int64, which cannot be .* Only permutations"):
            Alignment.random(root(kind), 0).apply(weights)
        with pytest.raises(GraphError, match=r"axis 0: group 'h' is .* the tensor holds int64"):
            SymmetryGraph.from_spec(root(kind).spec(), weights)

    def test_equality_of_rotations_has_a_tolerance_and_equal_ones_equal_hashes(self) -> None:
        g = Alignment.random(root("orthogonal"), 0)
        near = Alignment(g.graph, {"h": g.elements["h"] * (1 + 1e-11)})
        far = Alignment.random(g.graph, 1)
        assert g == near != far
        assert hash(g) == hash(near)

    def test_units_that_rotate_come_from_no_single_place(self) -> None:
        with pytest.raises(AlignmentError, match="units of group 'h' are rotated"):
            Alignment.random(root("centred"), 0).flat("h")

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("graph", [root, family])
    def test_saved_and_loaded_is_the_same_in_bits(self, kind, graph, tmp_path) -> None:
        g = Alignment.random(graph(kind), 5)
        g.save(tmp_path / "g.safetensors")
        read = Alignment.load(tmp_path / "g.safetensors", graph(kind))
        assert all(torch.equal(read.elements[name], element) for name, element in g.elements.items())
        assert "moved" in repr(read)
        assert "<td" in read._repr_html_()

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_unit(self, kind) -> None:
        if kind not in PLANES:
            g = Alignment.random(root(kind, 1), 1)
            assert g @ g.inverse() == Alignment.identity(g.graph)


def off(kind: GroupKind, change: Tensor) -> Tensor:
    return Alignment.random(root(kind), 0).elements["h"] + change


NO_ELEMENT = {
    "not orthogonal": (root("orthogonal"), off("orthogonal", 1e-3 * torch.eye(4)), r"off the identity by 0\.00"),
    "not a number": (root("orthogonal"), off("orthogonal", torch.nan * torch.eye(4)), "off the identity by nan"),
    "moves ones": (root("centred"), Alignment.random(root("orthogonal"), 0).elements["h"], "a row is off 1 by"),
    "no plane": (root("planes"), Alignment.random(root("adjacent_planes"), 0).elements["h"], "an entry is off by"),
    "a mirror": (root("planes"), torch.diag(torch.tensor([1.0, 1, 1, -1])).double(), "an entry is off by"),
    "not of size 1": (root("planes"), 2 * torch.eye(4).double(), "off the identity by 3"),
    "indices": (root("orthogonal"), torch.arange(4), r"needs float64 numbers of shape \(4, 4\), found torch.int64"),
    "matrix": (root("signed"), torch.eye(4), r"needs whole numbers of shape \(4,\)"),
    "twice": (root("signed"), torch.tensor([0, ~0, 1, 2]), "not a permutation of 0 .. 3"),
    "sign of a permutation": (root("permutation"), torch.tensor([0, ~1, 2, 3]), "not a permutation of 0 .. 3"),
}


@pytest.mark.parametrize("case", NO_ELEMENT)
def test_what_is_no_element_of_its_kind_is_refused_with_how_far_it_is_off(case) -> None:
    graph, element, message = NO_ELEMENT[case]
    with pytest.raises(AlignmentError, match=message):
        Alignment(graph, {"h": element})


class TestNotation:
    @pytest.mark.parametrize("kind", MARKED)
    def test_a_mark_stands_in_front_of_every_mention(self, kind) -> None:
        mark = KINDS[kind].mark
        graph = SymmetryGraph.from_spec({"w": f"(a {mark}b[a]:4)+{mark}c ."}, {"w": (10, 3)}, sizes={"a": 2})
        assert graph.spec()["w"] == f"(a:2 {mark}b[a]:4)+{mark}c ."
        assert {name: group.kind for name, group in graph.groups.items()} == {"a": "permutation", "b": kind, "c": kind}
        assert format_layout(parse_layout(f"{mark}c:2 .")) == f"{mark}c ."

    @pytest.mark.parametrize("kind", MARKED)
    def test_one_group_has_one_kind(self, kind) -> None:
        wrong = {**root(kind).spec(), "v": ". h"}
        with pytest.raises(GraphError, match=r"group 'h' is permuted \(no mark\).* axis 1, but .*Write the same mark"):
            SymmetryGraph.from_spec(wrong, {"w": (4, 3), "v": (2, 4)})

    @pytest.mark.parametrize("kind", MARKED)
    def test_only_units_that_are_permuted_own_others(self, kind) -> None:
        with pytest.raises(GraphError, match=r"nested in 'h', which is .*Only units that are permuted own others"):
            SymmetryGraph.from_spec({"w": f"({KINDS[kind].mark}h d[h])"}, {"w": (8,)}, sizes={"h": 4})

    @pytest.mark.parametrize("kind", sorted(PLANES))
    def test_planes_need_an_even_number_of_units(self, kind) -> None:
        with pytest.raises(GraphError, match="has 3 units: their number has to be even"):
            root(kind, 3)

    def test_a_kind_has_to_be_one_that_there_is(self) -> None:
        with pytest.raises(GraphError, match=r"of kind 'scaled'. The kinds are permutation, signed"):
            SymmetryGraph({}, {"h": Group("h", 2, None, "scaled")})

    @pytest.mark.parametrize("text", ["~ h", "~", "-.", "~~h", "%%%h", "^=h", "=~h", "h~", "~5", "-"])
    def test_a_mark_belongs_to_one_name(self, text) -> None:
        with pytest.raises(SpecError, match="cannot read the layout"):
            parse_layout(text)

    @pytest.mark.parametrize("kind", MARKED)
    def test_each_place_of_a_stack_has_a_group_of_the_kind(self, kind) -> None:
        graph = SymmetryGraph.from_spec({"w": f"(=e {KINDS[kind].mark}d[e])"}, {"w": (8,)}, sizes={"e": 2})
        assert {name: group.kind for name, group in graph.groups.items()} == {"d.0": kind, "d.1": kind}


class TestGraph:
    @quick
    @given(graphs_of_kinds)
    def test_spec_and_json_give_the_same_graph(self, graph: SymmetryGraph) -> None:
        shapes = {name: node.shape for name, node in graph.tensors.items()}
        again = SymmetryGraph.from_spec(graph.spec(), shapes)
        assert again == graph == SymmetryGraph.from_json(graph.to_json())
        assert again.groups == graph.groups == SymmetryGraph.from_json(graph.to_json()).groups

    def test_graphs_that_differ_in_a_kind_are_different(self) -> None:
        assert len({root(kind).fingerprint for kind in KINDS}) == len(KINDS)

    def test_a_file_of_version_1_is_read_as_it_is(self) -> None:
        old = unsealed(root("permutation").to_json())
        old["version"] = 1
        assert SymmetryGraph.from_json(json.dumps(old)) == root("permutation")
        old["nodes"][0]["kind"] = "scaled"
        with pytest.raises(SpecError, match="damaged"):
            SymmetryGraph.from_json(json.dumps(old))

    def test_a_kind_that_disagrees_with_the_marks_is_refused(self) -> None:
        facts = unsealed(root("orthogonal").to_json())
        assert facts["version"] == 2
        facts["nodes"][0]["kind"] = "centred"
        with pytest.raises(SpecError, match="group 'h' is rotated"):
            SymmetryGraph.from_json(json.dumps(facts))

    @pytest.mark.parametrize(
        ("kind", "dimension", "parts"),
        [
            ("permutation", 0, 24),
            ("signed", 0, 24 * 16),
            ("planes", 2, 1),
            ("adjacent_planes", 2, 1),
            ("orthogonal", 6, 2),
            ("centred", 3, 2),
        ],
    )
    def test_order_counts_connected_parts_and_dimension_free_parameters(self, kind, dimension, parts) -> None:
        assert (root(kind).dimension, root(kind).order) == (dimension, parts)
        assert (family(kind).dimension, family(kind).order) == (3 * dimension, 6 * 2**3 * parts**3)
        assert math.isclose(family(kind).log10_order, math.log10(family(kind).order))

    @pytest.mark.parametrize("kind", MARKED)
    def test_every_description_says_the_kind(self, kind) -> None:
        graph, facts = family(kind), KINDS[kind]
        assert f"{facts.mark}d" in graph.report()
        assert f"{facts.mark}: {facts.words}" in graph.report()
        assert facts.words in graph.mermaid()
        assert facts.words in graph.dot()
        assert f"{facts.mark}d" in graph._repr_html_()
        texts = [text.get_text() for text in graph.draw().axes[0].texts]
        assert any(text.startswith(f"{facts.mark}d") for text in texts)
        assert json.loads(graph.to_json())["nodes"][2]["kind"] == kind


def test_each_kind_is_proved_alone() -> None:
    """A wrong group is found where a draw of the whole group would hide it behind no other, and is named."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    spec = {"0.weight": "-h .", "0.bias": "-h", "2.weight": "k -h", "2.bias": "k", "4.weight": ". k", "4.bias": "."}
    proof = SymmetryGraph.from_spec(spec, model).verify(model, torch.randn(5, 3))
    assert proof.kinds == ("permutation", "signed")
    assert "3 random symmetries of all groups, and of those alone that are permuted or permuted with" in proof.explain()
    wrong = {name: layout.replace("k", "-k") for name, layout in spec.items()}
    with pytest.raises(VerificationError, match=r"(?s)permuting or rotating these groups .*- 'k', which acts"):
        SymmetryGraph.from_spec(wrong, model).verify(model, torch.randn(5, 3))


@pytest.mark.parametrize("kind", KIND_ARCHITECTURES)
class TestNetworks:
    def test_every_element_keeps_what_a_network_computes(self, kind) -> None:
        pair = planted_pair(KIND_ARCHITECTURES[kind]())
        assert kind in {group.kind for group in pair.graph.groups.values()}
        proof = pair.graph.verify(pair.a, pair.architecture.inputs())
        assert kind in proof.kinds
        assert KINDS[kind].words in proof.explain() or len(proof.kinds) == 1

    def test_verify_names_a_group_of_a_wrong_kind(self, kind) -> None:
        architecture = KIND_ARCHITECTURES[kind]()
        mark = KINDS[kind].mark
        wrong = {"-": "~", "~": "^", "^": "~", "%": "%%", "%%": "%"}[mark]
        spec = {name: layout.replace(mark, wrong) for name, layout in architecture.spec.items()}
        graph = SymmetryGraph.from_spec(spec, architecture.model, sizes=architecture.sizes)
        if kind == "orthogonal":  # RMSNorm lets every rotation pass, those that keep the ones too
            graph.verify(planted_pair(architecture).a, architecture.inputs())
            return
        with pytest.raises(VerificationError, match="changes the outputs"):
            graph.verify(planted_pair(architecture).a, architecture.inputs())


@quick
@given(graphs_of_kinds, seeds)
def test_values_of_units_move_as_weights_do(graph: SymmetryGraph, seed: int) -> None:
    g = Alignment.random(graph, seed)
    generator = torch.Generator().manual_seed(seed)
    for group in graph.groups:
        whole = [*graph.ancestors(group), group]
        mentions = [KINDS[graph.groups[n].kind].mark + n for n in whole]
        parents = [f"[{parent}]" if parent else "" for parent in (graph.groups[n].parent for n in whole)]
        layout = ". (" + " ".join(name + parent for name, parent in zip(mentions, parents, strict=True)) + ")"
        sizes = {name: graph.groups[name].size for name in whole}
        alone = SymmetryGraph.from_spec({"w": layout}, {"w": (3, graph.unit_count(group))}, sizes=sizes)
        values = torch.randn(3, graph.unit_count(group), generator=generator, dtype=torch.float64)
        moved = Alignment(alone, {name: g.elements[name] for name in whole}).apply_tensor("w", values)
        torch.testing.assert_close(g.move_units(group, values), moved)
