"""Bad command lines and folders that cannot be written to: one message, and no file is left behind."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alignkit import Alignment, write_weights
from alignkit.cli import app
from alignkit.errors import WeightsError
from helpers.bad_files import GRAPH, contents, fill, good


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "files"))


@pytest.mark.parametrize("write", ["weights.safetensors", "weights.pt", "alignment", "picture"])
def test_a_folder_that_cannot_be_written_to(write: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = folder / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(locked, os.W_OK):  # the administrator may write anywhere

        def refuse(*arguments: Any) -> None:
            raise PermissionError(13, "Permission denied", str(locked))

        monkeypatch.setattr(os, "open", refuse)
    calls: dict[str, Callable[[], object]] = {
        "weights.safetensors": lambda: write_weights(locked / "out.safetensors", good()),
        "weights.pt": lambda: write_weights(locked / "out.pt", good()),
        "alignment": lambda: Alignment.identity(GRAPH).save(locked / "out.safetensors"),
        "picture": lambda: GRAPH.draw(locked / "out.png"),
    }
    with pytest.raises(WeightsError, match=r"cannot write .*locked.*out\..*: Permission denied"):
        calls[write]()
    assert not list(locked.iterdir())


PAIR, REST = "solve a.safetensors b.pt", "--spec spec.json -o out.pt"
SOLVE = f"{PAIR} --spec spec.json"

COMMANDS: dict[str, tuple[int, str, str]] = {
    "an unknown command": (2, "No such command 'align'", "align"),
    "no spec": (2, "either --spec spec.json, or --model", "solve a.safetensors b.pt -o out.pt"),
    "weights that are not there": (1, "absent.pt does not exist", f"solve a.safetensors absent.pt {REST}"),
    "weights with code": (1, "could run code", f"solve a.safetensors exploit.pt {REST}"),
    "weights with NaN": (1, "'fc1.bias' of B holds NaN", f"solve a.safetensors nan.pt {REST}"),
    "a spec that is not there": (1, "absent.json cannot be read", f"{PAIR} --spec absent.json -o out.pt"),
    "a spec that is no JSON": (1, "broken.json is not JSON", f"{PAIR} --spec broken.json -o out.pt"),
    "a spec of numbers": (1, "from names of tensors to layouts", f"{PAIR} --spec numbers.json -o out.pt"),
    "a wrong spec": (1, "tensor 'fc1.weight': cannot read", f"{PAIR} --spec wrong.json -o out.pt"),
    "an unknown solver": (
        2, "Did you mean 'weight_matching'?", f"{SOLVE} -o out.pt --solver weight_match",
    ),
    "an option without a value": (
        2, "write KEY=VALUE", f"{SOLVE} -o out.pt --option restarts",
    ),
    "an unknown option": (
        2, "no option 'speed'", f"{SOLVE} -o out.pt --option speed=3",
    ),
    "an output of no format": (2, "out.npz", f"{SOLVE} -o out.npz"),
    "an output that is there already": (2, "b.pt", f"{SOLVE} -o b.pt"),
    "a start from another graph": (
        1, "belongs to another graph",
        f"{SOLVE} -o out.pt --init other.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_command_line_prints_one_message_and_leaves_no_file(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, message, arguments = COMMANDS[name]
    monkeypatch.chdir(folder)
    before = contents(folder)
    result = CliRunner().invoke(app, arguments.split(), env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert contents(folder) == before
