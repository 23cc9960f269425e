"""Domain aligners: trained on sets of several shapes, better than probes on a shape never seen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from alignkit import Task, interpolate, solve, trace
from alignkit.deepalign import DwsAligner, ProbeEncoder, save_aligner
from alignkit.deepalign.aligner import USUAL
from alignkit.errors import TrainingError, UsageError
from alignkit.training import TrainingSettings, learn_domain, train
from alignkit.training.scheduling import choose_schedule
from helpers.training_runs import QUICK, Small


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An aligner of the domain of two shapes, and where it was saved."""
    sets = [Small(width=12), Small(width=20)]
    torch.manual_seed(0)
    aligner = ProbeEncoder(channels=4, rounds=1)
    learn_domain(aligner, sets)
    settings = TrainingSettings(steps=4, **{**QUICK, "validation_pairs": 3})
    folder = tmp_path_factory.mktemp("training")
    result = train(aligner, sets, settings, folder)
    save_aligner(folder / "aligner.safetensors", result.aligner)
    return result, folder / "aligner.safetensors"


def test_barriers_of_a_shape_that_was_never_seen_fall_without_data(trained):
    held_out = Small(width=16, count=8)
    task = held_out.task("test", None, None, index=0, device=None)

    def barrier(**options):
        total = 0.0
        for left, right in zip(range(0, 8, 2), range(1, 8, 2), strict=True):
            a, b = held_out.model(), held_out.model()
            a.load_state_dict(held_out[left])
            b.load_state_dict(held_out[right])
            pair = held_out.graph.bind(a, b)
            solution = solve(pair, solver="deepalign", **options)
            total += interpolate(task, a, solution.apply(b)).barrier
        return total

    ours = barrier(encoder="learned", checkpoint=trained[1])
    assert ours < 0.9 * barrier(input_shape=(8,), midpoint_steps=0)


def test_what_is_chosen_is_never_worse_on_held_out_pairs(trained):
    result, _ = trained
    assert result.score <= result.start

    def measure(aligner, schedule):
        return {USUAL.steps: 1.0, 2 * USUAL.steps: 0.5}.get(schedule.steps, 2.0), (1.0,)

    aligner = ProbeEncoder()
    assert choose_schedule(aligner, SimpleNamespace(measure=measure))[0] == 0.5
    assert aligner.schedule.steps == 2 * USUAL.steps
    assert (aligner.schedule.rounds, aligner.schedule.rate) == (USUAL.rounds, USUAL.rate)


class Wider(Small):
    """Networks whose inputs are longer."""

    def task(self, split, samples, folder, *, index, device):
        inputs = torch.cat([self.inputs, self.inputs], 1)
        return Task(self.model(), (inputs[:samples], self.labels[:samples]), "cross_entropy", device=device)


class Numbers(Small):
    """Networks whose outputs are numbers."""

    def task(self, split, samples, folder, *, index, device):
        return Task(self.model(), (self.inputs[:samples], torch.zeros(len(self.inputs), 4)[:samples]), "mse")


@pytest.mark.parametrize(
    ("other", "said"),
    [(Wider, "set 1 has 8 inputs of classes and set 2 16 inputs of classes"), (Numbers, "and set 2 8 inputs:")],
)
def test_sets_of_two_domains_are_refused(other, said):
    with pytest.raises(UsageError, match=said):
        learn_domain(ProbeEncoder(), [Small(count=2, validation=0), other(count=2, validation=0)])


def test_an_aligner_that_runs_no_networks_has_no_domain():
    networks = Small(count=2, validation=0)
    with pytest.raises(UsageError, match="'dws' runs no networks"):
        learn_domain(DwsAligner(networks.graph, hidden=8, output=8, layers=1), [networks])


def test_networks_of_another_domain_are_not_learned_from(trained, tmp_path):
    aligner = ProbeEncoder(domain={"shape": [3, 8, 8], "classes": True, "centres": 4, "rank": 4})
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4))
    networks = Small(count=4, validation=2)
    networks.graph = trace(model, torch.zeros(1, 8))
    with pytest.raises(TrainingError, match="set 1: it was trained on 3x8x8 inputs, and these are 8"):
        train(aligner, [networks], TrainingSettings(steps=1, **QUICK), tmp_path)
