"""Results of jobs stay what they are, whatever is written to what they were made from or to what they handed out."""

from __future__ import annotations

import pytest
import torch

import alignkit
from alignkit import Alignment
from alignkit.errors import AlignmentError
from alignkit.jobs import ManyAlignment
from helpers.small_pairs import pair_of

PAIR = pair_of("heads")
GRAPH = PAIR.graph


def networks(count=3):
    torch.manual_seed(1)
    return [{name: torch.randn(node.shape) for name, node in GRAPH.tensors.items()} for _ in range(count)]


def copies(weights):
    return {name: tensor.clone() for name, tensor in weights.items()}


def same(a, b):
    return all(torch.equal(a[name], tensor) for name, tensor in b.items())


def test_an_alignment_of_many():
    parts = [Alignment.random(GRAPH, seed) for seed in range(3)]
    many = ManyAlignment(parts, "reference", "weight_matching", 0, 1.0, 1.0, [])
    expected = many.apply(networks())
    parts.clear()
    for alignment in many.alignments:
        for element in alignment.elements.values():
            element.zero_()
    with pytest.raises(AttributeError):
        many.alignments.clear()
    assert all(same(a, b) for a, b in zip(many.apply(networks()), expected, strict=True))


def test_a_distance():
    a, b, _ = networks()
    distance = alignkit.distance(GRAPH, a, b)
    before = distance.before, distance.after
    with pytest.raises(AttributeError):
        distance.tensors.clear()
    for tensor in (*a.values(), *b.values()):
        tensor.zero_()
    assert (distance.before, distance.after) == before


@pytest.mark.parametrize(
    "job",
    [
        lambda a, b, c: alignkit.average([a, b]),
        lambda a, b, c: alignkit.average([a, b], method="slerp"),
        lambda a, b, c: alignkit.merge(GRAPH, a, b).network,
        lambda a, b, c: alignkit.transport(GRAPH, a, b, tuned=c).network,
        lambda a, b, c: alignkit.solve(GRAPH, a, b).apply(b),
        lambda a, b, c: alignkit.canonicalize(GRAPH, [b, c], a).network(0),
        lambda a, b, c: alignkit.align_many(GRAPH, a, b, c).apply([a, b, c])[0],
    ],
)
def test_networks_that_come_out_share_no_memory_with_those_that_went_in(job):
    sides = networks()
    kept = [copies(side) for side in sides]
    result = job(*sides)
    expected = copies(result)
    for tensor in result.values():
        tensor.fill_(7)
    assert all(same(side, before) for side, before in zip(sides, kept, strict=True))
    result = job(*sides)
    for side in sides:
        for tensor in side.values():
            tensor.zero_()
    assert same(result, expected)


def test_indices_of_many_networks_are_checked_before_they_are_used():
    a, b, c = networks()
    canonical = alignkit.canonicalize(GRAPH, [b, c], a)
    canonical.elements["k"].zero_()
    with pytest.raises(AlignmentError, match="group 'k' are not a permutation"):
        canonical.alignment(0)
