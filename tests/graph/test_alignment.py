"""Alignments: the group axioms, what applying does to weights, and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alignkit import Alignment, SoftAlignment, SymmetryGraph
from alignkit.errors import AlignmentError
from alignkit.graph.elements import action
from helpers.documents import unsealed
from helpers.graph_strategies import all_alignments, distinct_weights, graphs, slow_apply

quick = settings(max_examples=60, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**31)

HEADS = SymmetryGraph.from_spec(
    {"qkv": "(heads (qk[heads]+qk[heads]+v[heads])) model", "out": "model (heads v[heads])"},
    {"qkv": (2 * 7, 3), "out": (3, 2 * 3)},
    sizes={"heads": 2, "qk": 2},
)
EXPERTS = SymmetryGraph.from_spec(
    {"up": "experts units[experts] .", "down": "experts . units[experts]", "gate": "experts ."},
    {"up": (3, 4, 2), "down": (3, 2, 4), "gate": (3, 2)},
)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@quick
@given(graphs(), seeds)
def test_tensors_that_are_moved_in_pieces_are_moved_alike(graph: SymmetryGraph, seed: int) -> None:
    weights, alignment = distinct_weights(graph), Alignment.random(graph, seed)
    whole = alignment.apply(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(action, "PIECE", 1)
        assert same(alignment.apply(weights), whole)


class TestGroupAxioms:
    @quick
    @given(graphs(), seeds, seeds)
    def test_applying_a_product_is_applying_one_after_the_other(self, graph: SymmetryGraph, one: int, two: int) -> None:
        g, h = Alignment.random(graph, one), Alignment.random(graph, two)
        weights = distinct_weights(graph)
        assert same((g @ h).apply(weights), g.apply(h.apply(weights)))

    @quick
    @given(graphs(), seeds)
    def test_an_element_and_its_inverse_cancel(self, graph: SymmetryGraph, seed: int) -> None:
        g, identity = Alignment.random(graph, seed), Alignment.identity(graph)
        weights = distinct_weights(graph)
        assert g @ g.inverse() == identity == g.inverse() @ g
        assert same(g.inverse().apply(g.apply(weights)), weights)

    @quick
    @given(graphs(), seeds, seeds, seeds)
    def test_composition_is_associative_with_a_neutral_element(
        self, graph: SymmetryGraph, one: int, two: int, three: int
    ) -> None:
        f, g, h = (Alignment.random(graph, seed) for seed in (one, two, three))
        identity = Alignment.identity(graph)
        assert (f @ g) @ h == f @ (g @ h)
        assert f @ identity == f == identity @ f
        assert (f @ g).inverse() == g.inverse() @ f.inverse()

    @pytest.mark.parametrize("graph", [HEADS, EXPERTS], ids=["heads", "experts"])
    def test_the_inverse_undoes_each_of_many_elements(self, graph: SymmetryGraph) -> None:
        weights = distinct_weights(graph)
        for seed in range(50):
            g = Alignment.random(graph, seed)
            assert same(g.inverse().apply(g.apply(weights)), weights)


class TestApply:
    @quick
    @given(graphs(), seeds)
    def test_applying_agrees_with_moving_single_elements(self, graph: SymmetryGraph, seed: int) -> None:
        weights, g = distinct_weights(graph), Alignment.random(graph, seed)
        assert same(g.apply(weights), slow_apply(graph, g, weights))

    def test_place_i_holds_unit_perm_i(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "h ."}, {"w": (3, 2)})
        weights = {"w": torch.arange(6).reshape(3, 2)}
        aligned = Alignment(graph, {"h": torch.tensor([2, 0, 1])}).apply(weights)["w"]
        assert aligned.tolist() == [[4, 5], [0, 1], [2, 3]]

    def test_a_family_moves_within_the_parent_that_arrives(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "(heads d[heads])"}, {"w": (4,)}, sizes={"heads": 2})
        g = Alignment(graph, {"heads": torch.tensor([1, 0]), "d": torch.tensor([[1, 0], [0, 1]])})
        # Head 1 of B comes to place 0 and is turned around there; head 0 comes to place 1 as it is.
        assert g.apply({"w": torch.tensor([10, 11, 20, 21])})["w"].tolist() == [21, 20, 10, 11]

    def test_experts_carry_their_own_units(self) -> None:
        weights = distinct_weights(EXPERTS)
        aligned = Alignment.random(EXPERTS, 3).apply(weights)
        products = [torch.einsum("ehi,eoh->eoi", w["up"], w["down"]) for w in (weights, aligned)]
        order = Alignment.random(EXPERTS, 3).elements["experts"]
        assert torch.equal(products[0][order], products[1])

    def test_a_module_gives_a_module_and_keeps_its_function(self) -> None:
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        spec = {"0.weight": "h .", "0.bias": "h", "2.weight": ". h", "2.bias": "."}
        graph = SymmetryGraph.from_spec(spec, model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        aligned = Alignment.random(graph, 1).apply(model)
        x = torch.randn(4, 3)
        assert isinstance(aligned, nn.Sequential)
        assert same(dict(model.state_dict()), before)
        assert not torch.equal(aligned[0].weight, model[0].weight)
        assert aligned[0].weight.requires_grad
        torch.testing.assert_close(aligned(x), model(x))

    def test_tied_tensors_stay_tied_and_keep_all_their_names(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Embedding(6, 4)
                self.head = nn.Linear(4, 6, bias=False)
                self.head.weight = self.embed.weight

        model = Tied()
        graph = SymmetryGraph.from_spec({"embed.weight": ". model"}, model)
        g = Alignment.random(graph, 2)
        aligned = g.apply(model)
        assert aligned.head.weight is aligned.embed.weight
        weights = g.apply(model.state_dict())
        assert torch.equal(weights["head.weight"], weights["embed.weight"])

    def test_names_order_dtype_and_strides_are_kept(self) -> None:
        graph = SymmetryGraph.from_spec({"a": "h k", "b": "k"}, {"a": (4, 3), "b": (3,)})
        weights = {"b": torch.randn(3).half(), "a": torch.randn(3, 4).bfloat16().T}
        aligned = Alignment.random(graph, 5).apply(weights)
        assert list(aligned) == ["b", "a"]
        assert (aligned["a"].dtype, aligned["b"].dtype) == (torch.bfloat16, torch.float16)

    def test_tied_tensors_that_differ_are_refused(self) -> None:
        shared = torch.randn(4)
        graph = SymmetryGraph.from_spec({"a": "h", "b": "h"}, {"a": shared, "b": shared})
        with pytest.raises(AlignmentError, match="'b' and 'a' are tied in the graph but differ"):
            Alignment.identity(graph).apply({"a": torch.zeros(4), "b": torch.ones(4)})

    def test_every_mismatch_is_listed(self) -> None:
        with pytest.raises(AlignmentError) as caught:
            Alignment.identity(HEADS).apply({"qkv": torch.zeros(14, 4), "extra": torch.zeros(2)})
        for text in (
            "'qkv' has shape (14, 4)",
            "'out' is missing",
            "'extra' of the weights is not in the graph",
        ):
            assert text in str(caught.value)


class TestValues:
    def test_every_element_is_reached_exactly_once(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "(a b[a]) c", "v": "c"}, {"w": (4, 3), "v": (3,)}, sizes={"a": 2, "b": 2})
        elements = all_alignments(graph)
        weights = distinct_weights(graph)
        images = {tuple(g.apply(weights)["w"].flatten().tolist()) for g in elements}
        assert len(elements) == len(set(elements)) == len(images) == graph.order == 2 * 2**2 * 6

    def test_random_is_seeded_and_reaches_every_element_about_equally(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "(a b[a])"}, {"w": (4,)}, sizes={"a": 2})
        drawn = [Alignment.random(graph, seed) for seed in range(800)]
        assert drawn[7] == Alignment.random(graph, 7)
        counts = [drawn.count(g) for g in all_alignments(graph)]
        assert sum(counts) == 800
        assert min(counts) > 60  # expected 100 each

    def test_matrices_times_units_are_the_aligned_units(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "h ."}, {"w": (5, 2)})
        g, w = Alignment.random(graph, 4), torch.randn(5, 2)
        assert torch.equal(g.as_matrices()["h"] @ w, g.apply({"w": w})["w"])
        assert Alignment.random(HEADS, 0).as_matrices()["v"].shape == (2, 3, 3)

    def test_moved_counts_units_over_all_parents(self) -> None:
        graph = SymmetryGraph.from_spec({"w": "(heads d[heads])"}, {"w": (6,)}, sizes={"heads": 2})
        swap = Alignment(graph, {"heads": torch.tensor([1, 0]), "d": torch.tensor([[0, 1, 2], [0, 1, 2]])})
        assert swap.moved() == {"heads": 2, "d": 6}
        assert not swap.is_identity
        assert Alignment.identity(graph).is_identity

    def test_equal_elements_have_equal_hashes(self) -> None:
        assert len({Alignment.random(HEADS, 1), Alignment.random(HEADS, 1), Alignment.random(HEADS, 2)}) == 2

    def test_the_indices_cannot_be_changed_through_the_mapping(self) -> None:
        with pytest.raises(TypeError):
            Alignment.identity(HEADS).elements["heads"] = torch.tensor([1, 0])

    def test_a_graph_without_groups_has_only_the_identity(self) -> None:
        graph = SymmetryGraph.from_spec({"w": ". ."}, {"w": (2, 2)})
        g, weights = Alignment.random(graph, 0), {"w": torch.randn(2, 2)}
        assert g == Alignment.identity(graph)
        assert same(g.apply(weights), weights)


class TestFiles:
    @quick
    @given(graph=graphs(), seed=seeds)
    def test_saved_and_loaded_is_equal(
        self, tmp_path_factory: pytest.TempPathFactory, graph: SymmetryGraph, seed: int
    ) -> None:
        path = tmp_path_factory.mktemp("alignment") / "g.safetensors"
        g = Alignment.random(graph, seed)
        g.save(path)
        assert Alignment.load(path, graph) == g

    def test_the_header_names_format_version_and_graph(self, tmp_path: Path) -> None:
        Alignment.identity(HEADS).save(tmp_path / "g.safetensors")
        with safetensors.safe_open(tmp_path / "g.safetensors", "pt") as file:
            header = unsealed(file.metadata()["alignkit"])
        assert header == {"format": "alignkit.alignment", "version": 1, "graph": HEADS.fingerprint}

    def test_saving_over_a_file_replaces_it_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "g.safetensors"
        for seed in (1, 2):
            Alignment.random(HEADS, seed).save(path)
        assert Alignment.load(path, HEADS) == Alignment.random(HEADS, 2)
        assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]


@pytest.mark.parametrize("kind", [Alignment.identity, SoftAlignment.centre])
def test_one_tensor_has_to_be_one_of_the_graph(kind) -> None:
    alignment = kind(HEADS)
    with pytest.raises(AlignmentError, match=r"no tensor 'qvk'. Did you mean 'qkv'"):
        alignment.apply_tensor("qvk", torch.zeros(14, 3))
    for shape in ((), (14,), (14, 4), (0, 3)):
        with pytest.raises(AlignmentError, match="'qkv' has shape"):
            alignment.apply_tensor("qkv", torch.zeros(shape))


LAZY = {
    "negated": torch._neg_view,
    "conjugated": lambda tensor: tensor.to(torch.complex64).conj(),
    "imaginary part of a conjugate": lambda tensor: torch.complex(tensor, tensor).conj().imag,
}


@pytest.mark.parametrize("form", LAZY)
def test_values_that_torch_negates_when_they_are_read_move_like_others(form) -> None:
    alignment = Alignment.random(HEADS, 3)
    lazy = {name: LAZY[form](tensor.float()) for name, tensor in distinct_weights(HEADS).items()}
    plain = {name: tensor.resolve_conj().resolve_neg() for name, tensor in lazy.items()}
    moved, expected = alignment.apply(lazy), alignment.apply(plain)
    assert all(torch.equal(moved[name], expected[name]) for name in lazy)


def test_a_group_has_to_be_one_of_the_graph() -> None:
    with pytest.raises(AlignmentError, match=r"no group 'head'. Did you mean 'heads'"):
        Alignment.identity(HEADS).flat("head")


@pytest.mark.parametrize("matrix", [None, 3, "x", [[1.0]], {"a": 1}, object()])
def test_matrices_are_tensors(matrix) -> None:
    matrices = dict(SoftAlignment.centre(HEADS).matrices) | {"model": matrix}
    with pytest.raises(AlignmentError, match="'model' has no matrix, found"):
        SoftAlignment(HEADS, matrices)
