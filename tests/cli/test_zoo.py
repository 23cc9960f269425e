"""`alignkit zoo`: a data set of networks from one command."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

import alignkit.zoo as zoo
from alignkit.cli import app


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
