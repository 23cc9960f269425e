"""Task arithmetic, TIES and DARE against their definitions, entry by entry."""

from __future__ import annotations

import math

import pytest
import torch

import alignkit
from alignkit import Alignment
from alignkit.errors import MergeError
from helpers.small_pairs import pair_of

METHODS = ("task_arithmetic", "ties", "dare")


def networks(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (7, 5), "b": (7,), "s": ()}
    return [
        {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()} for _ in range(count)
    ]


def ties_of_entry(vectors, weights):
    """Algorithm 1 of the paper for one entry that was trimmed, in Python's numbers."""
    terms = [w * v for w, v in zip(weights, vectors, strict=True)]
    elected = math.copysign(1, sum(terms)) if sum(terms) else 0
    agreeing = [(t, abs(w)) for t, w in zip(terms, weights, strict=True) if t and math.copysign(1, t) == elected]
    mean = sum(t for t, _ in agreeing) / sum(w for _, w in agreeing) if agreeing else 0.0
    return mean * sum(map(abs, weights))


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, -0.25]])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 1.0])
def test_ties_is_what_the_paper_says(weights, density):
    base, *tuned = networks(4)
    found = alignkit.average([base, *tuned], weights, "ties", density=density)
    factors = weights or [1 / 3] * 3
    for name in base:
        flat = []
        for network in tuned:
            vector = (network[name] - base[name]).flatten().tolist()
            kept = sorted(range(len(vector)), key=lambda i: -abs(vector[i]))[: max(1, int(density * len(vector)))]
            flat.append([v if i in kept else 0.0 for i, v in enumerate(vector)])
        expected = [ties_of_entry(entries, factors) for entries in zip(*flat, strict=True)]
        assert torch.allclose((found[name] - base[name]).flatten(), torch.tensor(expected, dtype=torch.float64))


def test_dare_drops_a_share_enlarges_the_rest_and_follows_its_seed():
    base, tuned = ({"w": x} for x in (torch.zeros(200, 200, dtype=torch.float64), torch.ones(200, 200).double()))
    found = alignkit.average([base, tuned], method="dare", density=0.25, seed=1)["w"]
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert float(found.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(found, alignkit.average([base, tuned], method="dare", density=0.25, seed=1)["w"])
    assert not torch.equal(found, alignkit.average([base, tuned], method="dare", density=0.25, seed=2)["w"])
    twins = {"v": tuned["w"], "w": tuned["w"].clone()}
    both = alignkit.average([{n: torch.zeros_like(t) for n, t in twins.items()}, twins], method="dare", density=0.25)
    assert not torch.equal(both["v"], both["w"])


@pytest.mark.parametrize("method", METHODS)
def test_one_task_vector_whole_gives_the_tuned_network_and_none_the_base(method):
    base, tuned = networks(2)
    assert all(torch.allclose(alignkit.average([base, tuned], method=method, density=1)[n], tuned[n]) for n in tuned)
    assert all(torch.equal(alignkit.average([base, tuned], [0], method)[n], base[n]) for n in base)


def test_task_arithmetic_is_a_weighted_sum_of_task_vectors():
    base, *tuned = networks(3)
    found = alignkit.average([base, *tuned], [0.5, -2], "task_arithmetic")
    for name in base:
        expected = base[name] + 0.5 * (tuned[0][name] - base[name]) - 2 * (tuned[1][name] - base[name])
        assert torch.allclose(found[name], expected)


@pytest.mark.parametrize("method", METHODS)
def test_merge_aligns_before_it_takes_task_vectors(method):
    pair = pair_of("two layers")
    graph, base = pair.graph, dict(pair.a)
    tuned = {name: tensor + 0.01 * pair.b[name] for name, tensor in base.items()}
    moved = Alignment.random(graph, 3).apply(tuned)
    merged = alignkit.merge(graph, base, moved, method=method, seed=4).network
    expected = alignkit.average([base, tuned], method=method, seed=4)
    assert all(torch.allclose(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", METHODS)
def test_running_statistics_are_averaged_and_never_negative(method):
    states = [{"n.running_var": torch.full((3,), value), "n.running_mean": torch.zeros(3)} for value in (1.0, 3.0, 0.1)]
    found = alignkit.average(states, [1, 3], method)["n.running_var"]
    assert torch.allclose(found, torch.full((3,), 0.25 * 3 + 0.75 * 0.1))


def test_what_does_not_fit_is_refused():
    base, tuned = networks(2)
    for density in (0, -1, 1.5, float("nan")):
        with pytest.raises(MergeError, match="density is"):
            alignkit.average([base, tuned], method="ties", density=density)
    with pytest.raises(MergeError, match="2 weights for 1 task vector: give one for each model but the first"):
        alignkit.average([base, tuned], [1, 1], "ties")
    with pytest.raises(MergeError, match="takes a base and at least one model"):
        alignkit.average([base], method="ties")
    with pytest.raises(MergeError, match=r"weights\[0\] is nan"):
        alignkit.average([base, tuned], [float("nan")], "dare")
