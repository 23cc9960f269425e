"""Each package under plugins/ is built, installed into a fresh environment, and used from another folder.

Nothing is downloaded. The environment sees the packages of this one through a ``.pth`` file, so that torch is there,
and its own come first. alignkit itself is whatever is installed here.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignkit import Alignment, builders
from helpers.fresh_environment import Environment

ROOT = Path(__file__).parents[2]
PACKAGES = {
    path.parent.name.replace("plugin-template", "alignkit-mine"): path.parent
    for path in sorted([*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("docs/plugin-template/pyproject.toml")])
}
SOLVERS = {"alignkit-example": "greedy_matching", "alignkit-mine": "my_solver", "alignkit-ot": "ot"}
LIBRARIES = {"alignkit-ot": "ot", "alignkit-tensorboard": "tensorboard"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed"),
    pytest.mark.skipif(not PACKAGES, reason="there is no folder plugins/ beside the tests"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With every plugin installed from a wheel that is built from its folder."""
    made = Environment(tmp_path_factory.mktemp("plugins"))
    made.install(*PACKAGES.values())
    return made


@pytest.fixture(scope="module")
def pair(environment: Environment) -> tuple[str, str, str]:
    """Files of a network, of a shuffled copy and of their spec."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    graph = builders.mlp(model)
    shuffled = Alignment.random(graph, seed=1).apply(model.state_dict())
    save_file(model.state_dict(), environment.work / "a.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in shuffled.items()}, environment.work / "b.safetensors")
    (environment.work / "spec.json").write_text(json.dumps(graph.spec()), encoding="utf-8")
    return "a.safetensors", "b.safetensors", "spec.json"


def test_the_commands_list_every_solver_with_its_package(environment: Environment) -> None:
    listed = {row["name"]: row["package"] for row in json.loads(environment.alignkit("solvers", "--json"))}
    for package in PACKAGES:
        if package in SOLVERS:
            assert listed[SOLVERS[package]] == f"{package} 0.1.0"
    assert listed["weight_matching"] == "alignkit"


def test_each_package_comes_from_the_new_environment(environment: Environment) -> None:
    modules = [name.replace("-", "_") for name in PACKAGES]
    code = f"import importlib\nfor name in {modules}: print(importlib.import_module(name).__file__)"
    places = environment.python("-c", code).splitlines()
    assert all(Path(place).is_relative_to(environment.site) for place in places)
    assert len(places) == len(modules)


def test_every_solver_solves_by_name_and_every_observer_watches(
    environment: Environment, pair: tuple[str, str, str]
) -> None:
    """One chain of all solvers, so that torch is imported once."""
    missing = [package for package, library in LIBRARIES.items() if importlib.util.find_spec(library) is None]
    names = [solver for package, solver in SOLVERS.items() if package in PACKAGES and package not in missing]
    a, b, spec = pair
    settings = {"ALIGNKIT_TENSORBOARD": "runs", "ALIGNKIT_DISABLE_PLUGINS": ",".join(missing)}
    environment.alignkit(
        "solve", a, b, "--spec", spec, "--solver", " > ".join(names), "-o", "c.safetensors", **settings
    )
    one, two = (load_file(environment.work / name) for name in (a, "c.safetensors"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())  # B was a shuffled A
    if "alignkit-tensorboard" not in missing:
        runs = sorted((environment.work / "runs").iterdir(), key=lambda run: run.name)
        assert [run.name.split("-")[3] for run in runs] == names
        assert all(list(run.glob("events.out.tfevents.*")) for run in runs)


def test_a_package_can_be_left_out(environment: Environment) -> None:
    names = ",".join(PACKAGES)
    text = environment.alignkit("solvers", "--json", ALIGNKIT_DISABLE_PLUGINS=names)
    assert not {row["name"] for row in json.loads(text)} & set(SOLVERS.values())
