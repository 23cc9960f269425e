"""The wheel of alignkit: what is in it, and that it works where the repository is not."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import alignkit
from alignkit import Alignment, builders
from helpers.fresh_environment import Environment

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "alignkit"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed"),
    pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="there is no pyproject.toml beside the tests"),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Environment, Path]:
    """A fresh environment with the wheel in it, and the wheel."""
    environment = Environment(tmp_path_factory.mktemp("wheel"))
    (wheel,) = environment.install(ROOT)
    return environment, wheel


def test_it_holds_the_package_and_nothing_else(installed: tuple[Environment, Path]) -> None:
    with zipfile.ZipFile(installed[1]) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        written = {name.partition(".dist-info/")[2] for name in archive.namelist()} - {""}
    there = {
        path.relative_to(ROOT).as_posix()
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix in {".py", ".typed", ".safetensors"}
    }
    assert found == there
    assert "alignkit/deepalign/universal.safetensors" in found
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= written


def test_the_version_is_the_same_everywhere(installed: tuple[Environment, Path]) -> None:
    assert installed[1].name == f"alignkit-{alignkit.__version__}-py3-none-any.whl"
    assert f"\n## {alignkit.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {alignkit.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"{{{alignkit.__version__}}}" in (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")


def test_it_is_what_the_fresh_environment_imports(installed: tuple[Environment, Path]) -> None:
    environment, _ = installed
    code = "import alignkit, importlib.metadata as m; print(alignkit.__file__); print(m.version('alignkit'))"
    place, version = environment.python("-c", code).splitlines()
    assert Path(place).is_relative_to(environment.site)
    assert version == alignkit.__version__


def test_its_command_solves(installed: tuple[Environment, Path]) -> None:
    """Through the script that pip wrote; B is a shuffled A, and comes back in A's order."""
    environment, _ = installed
    command = str(environment.scripts / "alignkit")
    listed = {row["name"] for row in json.loads(environment.run(command, "solvers", "--json"))}
    assert set(alignkit.list_solvers()) >= {"weight_matching", "deepalign"} <= listed
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    graph = builders.mlp(model)
    shuffled = Alignment.random(graph, seed=1).apply(model.state_dict())
    save_file(model.state_dict(), environment.work / "a.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in shuffled.items()}, environment.work / "b.safetensors")
    (environment.work / "spec.json").write_text(json.dumps(graph.spec()), encoding="utf-8")
    environment.run(
        command,
        "solve",
        "a.safetensors",
        "b.safetensors",
        "--spec",
        "spec.json",
        "--solver",
        "weight_matching > deepalign",
        "-o",
        "c.safetensors",
    )
    tensors = load_file(environment.work / "c.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
