"""Minibatches: which samples come together, and when."""

from __future__ import annotations

import torch
from torch import nn

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
