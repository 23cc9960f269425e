"""`alignkit fold`: a checkpoint of the same architecture, which its library loads and which computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import SymmetryGraph, fold, read_weights, trace, write_weights
from alignkit.graph.folded import what_is_unfolded
from alignkit.graph.proof.perturb import perturbed
from helpers.command_line import run

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 40, "n_positions": 16}),
    "llama": ("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 2}),
    "llama, tied": ("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", {**SMALL, "num_key_value_heads": 1, "head_dim": 4}),
    "gpt_neox": ("GPTNeoXForCausalLM", SMALL),
    "opt": ("OPTForCausalLM", {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "vit": ("ViTForImageClassification", {**SMALL, "image_size": 8, "patch_size": 4}),
}
TIED = ("gpt2", "llama, tied", "gemma", "opt")
pytestmark = pytest.mark.models("transformers")


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32, **saving: Any) -> Any:
    """Save a small network with noise on its norms and biases as transformers does; return it."""
    import transformers

    name, settings = FAMILIES[family]
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = perturbed(model_class(model_class.config_class(**settings))).to(dtype).eval()
    model.save_pretrained(folder, **saving)
    (folder / "tokenizer.json").write_text("{}")
    return model


def loaded(folder: Path, family: str) -> Any:
    """Load a folder as users of transformers do."""
    import transformers

    return getattr(transformers, FAMILIES[family][0]).from_pretrained(folder).eval()


def outputs(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    inputs = (
        {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator).double()}
        if hasattr(model, "vit")
        else {"input_ids": torch.randint(1, 40, (2, 8), generator=generator)}
    )
    with torch.no_grad():
        return model.double()(**inputs).logits


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name in ("gemma", "opt") else name for name in FAMILIES]
)
def test_transformers_loads_the_output_and_it_computes_the_same(folder: Path, family: str) -> None:
    before = saved(folder / "net", family)
    said = run("fold", "net", "-o", "folded")
    assert "Function check: outputs differ by" in said
    after = loaded(folder / "folded", family)
    old, new = outputs(before), outputs(after)
    assert float((old - new).abs().max() / old.abs().max()) < 1e-5
    config = json.loads((folder / "folded" / "config.json").read_text())
    if family in TIED:
        assert "is no longer tied to" in said
        assert config["tie_word_embeddings"] is False
        assert after.get_output_embeddings().weight is not after.get_input_embeddings().weight
    else:
        assert config == json.loads((folder / "net" / "config.json").read_text())
        assert read_weights("folded").keys() == read_weights("net").keys()
    assert (folder / "folded" / "tokenizer.json").read_text() == "{}"
    # The folded folder is one whose symmetries all hold: there is nothing left to be folded.
    facts = json.loads(run("fold", "folded", "-o", "again", "--json"))
    assert facts["untied"] == {} and facts["numbers_added"] == 0
    again, once = read_weights("again"), read_weights("folded")
    assert all(torch.allclose(again[name], tensor, rtol=1e-5, atol=1e-6) for name, tensor in once.items())


@pytest.mark.parametrize("family", ["gpt2", "llama, tied"])
def test_a_head_stays_tied_where_that_is_wanted(folder: Path, family: str) -> None:
    before = saved(folder / "net", family)
    said = run("fold", "net", "-o", "folded", "--keep-tied")
    assert "Untie the head to fold it" in said and "no longer tied" not in said
    assert (folder / "folded" / "config.json").read_text() == (folder / "net" / "config.json").read_text()
    after = loaded(folder / "folded", family)
    assert after.get_output_embeddings().weight is after.get_input_embeddings().weight
    old, new = outputs(before), outputs(after)
    assert float((old - new).abs().max() / old.abs().max()) < 1e-5
    assert read_weights("folded").keys() == read_weights("net").keys()


def test_narrow_weights_stay_narrow_and_their_rounding_is_told(folder: Path) -> None:
    before = saved(folder / "net", "llama, tied", torch.bfloat16, max_shard_size="4KB")
    facts = json.loads(run("fold", "net", "-o", "folded", "--json"))
    assert facts["function_error"] < 1e-12 < 1e-4 < facts["rounding_error"] < 0.1
    weights = read_weights("folded")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    old, new = outputs(before), outputs(loaded(folder / "folded", "llama, tied"))
    assert float((old - new).abs().max() / old.abs().max()) < 0.1
    index = json.loads((folder / "folded" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["lm_head.weight"] == index["weight_map"]["model.embed_tokens.weight"]
    assert set(index["weight_map"]) == set(weights)


def test_the_command_does_what_the_function_does(folder: Path) -> None:
    model = saved(folder / "net", "gpt2")
    run("fold", "net", "-o", "folded.safetensors", "--report", "fold.md")
    generator = torch.Generator().manual_seed(1)
    graph = trace(model, input_ids=torch.randint(40, (2, 8), generator=generator), symmetries="all")
    expected = fold(model, graph).network.state_dict()
    written = read_weights("folded.safetensors")
    assert {"lm_head.weight", "transformer.wte.weight"} <= written.keys()
    assert all(torch.allclose(written[name], expected[name], rtol=1e-5, atol=1e-6) for name in written)
    assert "lm_head.weight no longer tied" in (folder / "fold.md").read_text().replace("\\", "")
    run("fold", "net", "-o", "plain.safetensors", "--no-balance")
    plain = fold(model, graph, balance=False).network.state_dict()
    assert all(
        torch.allclose(tensor, plain[name], atol=1e-6) for name, tensor in read_weights("plain.safetensors").items()
    )


def test_a_dry_run_and_refusals_write_nothing(folder: Path) -> None:
    saved(folder / "net", "gpt2")
    assert "Estimate of fold" in run("fold", "net", "-o", "folded", "--dry-run")
    assert not (folder / "folded").exists()
    broken = read_weights("net")
    broken["transformer.ln_f.weight"] *= torch.nan
    write_weights("net/model.safetensors", broken)
    assert "'transformer.ln_f.weight' of the network holds NaN" in run("fold", "net", "-o", "folded", code=1)
    assert not (folder / "folded").exists()


def test_a_network_of_ones_own_is_folded(folder: Path) -> None:
    said = run("fold", "a.safetensors", "-o", "folded.safetensors", "--model", "job_nets:net")
    assert "balanced" in said
    graph: SymmetryGraph = trace(*__import__("job_nets").net(), symmetries="all")
    assert not list(what_is_unfolded(graph.folds, read_weights("folded.safetensors")))
