"""`alignkit zoo`: a data set of networks from one command."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import alignkit.zoo as zoo
from alignkit.cli import app
from helpers.command_line import run


def test_the_command_makes_a_set(tmp_path: Path) -> None:
    command = ["zoo", str(tmp_path / "cnns"), "--family", "cnn", "--widths", "3,4", "--option", "activation=tanh"]
    command += ["--count", "3", "--steps", "5", "--source-option", "classes=[0, 1]", "--size", "4"]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "3 networks: cnn 3-4 k3 max flatten tanh on digits 4x4, 100 % of classes 0 1" in shown.output
    assert len(zoo.NetworkSet.open(tmp_path / "cnns")) == 3
    refused = CliRunner().invoke(app, ["zoo", str(tmp_path / "x"), "--source", "mnist"], env={"COLUMNS": "200"})
    assert refused.exit_code == 1
    assert "give the folder that holds train-images-idx3-ubyte.gz" in refused.output
    assert not (tmp_path / "x").exists() or not list((tmp_path / "x").glob("*.safetensors"))
    wrong = CliRunner().invoke(app, ["zoo", str(tmp_path / "y"), "--widths", "a,b"], env={"COLUMNS": "200"})
    assert wrong.exit_code == 2


WRONG = {
    "family": ["--family", "rnn"],
    "source": ["--source", "nothing"],
    "field": ["--option", "depth=3"],
    "value": ["--option", "activation=none"],
    "field of the source": ["--source-option", "turned=45"],
    "widths": ["--widths", "a,b"],
    "splits": ["--splits", "1,2"],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_meant_is_wrong_use(wrong: str, tmp_path: Path) -> None:
    said = run("zoo", tmp_path / "nets", "--count", "1", *WRONG[wrong], code=2)
    assert "Input tag" not in said
    assert not (tmp_path / "nets").exists()


def test_a_second_run_says_that_nothing_was_left_to_do(tmp_path: Path) -> None:
    call = ["zoo", tmp_path / "nets", "--widths", "4", "--count", "2", "--steps", "1"]
    first = run(*call)
    assert first.startswith("2 networks: ")
    assert run(*call) == f"All were there already.\n{first}"
    said = run(*call[:-3], "3", *call[-2:], code=1)
    assert "count is 2 there and 3 now. A set does not grow" in said


def test_a_dry_run_says_what_a_set_would_take_and_writes_nothing(tmp_path: Path) -> None:
    call = (
        "zoo",
        tmp_path / "set",
        "--source",
        "digits",
        "--count",
        "3",
        "--shard",
        "2",
        "--steps",
        "5",
        "--widths",
        "8",
    )
    said = run(*call, "--dry-run")
    assert "nothing was trained or written" in said and "3 networks: mlp 8 relu, 5 steps each" in said
    assert "2 files of networks" in said and "Time: about" in said
    assert not list(tmp_path.iterdir())
    run(*call)
    assert "3 of 3 are there already" in run(*call, "--dry-run")
    assert "other settings" in run(*call[:-1], "9", "--dry-run", code=1)
