"""Similarities that are kept and corrected, in parts, in float32: always what plain sums in float64 are."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit import Alignment, SymmetryGraph, solve
from alignkit.graph import Pair
from alignkit.graph.kinds import KINDS
from alignkit.graph.parts import TensorsInMemory
from alignkit.matching import Objective, similarities
from alignkit.matching.products import multiply
from alignkit.solvers.coordinate_ascent import shuffle_elements
from helpers.graph_strategies import graphs

CPU = torch.device("cpu")


def random_pair(graph: SymmetryGraph, seed: int, dtype: torch.dtype = torch.float64) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    sides = [{n: torch.randn(t.shape, generator=generator).to(dtype) for n, t in graph.tensors.items()} for _ in "ab"]
    return graph.bind(*sides)


def relative_error(similarity: Tensor, expected: Tensor) -> float:
    return float((similarity - expected).abs().max() / expected.abs().max().clamp_min(1e-9))


def in_pieces(pair: Pair, piece: int) -> Objective:
    sides = (TensorsInMemory(side, CPU, piece) for side in (pair.a, pair.b))
    return Objective(Pair(pair.graph, *sides))


def random_step(
    graph: SymmetryGraph, elements: Mapping[str, Tensor | None], data: st.DataObject
) -> dict[str, Tensor | None]:
    """Some trees become unknown or known, or move some or all of their units."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    result = dict(elements)
    for root in graph.roots:
        step = data.draw(st.sampled_from(["stay", "shuffle", "draw", "forget"]))
        tree = graph.tree(root)
        known = {name: element for name in tree if (element := elements[name]) is not None}
        if step == "forget":
            result.update(dict.fromkeys(tree))
        elif step == "draw" or (step == "shuffle" and len(known) < len(tree)):
            drawn = Alignment.random(graph, data.draw(st.integers(0, 1000))).elements
            result.update({name: drawn[name] for name in tree})
        elif step == "shuffle":
            result.update(shuffle_elements(graph, known, 0.3, generator))
    return result


@settings(max_examples=60)
@given(graph=graphs() | graphs(tuple(KINDS)), data=st.data())
def test_corrected_similarities_are_those_of_a_new_objective(graph: SymmetryGraph, data: st.DataObject) -> None:
    pair = random_pair(graph, data.draw(st.integers(0, 1000)))
    kept = in_pieces(pair, data.draw(st.sampled_from([1, 64, 1 << 20])))
    elements: dict[str, Tensor | None] = dict(Alignment.random(graph, 1).elements)
    for _ in range(5):
        elements = random_step(graph, elements, data)
        fresh = Objective(pair)
        for group in graph.groups:
            if any(elements[name] is None for name in graph.ancestors(group)):
                continue
            torch.testing.assert_close(kept.similarity(group, elements), fresh.similarity(group, elements))


@settings(max_examples=60)
@given(graph=graphs() | graphs(tuple(KINDS)), data=st.data())
def test_a_gain_is_the_difference_of_two_values(graph: SymmetryGraph, data: st.DataObject) -> None:
    pair = random_pair(graph, data.draw(st.integers(0, 1000)))
    before, after = (Alignment.random(graph, data.draw(st.integers(0, 1000))) for _ in "ab")
    elements = {n: data.draw(st.sampled_from([before, after])).elements[n] for n in graph.groups}
    objective = Objective(pair)
    expected = objective.value(Alignment(graph, elements)) - objective.value(before)
    for piece in (1, 1 << 20):
        assert in_pieces(pair, piece).gain(dict(before.elements), elements) == pytest.approx(expected, abs=1e-9)


def wide_pair(seed: int = 0, biases: float = 1.0) -> Pair:
    spec = {"w1": "a .", "b1": "a", "w2": "b a", "b2": "b", "w3": ". b"}
    shapes = {"w1": (300, 40), "b1": (300,), "w2": (280, 300), "b2": (280,), "w3": (20, 280)}
    pair = random_pair(SymmetryGraph.from_spec(spec, shapes), seed, torch.float32)
    sides = ({n: t * biases if t.ndim == 1 else t for n, t in side.items()} for side in (pair.a, pair.b))
    return pair.graph.bind(*sides)


def test_errors_of_float32_products_do_not_add_up() -> None:
    pair = wide_pair()
    exact, auto = Objective(pair), Objective(pair, products="auto")
    elements: dict[str, Tensor] = dict(Alignment.random(pair.graph, 0).elements)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        elements = shuffle_elements(pair.graph, elements, 0.05, generator)
        wide, narrow = (objective.similarity("a", elements) for objective in (exact, auto))
        assert 0 < relative_error(narrow, wide) < 1e-5


def test_similarities_are_multiplied_in_full_again_after_many_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = wide_pair()
    elements: dict[str, Tensor] = dict(Alignment.random(pair.graph, 0).elements)
    generator = torch.Generator().manual_seed(0)
    objective = Objective(pair)
    objective.similarity("a", elements)
    kept = objective._similarities._kept["a"]
    full = 0
    for _ in range(60):
        elements = shuffle_elements(pair.graph, elements, 0.1, generator)
        objective.similarity("a", elements)
        assert objective._similarities._kept["a"].changed <= similarities.REFRESH
        full += objective._similarities._kept["a"] is not kept
        kept = objective._similarities._kept["a"]
    assert 2 <= full <= 4  # each change costs a little more than a twentieth


def test_large_vectors_do_not_drown_what_matrices_say() -> None:
    # Running variances of trained networks are in the thousands, their weights below 1.
    pair = wide_pair(biases=1e5)
    elements = dict(Alignment.random(pair.graph, 0).elements)
    without = wide_pair(biases=0.0)
    matrices = Objective(without).similarity("a", elements)
    vectors = Objective(pair).similarity("a", elements) - matrices
    auto = Objective(pair, products="auto").similarity("a", elements)
    assert relative_error(auto - vectors, matrices) < 1e-4
    assert relative_error(Objective(pair, products="float32").similarity("a", elements) - vectors, matrices) > 1e-2


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12, 1e25])
def test_float32_products_are_safe_for_tensors_of_any_size(size: float) -> None:
    pair = wide_pair()
    sides = ({n: t * size if n in ("w1", "w2") else t for n, t in side.items()} for side in (pair.a, pair.b))
    pair = pair.graph.bind(*sides)
    elements = dict(Alignment.random(pair.graph, 0).elements)
    for group in pair.graph.groups:
        exact, auto = (Objective(pair, products=p).similarity(group, elements) for p in ("float64", "auto"))
        assert relative_error(auto, exact) < 1e-5


@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_solutions_are_as_good_as_in_float64(noise: float) -> None:
    pair = wide_pair(1)
    generator = torch.Generator().manual_seed(2)
    moved = Alignment.random(pair.graph, 3).apply(dict(pair.a))
    b = {n: t + noise * torch.randn(t.shape, generator=generator) for n, t in moved.items()}
    after = [solve(pair.graph, pair.a, b, products=p).objective_after for p in ("float64", "auto")]
    assert after[1] <= after[0] * (1 + 1e-6) + 1e-9


def test_weights_are_not_copied() -> None:
    pair = wide_pair()
    objective = Objective(pair)
    assert all(objective.a[name].data_ptr() == tensor.data_ptr() for name, tensor in pair.a.items())


def test_similarities_belong_to_the_caller() -> None:
    pair = wide_pair()
    objective, elements = Objective(pair), dict(Alignment.random(pair.graph, 0).elements)
    expected = objective.similarity("a", elements).clone()
    objective.similarity("a", elements).zero_()
    assert torch.equal(objective.similarity("a", elements), expected)


@pytest.mark.parametrize(
    "shape", [(1, 64, 1, 64), (1, 300, 700, 520), (1, 2000, 16, 40), (3, 64, 256, 70), (1, 9, 0, 5)]
)
@pytest.mark.parametrize("is_turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_matrices_however_they_are_stored(shape, is_turned, dtype):
    parents, m, rest, n = shape
    a, b = (
        torch.randn(parents, rest, units, dtype=dtype).mT if turned else torch.randn(parents, units, rest, dtype=dtype)
        for units, turned in zip((m, n), is_turned, strict=True)
    )
    norms = a.double().norm(dim=-1)[..., :, None] * b.double().norm(dim=-1)[..., None, :]
    error = (multiply(a, b).double() - a.double() @ b.double().mT).abs() / norms.clamp_min(1e-300)
    assert float(error.max()) <= 10 * torch.finfo(dtype).eps
