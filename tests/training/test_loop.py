"""Training of aligners: held-out barriers fall, a killed run ends as one that was not, and errors say what to do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from alignkit import Alignment, builders
from alignkit.cli import app
from alignkit.deepalign import Aligner, DwsAligner, load_aligner, read_card
from alignkit.errors import MissingExtraError, TrainingError
from alignkit.training import CHECKPOINT, METRICS, RECOMMENDED, Augmentations, TrainingSettings, read_metrics, train
from alignkit.training.pairs import Limits, Pool
from alignkit.training.step_losses import Portion, StepLosses
from helpers.training_runs import QUICK, Small, fresh, perceptron


@pytest.fixture(scope="module")
def small():
    return Small()


LIGHT = {"augmentations": Augmentations(noise=0.5, zeroing=0.1)}


def parameters(aligner):
    return {name: tensor.clone() for name, tensor in aligner.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------- pairs


def pool_of(networks, **limits):
    return Pool(networks, Limits(**limits))


def test_the_answer_of_a_labelled_pair_brings_the_copy_back(small):
    pool = pool_of(small)
    quiet = Augmentations(noise=0, zeroing=0, scaling=0, rescaling=1, flips=False)
    pair, answer = pool.labelled(quiet, 3, probed=False)
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
            found = [StepLosses(aligner, settings)(Portion(pool, 1000 + i, range(4), labelled=True)) for i in range(6)]
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
from alignkit.training.step_losses import Portion, StepLosses
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
    with pytest.raises(TrainingError, match="cannot be read as a checkpoint"):
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


# ---------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def zoo_folder(tmp_path_factory):
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    from alignkit import zoo

    folder = tmp_path_factory.mktemp("zoo") / "networks"
    zoo.write_set(folder, zoo.Mlp(widths=(8, 8)), zoo.source("digits"), 10, seed=0, epochs=2, splits=(0.6, 0.4, 0.0))
    return folder


SWITCHES = ["--steps", "4", "--setting", "pairs=2", "--setting", "validation_pairs=2", "--encoder-option", "hidden=8"]


def run(*arguments):
    return CliRunner().invoke(app, ["train-deepalign", *map(str, arguments)])


def test_the_command_writes_an_aligner_with_its_card(zoo_folder, tmp_path):
    output = tmp_path / "aligner.safetensors"
    shown = run(zoo_folder, "-o", output, "--encoder", "dws", "--seed", 3, *SWITCHES, "--json")
    assert shown.exit_code == 0, shown.output
    facts = json.loads(shown.stdout)
    aligner = load_aligner(output)
    assert facts["fingerprint"] == aligner.fingerprint
    card = read_card(output)
    assert "mlp 8-8 relu" in card["data"] and "digits" in card["data"]
    assert card["seed"] == "3" and "--encoder dws --steps 4 --seed 3 --setting pairs=2" in card["command"]
    assert str(tmp_path) not in json.dumps(card)
    assert list(json.loads(card["log"])) == ["0", "4"]


def test_the_command_goes_on_where_it_was(zoo_folder, tmp_path):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    assert run(zoo_folder, "-o", one, "--encoder", "dws", *SWITCHES).exit_code == 0
    refused = run(zoo_folder, "-o", other, "--encoder", "dws", *SWITCHES, "--log", tmp_path / "one-training")
    assert refused.exit_code == 2 and "--resume" in refused.output
    log = tmp_path / "one-training"
    resumed = run(zoo_folder, "-o", other, "--encoder", "dws", *SWITCHES, "--log", log, "--resume")
    assert resumed.exit_code == 0 and "weight matching" in resumed.output
    assert load_aligner(one).fingerprint == load_aligner(other).fingerprint
    assert read_card(one) == read_card(other)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        (["--encoder", "dwz"], "Did you mean 'dws'"),
        (["--setting", "pears=3"], "pears"),
        (["--setting", "pairs=0"], "greater than or equal to 1"),
        (["--setting", "steps=3"], "use --steps instead"),
        (["--setting", "noise"], "KEY=VALUE"),
        (["--setting", "pairs.noise=1"], "'pairs' has no settings of its own"),
        (["--encoder-option", "colour=3"], "colour"),
    ],
)
def test_wrong_switches_are_named(switches, message, zoo_folder, tmp_path):
    shown = run(zoo_folder, "-o", tmp_path / "aligner.safetensors", *switches)
    assert shown.exit_code == 2
    assert message in " ".join(shown.output.split())
    assert not list(tmp_path.iterdir())


def test_an_aligner_can_be_the_start_of_the_next(zoo_folder, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert run(zoo_folder, "-o", first, "--encoder", "dws", *SWITCHES).exit_code == 0
    shown = run(zoo_folder, "-o", second, "--start", first, "--steps", 2, "--setting", "pairs=2")
    assert shown.exit_code == 0, shown.output
    wrong = run(zoo_folder, "-o", tmp_path / "third.safetensors", "--start", first, "--encoder", "learned")
    assert wrong.exit_code == 2 and "holds a 'dws' encoder" in " ".join(wrong.output.split())


def test_help_starts_with_an_example():
    shown = run("--help").output
    assert "Example: alignkit train-deepalign" in " ".join(shown.split())


def test_labels_are_elements_of_the_group(small):
    _, answer = pool_of(small).labelled(Augmentations(), 1, probed=False)
    assert isinstance(answer, Alignment) and not answer.is_identity
