"""Distances, and "the same up to permutation"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import alignkit
from alignkit import Alignment, SymmetryGraph
from alignkit.jobs.distance import Distance, distance
from alignkit.matching import Objective
from alignkit.testing.problems import ARCHITECTURES, independent_pair, mlp, planted_pair
from helpers.gauge_cases import CASES
from helpers.small_pairs import SPECS, every_alignment, pair_of
from helpers.trace_models import Parts


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


PERCEPTRON = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)).double()
DECODER = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def undone(model: nn.Module, inputs: torch.Tensor, change: Callable[[Any, dict[str, torch.Tensor]], Any]) -> Distance:
    """Measure how far a network with random weights is from itself after a change of its state dict."""
    generator = torch.Generator().manual_seed(0)
    a = {name: torch.randn(tensor.shape, generator=generator).double() for name, tensor in model.state_dict().items()}
    graph = alignkit.trace(model, inputs, symmetries="all")
    b = {name: tensor.clone() for name, tensor in a.items()}
    changed = change(graph, b)
    return distance(graph, a, b if changed is None else changed)


def scale_units(graph: SymmetryGraph, weights: dict[str, torch.Tensor]) -> None:
    factors = torch.logspace(-1, 1, 7).double()
    weights["0.weight"] *= factors[:, None]
    weights["0.bias"] *= factors
    weights["2.weight"] /= factors


def scale_and_permute(graph: SymmetryGraph, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    scale_units(graph, weights)
    return Alignment.random(graph, 1).apply(weights)


def flip_a_unit(graph: SymmetryGraph, weights: dict[str, torch.Tensor]) -> None:
    for name, axis in (("2.weight", 0), ("2.bias", 0), ("4.weight", 1)):
        weights[name].movedim(axis, 0)[3] *= -1


def move_a_gain(graph: SymmetryGraph, weights: dict[str, torch.Tensor]) -> None:
    for name in ("1.weight", "1.bias"):
        weights[name] /= 2
    weights["2.weight"] *= 2


def move_all(graph: SymmetryGraph, weights: dict[str, torch.Tensor]) -> Any:
    return Alignment.random(graph, 2).apply(alignkit.fold(weights, graph).network)


@pytest.mark.parametrize(
    ("model", "change", "verdict"),
    [
        (PERCEPTRON, lambda graph, weights: None, "the same as they are"),
        (PERCEPTRON, scale_units, "the same up to scales"),
        (PERCEPTRON, scale_and_permute, "the same up to permutation and scales"),
        (DECODER, flip_a_unit, "the same up to signs"),
        (DECODER, move_a_gain, "the same once they are folded"),
        (DECODER, move_all, "the same up to permutation, signs and rotation"),
    ],
)
def test_the_verdict_names_what_made_networks_differ_and_no_more(model: Any, change: Any, verdict: str) -> None:
    measured = undone(model, torch.randn(2, model[0].in_features).double(), change)
    assert measured.verdict == verdict, measured.explain()
    assert f"The networks are {verdict} " in measured.explain()


@pytest.mark.parametrize("model", [PERCEPTRON, DECODER])
@pytest.mark.parametrize("seed", range(5))
def test_networks_that_only_look_alike_are_not_the_same(model: Any, seed: int) -> None:
    def change(graph: SymmetryGraph, weights: dict[str, torch.Tensor]) -> Any:
        generator = torch.Generator().manual_seed(seed)
        moved = Alignment.random(graph, seed).apply(alignkit.fold(weights, graph).network)
        name = sorted(name for name, tensor in moved.items() if tensor.ndim == 2)[seed % 2]
        moved[name] = moved[name] + 1e-3 * torch.randn(moved[name].shape, generator=generator).double()
        return alignkit.fold(moved, graph).network if graph.folds else moved

    measured = undone(model, torch.randn(2, model[0].in_features).double(), change)
    assert not measured.same and measured.undone == () and measured.verdict.startswith("not the same")


def test_rounding_to_16_bits_is_recognised() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    graph = alignkit.trace(model, torch.randn(2, 5), symmetries="all")
    a = {name: tensor.bfloat16() for name, tensor in alignkit.fold(model, graph).network.state_dict().items()}
    b = Alignment.random(graph, 1).apply(a)
    measured = distance(graph, a, b)
    assert not measured.same and measured.rounding == "bfloat16"
    assert "No element differs by more than rounding to bfloat16 does" in measured.explain()
    assert distance(graph, a, b, tolerance=0.05).verdict == "the same up to rotation"
    assert distance(graph, a, {name: 1.1 * tensor for name, tensor in b.items()}).rounding is None


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Linear(4, 6), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(6, 2))


def translator() -> nn.Module:
    return Parts(
        lambda m, x: m.out(m.transformer(m.inp(x), m.inp(x)).mean(1)),
        inp=nn.Linear(4, 6),
        transformer=nn.Transformer(6, 2, 1, 1, 8, batch_first=True),
        out=nn.Linear(6, 2),
    )


FRESH: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "encoder": (encoder, torch.ones(2, 5, 4)),
    "translator": (translator, torch.ones(2, 5, 4)),
    **{name: (CASES[name].build, CASES[name].batch()[:1]) for name in ("rnn", "llama", "gpt with a bias", "vit")},
}


@pytest.mark.parametrize("name", FRESH)
def test_tensors_in_which_nothing_is_left_but_rounding_are_the_same(name: str) -> None:
    torch.manual_seed(0)
    build, inputs = FRESH[name]
    model = build().eval()
    weights = dict(model.state_dict())
    for tensor_name, tensor in weights.items():  # as before training: gains of 1 and no biases
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.fill_(float(tensor_name.endswith("weight")))
    graph = alignkit.trace(model, inputs, symmetries="all", keep_tied=True)
    moved = Alignment.random(graph, 4).apply(alignkit.fold(weights, graph).network)
    assert distance(graph, weights, moved).same
    largest = max(float(tensor.abs().max()) for tensor in weights.values())
    changed = next(name for name, tensor in moved.items() if tensor.ndim == 2)
    moved[changed] = moved[changed] + 1e-4 * largest * torch.randn(moved[changed].shape)
    assert not distance(graph, weights, moved).same
