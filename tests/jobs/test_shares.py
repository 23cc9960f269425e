"""Weights by patterns of names: every tensor has those of the first pattern that matches, and none is ever in doubt."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import alignkit
from alignkit.errors import MergeError
from helpers.small_pairs import pair_of

NAMES = ("h.0.w", "h.0.b", "h.1.w", "h.1.b", "out.w", "out.running_mean")


def networks(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(3, 2, generator=generator) for name in NAMES} for _ in range(count)]


PATTERNS: list[tuple[dict[str, list[float]], dict[str, list[float]]]] = [
    ({"h.0.*": [1, 0]}, {"h.0.w": [1, 0], "h.0.b": [1, 0]}),
    ({"h.0.*": [1, 0], "*": [1, 3]}, {name: [1, 0] if name.startswith("h.0") else [0.25, 0.75] for name in NAMES}),
    ({"*": [1, 3], "h.0.*": [1, 0]}, {name: [1, 0] if name.startswith("h.0") else [0.25, 0.75] for name in NAMES}),
    ({"h.0.w": [0, 1], "h.*": [1, 0]}, {"h.0.w": [0, 1], "h.0.b": [1, 0], "h.1.w": [1, 0], "h.1.b": [1, 0]}),
    (
        {"*.w": [2, 0], "*b": [0, 2]},
        {"h.0.w": [1, 0], "h.1.w": [1, 0], "out.w": [1, 0], "h.0.b": [0, 1], "h.1.b": [0, 1]},
    ),
    ({"*": [3, 1]}, {name: [0.75, 0.25] for name in NAMES}),
    ({"out.running_mean": [1, 0]}, {"out.running_mean": [1, 0]}),
]


@pytest.mark.parametrize(("weights", "expected"), PATTERNS)
def test_each_tensor_has_the_shares_of_the_first_pattern_that_matches(
    weights: dict[str, list[float]], expected: dict[str, list[float]]
) -> None:
    models = networks(2)
    averaged = alignkit.average(models, weights)
    for name in NAMES:
        assert torch.equal(averaged[name], alignkit.average(models, expected.get(name))[name]), name


@given(st.dictionaries(st.sampled_from(NAMES), st.lists(st.floats(0.01, 5), min_size=3, max_size=3), min_size=1))
def test_one_pattern_a_tensor_is_one_average_a_tensor(weights: dict[str, list[float]]) -> None:
    models = networks(3)
    averaged = alignkit.average(models, weights)
    assert all(torch.equal(averaged[name], alignkit.average(models, weights.get(name))[name]) for name in NAMES)


@pytest.mark.parametrize(
    ("method", "weights"), [("slerp", [1, 3]), ("task_arithmetic", [2.0]), ("ties", [0.5]), ("dare", [-1])]
)
def test_every_method_takes_patterns(method: str, weights: list[float]) -> None:
    models = networks(2)
    averaged = alignkit.average(models, {"h.*": weights}, method, density=1)  # type: ignore[call-overload]
    plain = alignkit.average(models, None, method, density=1)  # type: ignore[call-overload]
    whole = alignkit.average(models, weights, method, density=1)  # type: ignore[call-overload]
    assert all(torch.equal(averaged[name], (whole if name.startswith("h.") else plain)[name]) for name in NAMES)


def test_merge_aligns_first_and_then_gives_layers_their_shares() -> None:
    pair = pair_of("two layers")
    first, *_ = pair.a
    merged = alignkit.merge(pair, weights={first: [1, 0], "*": [0, 1]})
    aligned = merged.alignment.apply(pair.b)  # type: ignore[union-attr,arg-type]
    network = merged.network
    assert isinstance(network, dict)
    assert all(torch.equal(network[name], (pair.a if name == first else aligned)[name]) for name in network)  # type: ignore[index]


def test_networks_on_disk_take_patterns_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pair = pair_of("two layers")
    sides = {name: dict(side) for name, side in (("a", pair.a), ("b", pair.b))}
    for name, side in sides.items():
        alignkit.write_weights(tmp_path / f"{name}.safetensors", side)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    weights = {next(iter(sides["a"])): [1, 3]}
    whole = alignkit.merge(pair.graph, *paths, weights=weights).network
    stored = alignkit.merge(pair.graph, *paths, weights=weights, memory="50MB").network
    assert all(torch.allclose(stored[name], whole[name]) for name in sides["a"])  # type: ignore[index]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_tensors_need_one_weight() -> None:
    models = [Tied(), Tied()]
    with pytest.raises(MergeError, match=r"'embed\.weight' has .* and 'head.weight' has .* Let a pattern match both"):
        alignkit.average(models, {"head.*": [1, 0]})
    averaged = alignkit.average(models, {"*.weight": [1, 0]})
    assert averaged.head.weight is averaged.embed.weight
    assert torch.equal(averaged.head.weight, models[0].head.weight)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"h.2.*": [1, 0]}, r"weights of 'h.2.\*': no tensor has such a name. .* Did you mean 'h.[01].\*'\?"),
        ({"layers.*": [1, 0]}, "no tensor has such a name. There are 'h.0.w', 'h.0.b'"),
        ({"h.*": [1, 0], "h.0.*": [0, 1]}, r"all that it matches is taken by 'h.\*' before it. Put it first"),
        ({"h.*": [1]}, r"weights of 'h.\*': 1 weight for 2 models"),
        ({"h.*": [0, 0]}, r"weights of 'h.\*': all weights are 0"),
        ({"h.*": [1, -1]}, r"weights of 'h.\*': weights\[1\] is -1.0: shares are finite and not negative"),
        ({"h.*": [1, float("nan")]}, r"weights\[1\] is nan"),
        ({"h.*": "ab"}, "give a pattern of names, and one number for each model"),
        ({"h.*": 1}, "give a pattern of names, and one number for each model"),
        ({"h.*": [True, False]}, "give a pattern of names, and one number for each model"),
        ({3: [1, 0]}, "give a pattern of names, and one number for each model"),
        ({"": [1, 0]}, "no tensor has such a name"),
        ({"*": [1, 2, 3]}, "3 weights for 2 models"),
        ([1e308, 1e308], "add up to infinity"),
    ],
)
def test_patterns_that_say_nothing_clear_are_refused(weights: object, said: str) -> None:
    with pytest.raises(MergeError, match=said):
        alignkit.average(networks(2), weights)  # type: ignore[call-overload]


def test_wrong_patterns_are_refused_before_anything_is_solved() -> None:
    pair = pair_of("two layers")
    with pytest.raises(MergeError, match="no tensor has such a name"):
        alignkit.merge(pair, weights={"nothing.*": [1, 0]}, solver="no such solver")
