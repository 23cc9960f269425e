"""How held-out pairs are judged."""

from __future__ import annotations

import pytest
from torch import nn

from alignkit import average, interpolate, reset_batchnorm, solve
from alignkit.training import TrainingSettings
from alignkit.training.held_out import HeldOut
from helpers.training_runs import Small, pool_of

NORMS = [nn.BatchNorm1d, nn.SyncBatchNorm, lambda width: nn.BatchNorm1d(width, affine=False)]


@pytest.mark.parametrize("norm", NORMS, ids=["BatchNorm1d", "SyncBatchNorm", "without scales"])
def test_networks_between_two_are_judged_with_statistics_of_their_own(norm):
    class Normed(Small):
        def model(self):
            return nn.Sequential(nn.Linear(8, 12), norm(12), nn.ReLU(), nn.Linear(12, 4)).eval()

    networks = Normed(count=6, validation=2)
    settings = {"validation_points": 3, "validation_samples": 400}
    (reference,) = HeldOut([pool_of(networks, **settings)], TrainingSettings(**settings), probed=False).references
    task = networks.task("test", 400, None, index=4, device="cpu")
    a, b = networks.model(), networks.model()
    a.load_state_dict(networks[4])
    b.load_state_dict(networks[5])
    aligned = solve(networks.graph, a, b).apply(b)
    ends = [task.evaluate(network).loss for network in (a, aligned)]
    middle = task.evaluate(reset_batchnorm(average([a, aligned]), task)).loss
    assert reference == pytest.approx(max(0.0, middle - sum(ends) / 2), abs=1e-6)
    assert reference != pytest.approx(interpolate(task, a, aligned, points=3).barrier, abs=5e-4)
