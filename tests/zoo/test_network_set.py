"""Network data sets on disk: written shard by shard, resumed, read lazily."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import alignkit.zoo as zoo
from alignkit import read_weights, write_weights
from alignkit.errors import ZooError
from helpers.documents import unsealed

DIGITS = zoo.source("digits")
MLP = zoo.Mlp(widths=(16,))


def plan_mlps(seed: int = 4) -> zoo.SetPlan:
    """8 MLPs in three files."""
    return zoo.plan_set(MLP, DIGITS, 8, recipe=zoo.Recipe(epochs=2), seed=seed, shard=3, shares=(0.5, 0.25, 0.25))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 MLPs in three files."""
    folder = tmp_path_factory.mktemp("sets") / "mlps"
    zoo.write_set(folder, plan_mlps())
    return folder


def test_a_set_reads_back_what_was_trained(made: Path) -> None:
    network_set = zoo.NetworkSet.open(made)
    trained = zoo.train(MLP, DIGITS, 8, seed=4, chunk=3, recipe=zoo.Recipe(epochs=2))
    assert len(network_set) == 8
    for index in range(8):
        assert all(torch.allclose(value, trained[index][name], atol=1e-4) for name, value in network_set[index].items())
    stacked = network_set.stack([7, 0, 7])
    assert torch.equal(stacked["out.bias"][0], network_set[7]["out.bias"])
    assert torch.equal(stacked["out.bias"][1], network_set[0]["out.bias"])
    assert torch.equal(network_set[-1]["out.bias"], network_set[7]["out.bias"])
    assert sum(1 for _ in network_set) == 8 and len(network_set[2:4]) == 2


def test_splits_hold_every_network_once(made: Path) -> None:
    network_set = zoo.NetworkSet.open(made)
    splits = [network_set.indices(name) for name in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [4, 2, 2]
    assert sorted(index for split in splits for index in split) == list(range(8))
    assert len(network_set.pairs("train")) == 6


def test_views_of_a_signal_stay_in_one_split(tmp_path: Path) -> None:
    waves = zoo.source("sine", points=32, views=2)
    network_set = zoo.write_set(
        tmp_path / "waves",
        zoo.plan_set(zoo.Siren(widths=(4,)), waves, 12, recipe=zoo.Recipe(steps=2), shares=(0.5, 0.0, 0.5)),
    )
    for name in ("train", "test"):
        indices = network_set.indices(name)
        assert len(indices) == 6
        assert sorted(network_set.target(index) for index in indices) == sorted(
            2 * [network_set.target(i) for i in indices[::2]]
        )
        assert len(network_set.pairs(name)) == 3
        assert all(network_set.target(i) == network_set.target(j) for i, j in network_set.pairs(name))


def test_model_graph_and_task_belong_to_the_set(made: Path) -> None:
    network_set = zoo.NetworkSet.open(made)
    graph = network_set.graph
    assert graph is network_set.graph
    assert set(graph.tensors) == set(network_set[0])
    model = network_set.model()
    graph.verify(model, torch.randn(3, 1, 8, 8))
    task, record = network_set.task(), network_set.manifest.networks[5]
    result = task.evaluate(network_set[5])
    assert result.loss == pytest.approx(record.loss, rel=1e-4)
    assert result.metric == pytest.approx(record.accuracy)
    assert network_set.task("train", samples=100).evaluate(network_set[5]).samples == 100


def test_the_task_of_a_wave_is_that_of_its_network(tmp_path: Path) -> None:
    waves = zoo.source("sine", points=64)
    network_set = zoo.write_set(
        tmp_path / "waves", zoo.plan_set(zoo.Siren(widths=(16,)), waves, 4, recipe=zoo.Recipe(steps=100))
    )
    for index in (1, 3):
        result = network_set.task(index=index).evaluate(network_set[index])
        assert result.loss == pytest.approx(network_set.manifest.networks[index].loss, rel=1e-3, abs=1e-6)


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_and_ends_with_the_same_files(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mlps"

    def kill(done: float, total: int) -> None:
        if done > 4:
            raise Killed

    with pytest.raises(Killed):
        zoo.write_set(folder, plan_mlps(), progress=kill)
    with pytest.raises(ZooError, match="holds 3 of 8 networks"):
        zoo.NetworkSet.open(folder)
    kept = (folder / "networks-00000.safetensors").stat().st_mtime_ns
    (folder / "networks-00001.safetensors").write_bytes(b"a file that was being written")
    done: list[float] = []
    zoo.write_set(folder, plan_mlps(), progress=lambda now, total: done.append(now))
    assert done == sorted(done) and 3 < done[0] < 4 and done[-1] == 8
    assert (folder / "networks-00000.safetensors").stat().st_mtime_ns == kept
    for path in made.glob("*.safetensors"):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_another_process_on_the_same_folder_does_no_harm(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mlps"
    once: list[int] = []

    def other(done: float, total: int) -> None:
        if not once:
            once.append(1)
            zoo.write_set(folder, plan_mlps())

    network_set = zoo.write_set(folder, plan_mlps(), progress=other)
    assert network_set.manifest.complete
    for path in made.glob("*.safetensors"):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_other_settings_are_refused_and_the_same_are_not_trained_again(made: Path) -> None:
    with pytest.raises(ZooError, match="made with other settings: seed is 4 there and 5 now"):
        zoo.write_set(made, plan_mlps(seed=5))
    again = zoo.write_set(made, plan_mlps(), progress=pytest.fail)
    assert len(again) == 8


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ZooError, match="holds no network data set"):
        zoo.write_set(tmp_path, zoo.plan_set(MLP, DIGITS, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("damage", ["no manifest", "no json", "version", "file", "content"])
def test_a_damaged_set_is_refused(made: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    manifest = json.loads((folder / "manifest.json").read_text())
    if damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "no json":
        (folder / "manifest.json").write_text("{")
    elif damage == "version":
        (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    elif damage == "file":
        (folder / "networks-00001.safetensors").unlink()
    else:
        (folder / "networks-00001.safetensors").write_bytes(b"nothing")
    with pytest.raises(ZooError, match=r"manifest.json|networks-00001.safetensors"):
        zoo.NetworkSet.open(folder)[4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shards: shards[0].update(file="../outside.safetensors"), "only files inside"),
        (lambda shards: shards[1].update(first=2), "in order"),
        (lambda shards: shards[0]["networks"].append(shards[0]["networks"][0]), "in order"),
        (lambda shards: shards[1]["networks"].append({**shards[1]["networks"][0], "index": 6}), "in order"),
    ],
)
def test_a_manifest_names_networks_of_its_folder_once(made: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    shutil.copy(folder / "networks-00000.safetensors", tmp_path / "outside.safetensors")
    manifest = unsealed((folder / "manifest.json").read_text())
    change(manifest["shards"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ZooError, match=message):
        zoo.NetworkSet.open(folder)


def test_files_with_fewer_networks_than_the_manifest_says_are_refused(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    path = folder / "networks-00001.safetensors"
    write_weights(path, {name: tensor[:1] for name, tensor in read_weights(path).items()})
    assert zoo.NetworkSet.open(folder)[3]
    with pytest.raises(ZooError, match=r"networks-00001\.safetensors"):
        zoo.NetworkSet.open(folder)[4]


def test_wrong_requests_are_errors(made: Path) -> None:
    network_set = zoo.NetworkSet.open(made)
    with pytest.raises(ZooError, match="no split is named 'tset'"):
        network_set.indices("tset")
    with pytest.raises(ZooError, match=r"holds networks 0 to 7; asked for \[8\]"):
        network_set.stack([0, 8])
    with pytest.raises(IndexError):
        network_set[8]
    with pytest.raises(ZooError, match="no split 'validation'"):
        network_set.task("validation")
    with pytest.raises(ZooError, match="add up to 1"):
        zoo.plan_set(MLP, DIGITS, 2, shares=(0.5, 0.1, 0.1))


def test_a_run_that_was_killed_before_its_first_manifest_is_begun_again(tmp_path):
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / ".manifest.json.0123abcd.alignkit-part").write_text("{")
    plan = zoo.plan_set(zoo.Mlp(widths=(2,)), zoo.source("digits"), 1, recipe=zoo.Recipe(steps=1))
    assert len(zoo.write_set(tmp_path / "nets", plan)) == 1
    assert [path.name for path in (tmp_path / "nets").iterdir() if path.name.startswith(".")] == []
