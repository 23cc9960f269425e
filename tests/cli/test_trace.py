"""`alignkit trace`: groups on the screen, graphs in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import alignkit
from alignkit import SymmetryGraph
from helpers.command_line import run
from helpers.weight_files import JOBS, A, B

MORE = """
import torch
from torch import nn

def odd():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.rand(2, 4)

def stream():
    return nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 2)), torch.rand(2, 4)
"""


def test_trace_prints_groups_and_writes_files(model_modules: Path) -> None:
    text = run("trace", "my_models:mlp", "--spec", "s.json", "--json", "g.json", "--picture", "p.png")
    assert "1 group" in text
    spec = json.loads((model_modules / "s.json").read_text())
    graph = SymmetryGraph.from_json((model_modules / "g.json").read_text())
    assert graph.spec() == spec
    assert (model_modules / "p.png").stat().st_size > 1000


def test_trace_replaces_nothing_unasked(model_modules: Path) -> None:
    (model_modules / "s.json").write_text("mine")
    assert "--force" in run("trace", "my_models:mlp", "--spec", "s.json", code=2)
    assert (model_modules / "s.json").read_text() == "mine"
    run("trace", "my_models:mlp", "--spec", "s.json", "--force")
    assert "same file" in run("trace", "my_models:mlp", "--spec", "t.json", "--json", "t.json", code=2)


def test_trace_explains_a_bad_model(model_modules: Path) -> None:
    assert "Did you mean 'mlp'" in run("trace", "my_models:mpl", code=2)
    assert "KeyError" in run("trace", "my_models:broken", code=1)


def test_a_name_that_is_no_text_is_written_and_told(model_modules: Path) -> None:
    """File systems take any bytes; Python shows those that are no UTF-8 as half characters."""
    assert "\\udcff.json" in run("trace", "my_models:mlp", "--spec", "\udcff.json")
    assert (model_modules / "\udcff.json").exists()


def test_trace_finds_every_kind_where_it_is_asked_to(model_modules: Path) -> None:
    (model_modules / "more_models.py").write_text(MORE)
    assert "-: permuted with signs" in run("trace", "more_models:odd", "--symmetries", "all")
    run("trace", "more_models:odd", "--symmetries", "all", "--spec", "s.json", "--json", "g.json")
    assert json.loads((model_modules / "s.json").read_text())["0.weight"].startswith("-")
    text = run("trace", "more_models:stream", "--symmetries", "all", "--json", "f.json")
    assert SymmetryGraph.from_json((model_modules / "f.json").read_text()).folds
    assert "alignkit.fold" in text


def test_a_spec_is_not_written_where_weights_have_to_be_folded(model_modules: Path) -> None:
    (model_modules / "more_models.py").write_text(MORE)
    assert "--json" in run("trace", "more_models:stream", "--symmetries", "all", "--spec", "t.json", code=2)
    assert not (model_modules / "t.json").exists()
    assert "--keep-tied" in run("trace", "more_models:odd", "--keep-tied", code=2)


@pytest.mark.parametrize("job", [job for job in JOBS if job != "check"])
def test_the_graph_that_is_written_is_as_good_as_a_spec(job: str, folder: Path) -> None:
    run("trace", "job_nets:net", "--json", "graph.json", "--spec", "layouts.json")
    facts = []
    for path in ("layouts.json", "graph.json"):
        call = [path if word == "spec.json" else word for word in JOBS[job][0]]
        told = json.loads(run(*call, "--json", "--force"))
        facts.append(told)
    for key in ("before", "after", "moved", "squared_distance_after", "units_moved"):
        assert facts[0].get(key) == pytest.approx(facts[1].get(key))


NORMED = """
import torch
from torch import nn

def net():
    layers = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    return nn.Sequential(*layers), torch.randn(5, 4)
"""


@pytest.mark.parametrize("symmetries", ["permutation", "all"])
def test_a_graph_brings_its_kinds_and_folds_with_it(symmetries: str, folder: Path) -> None:
    (folder / "normed.py").write_text(NORMED)
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for seed in "ab":
        torch.manual_seed(ord(seed))
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        alignkit.write_weights(f"n{seed}.safetensors", module.state_dict())
    run("trace", "normed:net", "--symmetries", symmetries, "--json", "graph.json")
    solve = ["solve", "na.safetensors", "nb.safetensors", "--json"]
    by_model = json.loads(run(*solve, "-o", "m.safetensors", "--model", "normed:net", "--symmetries", symmetries))
    by_graph = json.loads(run(*solve, "-o", "g.safetensors", "--spec", "graph.json"))
    assert by_graph["after"] == pytest.approx(by_model["after"])
    sides = [alignkit.read_weights(name) for name in ("m.safetensors", "g.safetensors")]
    assert all(torch.allclose(sides[0][name], sides[1][name], atol=1e-5) for name in sides[0])
    if symmetries == "permutation":
        wrong = [*solve, "-o", "x.safetensors", "--spec", "graph.json", "--symmetries", "all"]
        assert "which a trace finds: say --model" in run(*wrong, code=2)


NO_SPECS = {
    "a list": "[]",
    "numbers": '{"0.weight": 3}',
    "half a graph": '{"format": "alignkit.graph", "version": 1}',
    "words": "h .",
    "bytes": b"\xff\xfe",
}


@pytest.mark.parametrize("content", NO_SPECS)
def test_what_is_no_spec_says_so(content: str, folder: Path) -> None:
    text = NO_SPECS[content]
    (folder / "odd.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    said = run("solve", A, B, "-o", "o.safetensors", "--spec", "odd.json", code=1)
    assert "odd.json" in said or "graph" in said


@pytest.mark.models("transformers")
@pytest.mark.parametrize("symmetries", ["permutation", "all"])
def test_a_folder_is_traced_as_its_model_is(transformers_folders: Path, symmetries: str) -> None:
    by_folder = run("trace", "./a", "--symmetries", symmetries)
    assert "heads" in by_folder
    assert by_folder == run("trace", f"transformers:{transformers_folders / 'a'}", "--symmetries", symmetries)
