"""`alignkit rotate`: a checkpoint of the same architecture, which its library loads and which computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignkit import read_weights, write_weights
from alignkit.graph.proof.perturb import perturbed
from helpers.command_line import run
from helpers.family_folders import load_like, save_family
from helpers.symmetry_nets import MODULE, NETS

RANDOM = ("--residual", "random", "--heads", "random", "--seed", "3")
transformers = pytest.mark.models("transformers")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@transformers
@pytest.mark.parametrize(
    ("family", "ways"),
    [
        *((family, ()) for family in ("gpt2", "llama", "vit", "mixtral")),
        *((family, RANDOM) for family in ("gpt2", "gpt_neox tied")),
    ],
)
def test_transformers_loads_the_output_and_it_computes_the_same(family: str, ways: tuple[str, ...], here: Path) -> None:
    model = perturbed(save_family(family, here / "net")).eval()
    model.save_pretrained(here / "net")
    said = run("rotate", "net", "-o", "rotated", *ways)
    assert "Function check: outputs differ by" in said and ("random." if ways else "hadamard.") in said
    inputs = torch.arange(20, 26)[None] if model.main_input_name == "input_ids" else torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        before, after = (m(inputs).logits for m in (model, load_like(model, here / "rotated")))
    assert float((before - after).abs().max()) < 2e-5 * float(before.abs().max())
    assert json.loads(run("distance", "net", "rotated", "--symmetries", "all", "--tolerance", "1e-4", "--json"))["same"]


@transformers
def test_a_model_whose_stream_cannot_rotate_is_refused_with_the_reason(here: Path) -> None:
    save_family("bert", here / "net")
    said = run("rotate", "net", "-o", "rotated", code=1)
    assert "no residual stream of this network rotates" in said and "post-LN" in said
    assert not (here / "rotated").exists()
    assert "Function check: outputs differ by" in run("rotate", "net", "-o", "rotated", "--residual", "none")


def test_a_network_of_ones_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "symmetry_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(here)
    write_weights(here / "a.safetensors", perturbed(NETS["stream"]()[0]).state_dict())
    given = ("rotate", "a.safetensors", "-o", "r.safetensors", "--model", "symmetry_nets:stream")
    assert "--heads 'all': take hadamard, random, none." in run(*given, "--heads", "all", code=2)
    assert "Leave them: heads='none'" in run(*given, "--residual", "none", code=1)
    assert "Estimate of rotate" in run(*given, "--heads", "none", "--dry-run")
    assert not (here / "r.safetensors").exists()
    facts = json.loads(run(*given, "--heads", "none", "--json", "--report", "r.html"))
    assert facts["function_error"] < 1e-9 and facts["rotated"] == {"embed": "hadamard"}
    assert read_weights("r.safetensors").keys() == read_weights("a.safetensors").keys()
    assert "exists" in run(*given, code=2)
