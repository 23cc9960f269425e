"""`alignkit check`: what is proved, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import alignkit
from alignkit import Alignment, SymmetryGraph, write_weights
from alignkit.graph.proof.perturb import perturbed
from alignkit.models import load_model
from helpers.command_line import run
from helpers.family_folders import save_family
from helpers.symmetry_nets import MODULE as SYMMETRY_NETS
from helpers.symmetry_nets import NETS
from helpers.weight_files import SPEC, A, weights


def test_check_passes(model_modules: Path) -> None:
    text = run("check", "my_models:mlp")
    assert "Passed with perturbed weights" in text
    assert "float64" in text


def test_check_runs_the_checkpoint(model_modules: Path) -> None:
    model, _, _ = load_model("my_models:mlp")
    write_weights(model_modules / "w.safetensors", model.state_dict())
    assert "Passed with its own weights" in run("check", "my_models:mlp", "w.safetensors")


def test_check_fails_and_names_the_group(model_modules: Path) -> None:
    (model_modules / "spec.json").write_text(
        json.dumps({"0.weight": "h .", "0.bias": "h", "2.weight": ". .", "2.bias": "."})
    )
    text = run("check", "my_models:mlp", "--spec", "spec.json", code=1)
    assert "'h', which acts on 0.weight, 0.bias" in text
    assert "largest relative change" in text


def test_check_refuses_a_checkpoint_of_another_model(model_modules: Path) -> None:
    write_weights(model_modules / "w.safetensors", {"0.weight": torch.ones(6, 5), "0.bia": torch.ones(6)})
    text = run("check", "my_models:mlp", "w.safetensors", code=1)
    assert "'0.bia' of the checkpoint is not in the model; did you mean '0.bias'?" in text
    assert "'0.weight' has shape (6, 5) in the checkpoint, the model says (6, 4)" in text


def test_check_against_tells_whether_a_model_is_still_the_same(folder: Path) -> None:
    graph = SymmetryGraph.from_spec(SPEC, like=weights(0))
    write_weights("moved.safetensors", Alignment.random(graph, 4).apply(weights(0)))
    assert "Passed: moved.safetensors computes what" in run(
        "check", "job_nets:net", A, "--against", "moved.safetensors"
    )
    wrong = dict(weights(0), **{"2.bias": weights(0)["2.bias"] + 0.1})
    write_weights("wrong.safetensors", wrong)
    said = run("check", "job_nets:net", A, "--against", "wrong.safetensors", code=1)
    assert "differs most is '2.bias'" in said
    half = {**weights(0), "0.weight": Alignment.random(graph, 4).apply(weights(0))["0.weight"]}
    write_weights("half.safetensors", half)
    assert "does not compute what" in run("check", "job_nets:net", A, "--against", "half.safetensors", code=1)
    facts = json.loads(run("check", "job_nets:net", A, "--against", "moved.safetensors", "--json"))
    assert facts["same_function"]
    assert facts["same_up_to_permutation"]
    run("check", "job_nets:net", "--against", A, code=2)


@pytest.mark.parametrize("name", NETS)
def test_all_symmetries_are_proved_on_folded_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "symmetry_nets.py").write_text(SYMMETRY_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "symmetry_nets", raising=False)
    model, example = NETS[name]()
    graph = alignkit.trace(model, example, symmetries="all")
    given = ("check", f"symmetry_nets:{name}")
    assert graph.extent in run(*given, "--symmetries", "all", "--report", "check.md")
    weights = perturbed(model, 3).state_dict()
    write_weights("w.safetensors", weights)
    facts = json.loads(run(*given, "w.safetensors", "--symmetries", "all", "--json"))
    assert facts["dimension"] == graph.dimension and facts["log10_order"] == graph.log10_order
    assert set(facts["folded"]) == (set(facts["checks"]) if graph.folds or graph.balances else set())
    assert {"perturbed weights", "its own weights"} == set(facts["checks"])
    # A twin under all symmetries is the same network.
    folded = alignkit.fold(weights, graph).network
    write_weights("twin.safetensors", Alignment.random(graph, 5).apply(folded))
    said = run(*given, "w.safetensors", "--against", "twin.safetensors", "--symmetries", "all", "--json")
    assert json.loads(said)["same_function"]


@pytest.mark.models("transformers")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_folder_is_proved_as_it_is_given(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_family(family, tmp_path / "net", 0)
    said = run("check", "net", "--symmetries", "all")
    assert "Folded its own weights: " in said and "Passed with its own weights" in said and " of " in said
    run("fold", "net", "-o", "folded")  # a tied head is untied there
    assert "Passed with its own weights" in run("check", "folded", "--symmetries", "all")


def test_what_does_not_go_together_is_refused(model_modules: Path) -> None:
    (model_modules / "spec.json").write_text("{}")
    said = run("check", "my_models:mlp", "--spec", "spec.json", "--symmetries", "all", code=2)
    assert "--symmetries has nothing to find" in said
    assert "--keep-tied goes with" in run("check", "my_models:mlp", "--keep-tied", code=2)
