"""Whole sets of networks in the order of one reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alignkit import Alignment, SymmetryGraph, solve
from alignkit.errors import AlignmentError, BindError
from alignkit.jobs.canonicalize import canonicalize
from alignkit.solvers.stacked_matching import can_be_stacked
from alignkit.testing.problems import independent_pair, mlp
from helpers.small_pairs import SPECS, pair_of


def networks_of(name: str, count: int) -> tuple[SymmetryGraph, dict[str, Tensor], list[dict[str, Tensor]]]:
    pairs = [pair_of(name, seed) for seed in range(count)]
    return pairs[0].graph, dict(pairs[0].a), [dict(pair.b) for pair in pairs]


WIDE: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "mlp": {
        "w1": ("a .", (32, 3)),
        "b1": ("a", (32,)),
        "w2": ("b a", (24, 32)),
        "w3": ("c b", (16, 24)),
        "w4": (". c", (2, 16)),
    },
    "convnet": {
        "k1": ("a . . .", (8, 1, 3, 3)),
        "k2": ("b a . .", (12, 8, 3, 3)),
        "f": ("h (b 4)", (20, 48)),
        "o": (". h", (3, 20)),
    },
    "concatenation": {
        "w0": ("a .", (9, 4)),
        "w1": ("b a", (8, 9)),
        "w2": ("d a+b", (7, 17)),
        "w3": (". a+b+d", (2, 24)),
    },
}


def wide(name: str, count: int) -> tuple[SymmetryGraph, dict[str, Tensor], list[dict[str, Tensor]]]:
    spec = {tensor: layout for tensor, (layout, _) in WIDE[name].items()}
    shapes = {tensor: shape for tensor, (_, shape) in WIDE[name].items()}
    generator = torch.Generator().manual_seed(0)
    drawn = [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(count + 1)]
    return SymmetryGraph.from_spec(spec, shapes), drawn[0], drawn[1:]


def check_against_one_by_one(graph, reference, networks) -> None:
    ordered = canonicalize(graph, networks, reference)
    assert ordered.batched == can_be_stacked(graph)
    for i, network in enumerate(networks):
        alone = solve(graph, reference, network, solver="weight_matching")
        assert ordered.alignment(i) == alone.alignment
        assert float(ordered.before[i]) == pytest.approx(alone.objective_before, rel=1e-9)
        assert float(ordered.after[i]) == pytest.approx(alone.objective_after, rel=1e-9)
        moved = alone.apply(network)
        assert all(torch.equal(moved[name], tensor) for name, tensor in ordered.network(i).items())


@pytest.mark.parametrize("name", WIDE)
def test_a_batch_gives_what_each_network_gives_alone(name: str) -> None:
    graph, reference, networks = wide(name, 24)
    assert can_be_stacked(graph)
    check_against_one_by_one(graph, reference, networks)


@pytest.mark.parametrize("name", SPECS)
def test_every_kind_of_graph_is_served(name: str) -> None:
    graph, reference, networks = networks_of(name, 5)
    assert can_be_stacked(graph) == (name in ("two layers", "flatten", "concatenation"))
    check_against_one_by_one(graph, reference, networks)


def test_the_size_of_a_batch_is_irrelevant(monkeypatch) -> None:
    graph, reference, networks = wide("mlp", 12)
    whole = canonicalize(graph, networks, reference)
    monkeypatch.setattr("alignkit.jobs.canonicalize.STACK_ELEMENTS", 5 * sum(t.numel() for t in reference.values()))
    parts = canonicalize(graph, networks, reference)
    assert all(torch.equal(whole.elements[name], parts.elements[name]) for name in graph.groups)
    assert torch.equal(whole.after, parts.after)


def test_reordered_copies_become_the_reference() -> None:
    graph, reference, _ = wide("mlp", 1)
    networks = [Alignment.random(graph, seed).apply(reference) for seed in range(10)]
    ordered = canonicalize(graph, networks, reference)
    assert float(ordered.after.max()) == 0
    assert all(torch.equal(tensor, reference[n].expand_as(tensor)) for n, tensor in ordered.weights.items())
    assert len(ordered) == 10
    assert ordered.networks_per_second > 0
    assert "10 networks" in repr(ordered)


def test_modules_and_stacked_tensors_are_taken() -> None:
    pairs = [independent_pair(mlp(4, 8, 7, 3), seed=seed) for seed in range(4)]
    graph, reference = pairs[0].graph, pairs[0].a
    modules = canonicalize(graph, [pair.b for pair in pairs], reference)
    states = [pair.b.state_dict() for pair in pairs]
    stacked = canonicalize(graph, {n: torch.stack([s[n] for s in states]) for n in states[0]}, reference)
    assert all(torch.equal(modules.weights[name], stacked.weights[name]) for name in modules.weights)


def test_networks_that_do_not_fit_are_named() -> None:
    graph, reference, networks = wide("mlp", 3)
    with pytest.raises(AlignmentError, match="no networks"):
        canonicalize(graph, [], reference)
    with pytest.raises(BindError, match=r"'w1' of network 2 holds NaN"):
        canonicalize(graph, [*networks[:2], {**networks[2], "w1": networks[2]["w1"] * torch.nan}], reference)
    with pytest.raises(BindError, match=r"'w4' is missing in network 1"):
        canonicalize(graph, [networks[0], {n: t for n, t in networks[1].items() if n != "w4"}], reference)
    with pytest.raises(BindError, match=r"float32 in the reference but int64 in network 0"):
        canonicalize(graph, [{n: t.long() for n, t in networks[0].items()}], reference)
    with pytest.raises(BindError, match="different numbers of networks"):
        canonicalize(graph, {"w1": torch.zeros(3, 32, 3), "b1": torch.zeros(2, 32)}, reference)
