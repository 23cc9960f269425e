"""Oracles: the best element of each kind, its value, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import Alignment, SoftAlignment, SymmetryGraph
from alignkit.errors import AssignmentError
from alignkit.graph.elements.element import as_matrix, random_element
from alignkit.graph.kinds import KINDS, PLANES, GroupKind
from alignkit.matching.hulls import centre_of, random_inside, why_outside
from alignkit.matching.oracles import best_of_kind, value_of
from helpers.graph_strategies import all_alignments, distinct_weights, graphs

kinds = st.sampled_from(list(KINDS))
sizes = st.sampled_from([2, 4, 6, 8])
quick = settings(max_examples=200)


def graph_of(kind: GroupKind, size: int) -> SymmetryGraph:
    return SymmetryGraph.from_spec({"w": f"{KINDS[kind].mark}h ."}, {"w": (size, 1)})


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@quick
@given(kinds, sizes, st.integers(0, 2**31), st.sampled_from([1e-9, 1.0, 1e150]))
def test_no_element_of_the_kind_has_a_larger_value(kind: GroupKind, size: int, seed: int, scale: float) -> None:
    similarity, generator = scale * normal(seed, 3, size, size), torch.Generator().manual_seed(seed)
    best = best_of_kind(kind, similarity)
    value = value_of(kind, similarity, best)
    for matrix in best:
        Alignment(graph_of(kind, size), {"h": matrix})  # refuses what is no element
    for near in (0.0, 1e-3):
        for _ in range(20):
            drawn = random_element(kind, (3, size), generator)
            if near and KINDS[kind].rotates:  # beside the best one
                drawn = best_of_kind(kind, best + near * drawn)
            assert (value_of(kind, similarity, drawn) <= value + 1e-12 * value.abs()).all()


@quick
@given(kinds, sizes, st.integers(0, 2**31))
def test_a_planted_element_is_found(kind: GroupKind, size: int, seed: int) -> None:
    """If B's units are A's, moved by an element, the best one undoes it."""
    graph, a = graph_of(kind, size), normal(seed, size, size + 2)
    planted = Alignment.random(graph, seed)
    b = planted.as_matrices()["h"].double() @ a
    assert Alignment(graph, {"h": best_of_kind(kind, a @ b.T)}) == planted.inverse()


@quick
@given(kinds, sizes, st.integers(0, 2**31))
def test_the_value_is_the_inner_product_with_the_matrix(kind: GroupKind, size: int, seed: int) -> None:
    similarity = normal(seed, 2, size, size)
    element = random_element(kind, (2, size), torch.Generator().manual_seed(seed))
    matrix = element if element.is_floating_point() else as_matrix(element)
    torch.testing.assert_close(value_of(kind, similarity, element), (similarity * matrix).sum((-1, -2)))


@pytest.mark.parametrize("seed", range(5))
def test_signed_permutations_are_the_best_of_all(seed: int) -> None:
    similarity, graph = normal(seed, 3, 3), graph_of("permutation", 3)
    orders = [alignment.elements["h"] for alignment in all_alignments(graph)]
    signs = torch.cartesian_prod(*[torch.tensor([0, -1])] * 3)
    best = max(float(value_of("signed", similarity, order ^ sign)) for order in orders for sign in signs)
    assert float(value_of("signed", similarity, best_of_kind("signed", similarity))) == pytest.approx(best, abs=0)


@pytest.mark.parametrize("kind", KINDS)
def test_similarities_that_say_nothing_give_an_element(kind: GroupKind) -> None:
    for similarity in (torch.zeros(4, 4), torch.ones(4, 4), torch.zeros(0, 4, 4)):
        best = best_of_kind(kind, similarity)
        for element in best.reshape(-1, *best.shape[similarity.ndim - 2 :]):
            Alignment(graph_of(kind, 4), {"h": element})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_similarities_that_are_no_numbers_are_refused(kind: GroupKind, value: float) -> None:
    with pytest.raises(AssignmentError, match="hold NaN or infinity"):
        best_of_kind(kind, torch.full((4, 4), value))


@quick
@given(kinds, sizes, st.integers(0, 2**31))
def test_hulls_hold_means_of_elements_and_nothing_beyond(kind: GroupKind, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    elements = random_element(kind, (5, size), generator)
    matrices = elements if elements.is_floating_point() else as_matrix(elements).double()
    shares = torch.rand(5, generator=generator, dtype=torch.float64)
    inside = torch.einsum("k,kij->ij", shares / shares.sum(), matrices)
    for matrix in (inside, centre_of(kind, (size, size)), random_inside(kind, (size, size), generator)):
        assert why_outside(kind, matrix.double(), 1e-6) == ""
    assert why_outside(kind, 1.5 * matrices[0], 1e-2) != ""
    assert why_outside(kind, torch.full((size, size), torch.nan, dtype=torch.float64), 1e-2) != ""
    if kind not in ("orthogonal", "signed"):
        assert why_outside(kind, -matrices[0], 1e-2) != "" or kind in PLANES


@quick
@given(kinds, st.integers(0, 2**31))
def test_the_centre_is_the_mean_of_the_group(kind: GroupKind, seed: int) -> None:
    drawn = random_element(kind, (4000, 4), torch.Generator().manual_seed(seed))
    matrices = drawn if drawn.is_floating_point() else as_matrix(drawn)
    assert (matrices.mean(0) - centre_of(kind, (4, 4))).abs().max() < 0.08


@quick
@given(graphs(tuple(KINDS)), st.integers(0, 2**31))
def test_a_soft_alignment_of_a_hard_one_is_and_does_the_same(graph: SymmetryGraph, seed: int) -> None:
    hard = Alignment.random(graph, seed)
    soft = SoftAlignment.from_alignment(hard)
    assert soft.round() == hard
    weights = {name: tensor.double() for name, tensor in distinct_weights(graph).items()}
    moved, expected = soft.apply(weights), hard.apply(weights)
    assert all(torch.allclose(moved[name], expected[name], rtol=1e-12) for name in weights)


def test_only_pairs_of_planes_turn() -> None:
    similarity = normal(0, 6, 6)
    for kind in PLANES:
        assert int((best_of_kind(kind, similarity) != 0).sum()) == 12
