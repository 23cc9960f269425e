"""Minibatches: which samples come together, and when."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignkit.tasks import minibatches
from alignkit.tasks.minibatches import Minibatches
from alignkit.tasks.task import Task


def draws(task, samples, size, count, seed=0):
    batches = Minibatches(task, samples, size, torch.Generator().manual_seed(seed))
    return [batches.draw() for _ in range(count)]


def test_every_sample_comes_once_before_any_comes_again():
    model = nn.Linear(1, 1)
    inputs = torch.arange(20.0)[:, None]
    for source in ((inputs, inputs), list(zip(inputs.split(3), inputs.split(3), strict=True))):
        orders = draws(Task(model, source, "mse"), 18, 5, 4)
        assert sorted(torch.cat([batch.inputs for batch in orders]).flatten().tolist()) == list(range(18))
        assert all(torch.equal(batch.inputs, batch.targets) for batch in orders)
        again = draws(Task(model, source, "mse"), 18, 5, 4)
        assert all(torch.equal(x.inputs, y.inputs) for x, y in zip(orders, again, strict=True))


def test_batches_that_cannot_be_put_together_are_drawn_by_themselves():
    model = nn.Linear(1, 1)
    sources = [({"input": torch.ones(4, length, 1)}, torch.ones(4, length, 1)) for length in (2, 3, 2)]
    orders = draws(Task(model, sources, "mse"), 100, 8, 2)
    assert sorted(batch.inputs["input"].shape for batch in orders) == [(4, 3, 1), (8, 2, 1)]


@pytest.mark.parametrize(
    ("there", "width", "asked", "kept"),
    [
        (90, 1, None, 60),  # small samples: many
        (50, 1, None, 50),
        (90, 5, None, 20),  # 24 bytes each with their targets: as many as fit
        (90, 100, None, 10),  # large ones: no fewer than this
        (90, 100, 40, 40),
        (90, 1, 70, 70),
    ],
)
@pytest.mark.parametrize("batch", [90, 7])
def test_more_samples_are_kept_where_they_are_small(monkeypatch, there, width, asked, kept, batch):
    monkeypatch.setattr(minibatches, "USUAL_SAMPLES", 10)
    monkeypatch.setattr(minibatches, "MOST_SAMPLES", 60)
    monkeypatch.setattr(minibatches, "KEPT_BYTES", 20 * 24)
    inputs, targets = torch.randn(there, width), torch.zeros(there, 1)
    source = list(zip(inputs.split(batch), targets.split(batch), strict=True))
    found = Minibatches(Task(nn.Linear(width, 1), source, "mse"), asked, 4, torch.Generator())
    assert sum(pool.size for pool in found.pools) == kept
