"""Which units a module reads and writes."""

from __future__ import annotations

import torch
from torch import nn

from alignkit import trace
from alignkit.deepalign.wiring import find_wiring


def test_connections_lead_from_what_is_read_to_what_is_written():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 2)
    )
    graph = trace(model, torch.randn(1, 1, 8, 8))
    (connection,) = find_wiring(graph, model).connections
    assert (connection.source.tensor, connection.source.group, connection.target.group) == (
        "2.weight",
        "layer.0",
        "layer.2",
    )
    weights = dict(model.state_dict())
    matrix = connection.matrix(weights)
    summed = weights["2.weight"].sum((2, 3))
    assert torch.allclose(matrix, summed / (summed.square().mean().sqrt() * 2))
