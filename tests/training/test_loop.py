"""Training of aligners: held-out barriers fall, a killed run ends as one that was not, and errors say what to do."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from alignkit import builders
from alignkit.deepalign import Aligner, DwsAligner, load_aligner
from alignkit.errors import MissingExtraError, TrainingError
from alignkit.training import CHECKPOINT, METRICS, RECOMMENDED, Augmentations, TrainingSettings, read_metrics, train
from alignkit.training.losses import StepLosses
from helpers.training_runs import QUICK, Small, fresh, parameters, perceptron, pool_of, same

LIGHT = {"augmentations": Augmentations(noise=0.5, zeroing=0.1)}


# ---------------------------------------------------------------------- training


@pytest.mark.slow
def test_training_for_one_architecture_lowers_the_barrier_of_held_out_networks(small, tmp_path):
    settings = RECOMMENDED["dws"].model_copy(
        update={"steps": 60, "pairs": 4, "learning_rate": 5e-3, "validate_every": 20, "validation_pairs": 3, **LIGHT}
    )
    torch.manual_seed(0)
    result = train(DwsAligner(small.graph, hidden=16, output=16, layers=2), [small], settings, tmp_path)
    assert result.score < 0.7 * result.start
    assert result.best_step > 0


@pytest.mark.slow
def test_training_of_the_probe_encoder_lowers_its_losses(small, tmp_path):
    settings = TrainingSettings(
        steps=30, pairs=4, validation_pairs=0, supervised_every=2, probes=16, learning_rate=1e-2
    )
    pool, aligner = pool_of(small, probes=16), fresh("learned", small.graph)

    def losses():
        """Means over pairs that no training step has."""
        with torch.no_grad():
            found = [StepLosses(aligner, settings)(pool, 1000 + i, tuple(range(4)), True) for i in range(6)]
        return {name: sum(float(one[name]) for one in found) for name in found[0]}

    before = losses()
    train(aligner, [small], settings, tmp_path)
    after = losses()
    assert all(after[name] < before[name] for name in ("alignment", "interpolation", "supervised"))
    assert after["supervised"] < 0.96 * before["supervised"]


class Stop(Exception):  # noqa: N818
    """Stands for a kill in the middle of a run."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dws", "learned"])
@pytest.mark.parametrize("stop_after", [3, 8])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(kind, stop_after, small, tmp_path):
    settings = TrainingSettings(steps=10, **QUICK)
    whole = train(fresh(kind, small.graph), [small], settings, tmp_path / "whole")

    def stop(row):
        if row.step == stop_after and row.loss is not None:
            raise Stop

    with pytest.raises(Stop):
        train(fresh(kind, small.graph), [small], settings, tmp_path / "cut", report=stop)
    aligner = fresh(kind, small.graph)
    resumed = train(aligner, [small], settings, tmp_path / "cut", resume=True)
    assert same(parameters(whole.aligner), parameters(resumed.aligner))
    assert (whole.score, whole.best_step, whole.steps) == (resumed.score, resumed.best_step, resumed.steps)
    last = [torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("whole", "cut")]
    assert same(last[0]["aligner"], last[1]["aligner"])

    def numbers(folder):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(tmp_path / folder / METRICS)]

    assert numbers("whole") == numbers("cut")


KILLED = """
import sys, torch
from helpers.training_runs import QUICK, Small, fresh
from alignkit.training.losses import StepLosses
from alignkit.training import TrainingSettings, train
small = Small(width=6, count=6)
train(fresh("dws", small.graph), [small], TrainingSettings(steps=500, **QUICK), sys.argv[1], resume=True)
"""


@pytest.mark.slow
def test_a_run_goes_on_after_a_kill_at_any_moment(tmp_path):
    folder = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=folder, stderr=subprocess.PIPE)
    metrics = tmp_path / METRICS
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / CHECKPOINT).exists() and metrics.read_text().count("\n") > 12:
            break
        time.sleep(0.02)
    process.kill()
    _, message = process.communicate()
    assert process.returncode == -9, message.decode()
    done = torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"]
    small = Small(width=6, count=6)
    settings = TrainingSettings(steps=500, **QUICK)

    def stop(row):
        if row.step == done + 6 and row.loss is not None:
            raise Stop

    with pytest.raises(Stop):
        train(fresh("dws", small.graph), [small], settings, tmp_path, resume=True, report=stop)
    resumed = {int(row["step"]): row["loss"] for row in read_metrics(metrics) if row["loss"]}

    def stop_whole(row):
        if row.step == done + 6 and row.loss is not None:
            raise Stop

    with pytest.raises(Stop):
        train(fresh("dws", small.graph), [small], settings, tmp_path / "whole", report=stop_whole)
    whole = {int(row["step"]): row["loss"] for row in read_metrics(tmp_path / "whole" / METRICS) if row["loss"]}
    assert whole == resumed and max(whole) == done + 6


def test_gradients_of_portions_add_up_to_those_of_the_whole_step(small, tmp_path):
    found = []
    for at_once in (None, 1):
        settings = TrainingSettings(steps=3, pairs_at_once=at_once, validation_pairs=0, pairs=3, probes=16)
        aligner = fresh("dws", small.graph)
        train(aligner, [small], settings, tmp_path / str(at_once))
        found.append(read_metrics(tmp_path / str(at_once) / METRICS))
    for one, other in zip(*found, strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)
        assert float(one["gradient_norm"]) == pytest.approx(float(other["gradient_norm"]), rel=1e-2)


@pytest.mark.slow
def test_sets_take_turns_or_come_as_often_as_their_weight(tmp_path):
    sets = [Small(width=width, count=5, validation=2) for width in (4, 6)]
    drawn = {}
    for name, weights in (("turns", None), ("weighted", (0.0, 1.0))):
        settings = TrainingSettings(steps=6, set_weights=weights, **{**QUICK, "validation_pairs": 1})
        train(fresh("learned", sets[0].graph), sets, settings, tmp_path / name)
        rows = read_metrics(tmp_path / name / METRICS)
        drawn[name] = [row["set"] for row in rows if row["set"]]
        looks = [row for row in rows if row["held_out"]]
        assert all(row["barrier_1"] and row["barrier_2"] for row in looks) and len(looks) == 3
    assert drawn == {"turns": ["1", "2"] * 3, "weighted": ["2"] * 6}


def test_training_stops_when_held_out_barriers_no_longer_fall(small, tmp_path):
    settings = TrainingSettings(steps=100, learning_rate=1e-12, patience=2, **{**QUICK, "validate_every": 2})
    result = train(fresh("dws", small.graph), [small], settings, tmp_path)
    assert result.stopped and result.steps == 4 and result.best_step == 0
    again = train(fresh("dws", small.graph), [small], settings, tmp_path, resume=True)
    assert again.stopped and again.steps == 4


def test_the_best_step_is_what_comes_back(small, tmp_path):
    # A learning rate that destroys what is there.
    settings = TrainingSettings(steps=4, learning_rate=10.0, supervised=0, clip=1e6, **QUICK)
    result = train(fresh("learned", small.graph), [small], settings, tmp_path)
    scores = [float(row["held_out"]) for row in read_metrics(tmp_path / METRICS) if row["held_out"]]
    assert result.score == pytest.approx(min(scores)) and result.score < max(scores)
    best = load_aligner(tmp_path / "best.safetensors")
    assert same(parameters(best), parameters(result.aligner))


def test_mixed_precision_trains_too(small, tmp_path):
    settings = TrainingSettings(steps=3, precision="bf16-mixed", **QUICK)
    result = train(fresh("dws", small.graph), [small], settings, tmp_path)
    rows = [row for row in read_metrics(tmp_path / METRICS) if row["loss"]]
    assert len(rows) == 3 and all(float(row["gradient_norm"]) > 0 for row in rows)
    assert all(tensor.dtype == torch.float32 for tensor in result.aligner.state_dict().values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu(small, tmp_path):
    settings = TrainingSettings(steps=3, device="cuda", **QUICK)
    for kind in ("dws", "learned"):
        result = train(fresh(kind, small.graph), [small], settings, tmp_path / kind)
        assert result.steps == 3


# ---------------------------------------------------------------------- errors


def test_a_folder_with_another_run_is_refused(small, tmp_path):
    settings = TrainingSettings(steps=2, **QUICK)
    train(fresh("dws", small.graph), [small], settings, tmp_path)
    with pytest.raises(TrainingError, match="resume it"):
        train(fresh("dws", small.graph), [small], settings, tmp_path)
    changed = TrainingSettings(steps=2, **{**QUICK, "pairs": 3})
    with pytest.raises(TrainingError, match=r"settings.pairs was 2 and is 3"):
        train(fresh("dws", small.graph), [small], changed, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused(small, tmp_path):
    settings = TrainingSettings(steps=2, **QUICK)
    train(fresh("dws", small.graph), [small], settings, tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TrainingError, match="cannot be read"):
        train(fresh("dws", small.graph), [small], settings, tmp_path, resume=True)


def test_an_aligner_of_another_architecture_is_refused(small, tmp_path):
    with pytest.raises(TrainingError, match="set 1: "):
        train(fresh("dws", builders.mlp(perceptron(5))), [small], TrainingSettings(steps=1), tmp_path)


def test_sets_without_pairs_are_refused(tmp_path):
    lonely = Small(width=4, count=4, kinds=4, validation=1)
    with pytest.raises(TrainingError, match="two networks that learnt the same"):
        train(fresh("learned", lonely.graph), [lonely], TrainingSettings(steps=1), tmp_path)
    with pytest.raises(TrainingError, match="no sets"):
        train(fresh("learned", lonely.graph), [], TrainingSettings(steps=1), tmp_path)


def test_settings_that_make_no_sense_are_refused(small, tmp_path):
    for changes, message in (
        ({"set_weights": (1.0, 2.0)}, "1 numbers"),
        ({"validation_points": 4}, "odd"),
        ({"supervised": 0, "alignment": 0, "interpolation": 0}, "weight 0"),
    ):
        with pytest.raises(TrainingError, match=message):
            train(fresh("dws", small.graph), [small], TrainingSettings(steps=1, **changes), tmp_path)


class Broken(Aligner):
    encoder, needs_probes = "broken", False

    def forward(self, pair):
        sizes = {name: pair.graph.instances(name) * group.size for name, group in pair.graph.groups.items()}
        return {name: self.log_sharpness * torch.full((n, n), float("nan")) for name, n in sizes.items()}

    def settings(self):
        return {}


def test_gradients_that_stay_infinite_end_the_run(small, tmp_path):
    settings = TrainingSettings(steps=50, **{**QUICK, "validation_pairs": 0})
    before = Broken()
    with pytest.raises(TrainingError, match="no finite gradient"):
        train(before, [small], settings, tmp_path)
    assert torch.isfinite(before.log_sharpness)


def test_without_lightning_fabric_the_message_says_how_to_get_it(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"alignkit\[train\]\""):
        train(fresh("dws", small.graph), [small], TrainingSettings(steps=1), tmp_path)
