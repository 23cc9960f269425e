"""`alignkit widen`: a folder of the wider architecture, which its library loads and which computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import read_weights, write_weights
from alignkit.graph.proof.perturb import perturbed
from alignkit.jobs import read_record
from helpers import family_folders
from helpers.command_line import run
from helpers.family_folders import FAMILIES, load_like, save_family
from helpers.symmetry_nets import MODULE, NETS

transformers = pytest.mark.models("transformers")
LARGER: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32},
    "llama": {"hidden_size": 32, "intermediate_size": 20, "num_key_value_heads": 1},
    "gpt_neox tied": {"hidden_size": 32, "num_attention_heads": 4},
    "bert": {"hidden_size": 32, "intermediate_size": 24},
    "vit": {"hidden_size": 24, "intermediate_size": 13},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@transformers
@pytest.mark.parametrize("family", LARGER)
def test_transformers_loads_the_output_and_it_computes_the_same(
    family: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = perturbed(save_family(family, here / "small")).eval()
    small.save_pretrained(here / "small")
    (here / "small" / "tokenizer.json").write_text('{"of": "small"}')
    name, fields = FAMILIES[family]
    monkeypatch.setitem(family_folders.FAMILIES, family, (name, {**fields, **LARGER[family]}))
    large = save_family(family, here / "large")
    said = run("widen", "small", "large", "-o", "widened", "--json")
    facts = json.loads(said)
    assert facts["function_error"] < 1e-12 and facts["numbers_after"] > facts["numbers_before"]
    inputs = torch.arange(20, 26)[None] if small.main_input_name == "input_ids" else torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        before, after = (model(inputs).logits for model in (small, load_like(large, here / "widened")))
    assert float((before - after).abs().max()) < 2e-5 * float(before.abs().max())
    assert json.loads(Path("widened/tokenizer.json").read_text()) == {"of": "small"}
    assert [read.name for read in read_record("widened").inputs] == ["large", "small"]
    assert "It computes what `small` computes" in Path("widened/README.md").read_text()
    said = run("merge", "large", "widened", "--symmetries", "all", "-o", "merged")
    assert "Function check" in said
    load_like(large, here / "merged")


@transformers
def test_other_layers_are_refused_and_nothing_is_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_family("gpt2", here / "small")
    name, fields = FAMILIES["gpt2"]
    monkeypatch.setitem(family_folders.FAMILIES, "gpt2", (name, {**fields, "n_embd": 32, "n_layer": 2}))
    save_family("gpt2", here / "large")
    said = run("widen", "small", "large", "-o", "widened", code=1)
    assert "only the wider network has the tensor 'transformer.h.1" in said
    assert not (here / "widened").exists()


def test_a_network_of_ones_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = MODULE.replace("5, 8)", "5, 14)").replace("LayerNorm(8)", "LayerNorm(14)")
    larger = larger.replace("nn.Linear(8, 12), nn.Linear(12, 8)", "nn.Linear(14, 18), nn.Linear(18, 14)")
    (here / "symmetry_nets.py").write_text(MODULE)
    (here / "larger_nets.py").write_text(larger.replace("nn.Linear(8, 3)", "nn.Linear(14, 3)"))
    monkeypatch.syspath_prepend(here)
    write_weights(here / "small.safetensors", perturbed(NETS["stream"]()[0]).state_dict())
    names: dict[str, Any] = {}
    exec((here / "larger_nets.py").read_text(), names)
    write_weights(here / "large.safetensors", names["stream"]()[0].state_dict())
    call = ("widen", "small.safetensors", "large.safetensors", "-o", "w.safetensors")
    given = (*call, "--model", "larger_nets:stream", "--narrow-model", "symmetry_nets:stream")
    assert "Estimate of widen" in run(*given, "--dry-run")
    assert not (here / "w.safetensors").exists()
    facts = json.loads(run(*given, "--json", "--report", "w.html"))
    assert facts["groups"] == {"embed": [8, 14], "up": [12, 18]} and facts["function_error"] < 1e-12
    assert read_weights("w.safetensors")["up.weight"].shape == (18, 14)
    assert "exists" in run(*given, code=2)
    assert "--model" in run(*call, "--force", code=2)
