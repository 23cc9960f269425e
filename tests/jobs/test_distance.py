"""Distances, and "the same up to permutation"."""

from __future__ import annotations

import pytest
import torch

from alignkit import Alignment, SymmetryGraph
from alignkit.jobs.distance import distance
from alignkit.matching import Objective
from alignkit.testing.problems import ARCHITECTURES, independent_pair, mlp, planted_pair
from helpers.small_pairs import SPECS, every_alignment, pair_of


@pytest.mark.parametrize("build", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_reordered_copy_is_the_same_and_the_order_is_the_proof(build) -> None:
    pair = planted_pair(build(), seed=2)
    measured = distance(pair.graph, pair.a, pair.b)
    assert measured.same
    assert measured.differs is None
    assert measured.alignment == pair.answer
    assert (measured.after, measured.before > 0) == (0.0, True)
    assert "the same up to permutation" in repr(measured)


def test_distances_are_those_of_the_tensors() -> None:
    pair = independent_pair(ARCHITECTURES["convnet"]())
    measured = distance(pair.graph, pair.a, pair.b, solver="frank_wolfe")
    objective = Objective(pair.bind())
    assert measured.before == pytest.approx(objective.distance2(Alignment.identity(pair.graph)), rel=1e-12)
    assert measured.after == pytest.approx(objective.distance2(measured.alignment), rel=1e-12)
    assert measured.after == pytest.approx(measured.solution.objective_after, rel=1e-12)
    aligned = measured.alignment.apply(dict(pair.b.state_dict()))
    weight = (pair.a.state_dict()["3.weight"].double() - aligned["3.weight"].double()).square().sum()
    assert measured.tensors["3.weight"].after == pytest.approx(float(weight))
    assert not measured.same


@pytest.mark.parametrize(("noise", "same"), [(1e-8, True), (1e-3, False)])
def test_the_tolerance_decides(noise: float, same: bool) -> None:
    pair = planted_pair(mlp(4, 8, 7, 3), seed=1)
    with torch.no_grad():
        pair.b.get_parameter("2.weight")[1, 2] += noise * float(pair.a.get_parameter("2.weight").abs().max())
    measured = distance(pair.graph, pair.a, pair.b)
    assert measured.same == same
    assert measured.differs == (None if same else "2.weight")
    assert distance(pair.graph, pair.a, pair.b, tolerance=1e-2).same


def test_a_sentence_says_how_much_of_the_distance_is_order() -> None:
    pair = planted_pair(mlp(4, 8, 7, 3), seed=1)
    assert "explains" not in distance(pair.graph, pair.a, pair.b).explain()  # all of it: they are the same
    assert distance(pair.graph, pair.a, pair.a).order_share is None
    with torch.no_grad():
        pair.b.get_parameter("2.weight").add_(0.1 * torch.randn(7, 8, generator=torch.Generator().manual_seed(0)))
    measured = distance(pair.graph, pair.a, pair.b)
    assert measured.order_share == pytest.approx(1 - measured.after / measured.before)
    assert f"{100 * measured.order_share:.2f} % of the squared distance: B is A reordered" in measured.explain()
    apart = independent_pair(mlp(4, 8, 7, 3))
    measured = distance(apart.graph, apart.a, apart.b)
    assert "Order of units explains" in measured.explain()
    assert "slightly" not in measured.explain()


def test_whole_numbers_and_zeros_have_to_be_equal() -> None:
    graph = SymmetryGraph.from_spec({"w": "h .", "n": "h", "z": "."}, {"w": (3, 2), "n": (3,), "z": (2,)})
    weights = {"w": torch.randn(3, 2), "n": torch.tensor([1, 2, 3]), "z": torch.zeros(2)}
    moved = Alignment.random(graph, 1).apply(weights)
    assert distance(graph, weights, moved).same
    assert distance(graph, weights, {**moved, "n": moved["n"] + 1}, tolerance=0.5).differs == "n"
    assert distance(graph, weights, {**moved, "z": moved["z"] + 1e-30}, tolerance=0.5).differs == "z"


@pytest.mark.parametrize("name", SPECS)
def test_no_order_is_closer_than_the_one_found(name: str) -> None:
    pair = pair_of(name)
    objective = Objective(pair)
    best = objective.squares - 2 * max(objective.value(g) for g in every_alignment(pair.graph))
    measured = distance(pair.graph, pair.a, pair.b, solver="weight_matching", restarts=60, patience=60, shuffle=1.0)
    assert measured.after == pytest.approx(best, rel=1e-9)
