"""Which pairs aligners learn from: labelled, unlabelled and held out, with their probes."""

from __future__ import annotations

import torch

from alignkit import Alignment
from alignkit.training import Augmentations
from helpers.training_runs import Small, pool_of, same


def test_the_answer_of_a_labelled_pair_brings_the_copy_back(small):
    pool = pool_of(small, augmentations=Augmentations(noise=0, zeroing=0, scaling=0, rescaling=1, flips=False))
    pair, answer = pool.labelled(3, probed=False)
    assert any(not torch.equal(pair.a[name], pair.b[name]) for name in pair.a)
    assert all(torch.equal(answer.apply(pair.b)[name], pair.a[name]) for name in pair.a)


def test_unlabelled_pairs_are_two_training_networks_that_learnt_the_same():
    networks = Small(width=4, count=10, kinds=2, validation=2)
    pool = pool_of(networks)
    seen = set()
    for seed in range(60):
        pair, left = pool.unlabelled(seed, probed=False)
        right = next(i for i in range(10) if torch.equal(networks[i]["0.weight"], pair.b["0.weight"]))
        assert left != right and left < 8 and right < 8 and left % 2 == right % 2
        seen.add((left, right))
    assert len(seen) > 15


def test_a_seed_decides_a_pair_and_its_probes(small):
    pool = pool_of(small)
    (one, _), (again, _), (other, _) = (pool.unlabelled(seed, probed=True) for seed in (1, 1, 2))
    assert torch.equal(one.probing.batch.inputs, again.probing.batch.inputs)
    assert same(one.a, again.a) and same(one.b, again.b)
    assert not torch.equal(one.probing.batch.inputs, other.probing.batch.inputs)


def test_held_out_pairs_are_the_same_at_every_call_and_apart_from_training(small):
    pool = pool_of(small)
    first, second = (list(pool.held_out_pairs(10, probed=True)) for _ in range(2))
    assert len(first) == 3  # of three networks
    for (one, _), (other, _) in zip(first, second, strict=True):
        assert same(one.a, other.a) and torch.equal(one.probing.batch.inputs, other.probing.batch.inputs)
    training = [small[i]["0.weight"] for i in small.indices("train")]
    assert not any(torch.equal(pair.a["0.weight"], weight) for pair, _ in first for weight in training)


def test_probes_are_data_or_random_as_asked(small):
    rows = {tuple(row.tolist()) for row in small.inputs}

    def from_data(kind):
        pool = pool_of(small, probe_inputs=kind, probes=8)
        pairs = [pool.unlabelled(seed, probed=True)[0] for seed in range(12)]
        return [tuple(pair.probing.batch.inputs[0].tolist()) in rows for pair in pairs]

    assert all(from_data("data")) and not any(from_data("random"))
    assert len(set(from_data("mixed"))) == 2


def test_labels_are_elements_of_the_group(small):
    _, answer = pool_of(small).labelled(1, probed=False)
    assert isinstance(answer, Alignment) and not answer.is_identity
