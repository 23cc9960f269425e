"""A LoRA adapter does for another base what it did for its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import alignkit
from alignkit import Alignment, fold, transport_adapter
from alignkit.errors import MergeError, WeightsError
from alignkit.jobs import Adapter
from alignkit.reports import write_report
from helpers.adapters import BASE, adapted, random_adapter
from helpers.folding_nets import NETS

WITH_MODULES = [name for name in NETS if name not in ("downsampling", "router")]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", WITH_MODULES)
def test_the_adapted_bases_compute_the_same(name: str, bias: bool) -> None:
    """From a base to its folded, balanced copy in other units, and back."""
    net = NETS[name]()
    symmetry = Alignment.random(net.graph, 1)
    other = symmetry.apply(fold(net.model, net.graph).network)
    for a, b, way in ((net.model, other, symmetry.inverse()), (other, net.model, symmetry)):
        adapter = random_adapter(net.model, bias=bias, embeddings=name != "gpt")
        carried = transport_adapter(net.graph, a, b, adapter=adapter, alignment=way)
        with torch.no_grad():
            before, after = (adapted(model, one)(*net.inputs) for model, one in ((a, adapter), (b, carried.adapter)))
            assert not torch.allclose(before, a(*net.inputs), atol=1e-2)
        torch.testing.assert_close(after, before, rtol=1e-7, atol=1e-8)
        assert {n: t.shape for n, t in adapter.tensors.items()}.items() <= {
            n: t.shape for n, t in carried.adapter.tensors.items()
        }.items()
        assert bool(carried.adapter.config["lora_bias"]) == (bias or bool(carried.biases))


def test_permutations_alone_move_factors_exactly_in_their_dtype() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3)).bfloat16()
    graph = alignkit.trace(model, torch.randn(2, 5).bfloat16())
    symmetry = Alignment.random(graph, 1)
    adapter = random_adapter(model)
    carried = transport_adapter(graph, model, symmetry.apply(model), adapter=adapter)
    assert carried.solution is not None
    order = symmetry.elements["layer.0"]
    start = "base_model.model."
    assert torch.equal(
        carried.adapter.tensors[f"{start}0.lora_B.weight"], adapter.tensors[f"{start}0.lora_B.weight"][order]
    )
    assert torch.equal(
        carried.adapter.tensors[f"{start}2.lora_A.weight"], adapter.tensors[f"{start}2.lora_A.weight"][:, order]
    )
    assert torch.equal(carried.adapter.tensors[f"{start}0.lora_A.weight"], adapter.tensors[f"{start}0.lora_A.weight"])
    assert carried.adapter.config == adapter.config


def test_the_configuration_does_not_name_the_old_base(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    graph = alignkit.trace(model, torch.randn(2, 5))
    alignkit.write_weights(tmp_path / "b.pt", model.state_dict())
    adapter = random_adapter(model, base_model_name_or_path="a")
    way = Alignment.identity(graph)
    for other, named in ((model, None), (tmp_path / "b.pt", str(tmp_path / "b.pt"))):
        carried = transport_adapter(graph, model, other, adapter=adapter, alignment=way).adapter
        assert carried.config["base_model_name_or_path"] == named


def test_scales_are_those_of_peft() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    tensors = random_adapter(model, rank=4).tensors
    module = "base_model.model.0"
    for config, wanted in (
        ({"lora_alpha": 6}, 1.5),
        ({"lora_alpha": 6, "use_rslora": True}, 3.0),
        ({"lora_alpha": 6, "alpha_pattern": {"0": 8}}, 2.0),
        ({"lora_alpha": 6, "alpha_pattern": {"1": 8}}, 1.5),
        ({}, 2.0),
    ):
        adapter = Adapter({"peft_type": "LORA", **config}, tensors)
        assert adapter.scale(module) == wanted
        product = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        torch.testing.assert_close(adapter.product(module), wanted * product.double())


def test_a_folder_is_read_and_written_without_peft(tmp_path: Path) -> None:
    adapter = random_adapter(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)))
    adapter.write(tmp_path / "one")
    again = Adapter.read(tmp_path / "one")
    assert again.config == adapter.config
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in adapter.tensors.items())
    with pytest.raises(WeightsError, match="exists"):
        adapter.write(tmp_path / "one")
    adapter.write(tmp_path / "one", overwrite=True)
    (tmp_path / "one" / "other.txt").write_text("mine")
    with pytest.raises(WeightsError):
        adapter.write(tmp_path / "one", overwrite=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_other_adapters_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(MergeError, match=says):
        Adapter({**BASE, **change}, random_adapter(nn.Linear(3, 2)).tensors)


def test_tensors_that_are_not_factors_or_fit_nothing_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    graph = alignkit.trace(model, torch.randn(2, 5))
    tensors = dict(random_adapter(model).tensors)
    start, way = "base_model.model.", Alignment.identity(graph)
    for extra in ("classifier.weight", "0.lora_magnitude_vector", "0.base_layer.bias"):
        with pytest.raises(MergeError, match=f"not factors of LoRA: {start}{extra}"):
            Adapter(BASE, {**tensors, f"{start}{extra}": torch.zeros(3)})
    with pytest.raises(MergeError, match=r"only one factor of 'base_model.model.0'"):
        Adapter(BASE, {f"{start}0.lora_A.weight": torch.zeros(2, 5)})
    with pytest.raises(MergeError, match="holds no factors"):
        Adapter(BASE, {})
    wrong = {f"{start}4.lora_A.weight": torch.zeros(2, 5), f"{start}4.lora_B.weight": torch.zeros(7, 2)}
    with pytest.raises(MergeError, match=r"adapts '4.weight', which the network has not"):
        transport_adapter(graph, model, model, adapter=Adapter(BASE, wrong), alignment=way)
    wrong = {f"{start}0.lora_A.weight": torch.zeros(2, 6), f"{start}0.lora_B.weight": torch.zeros(7, 2)}
    with pytest.raises(MergeError, match=r"do not fit '0.weight' of shape \(7, 5\)"):
        transport_adapter(graph, model, model, adapter=Adapter(BASE, wrong), alignment=way)
    with pytest.raises(MergeError, match=r"is not an adapter: adapter_config.json cannot be read"):
        Adapter.read(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(MergeError, match="does not hold one JSON object"):
        Adapter.read(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(BASE))
    with pytest.raises(MergeError, match=r"holds no adapter_model.safetensors"):
        Adapter.read(tmp_path)


def test_the_embedding_that_peft_saves_is_left_out_where_it_is_that_of_the_base() -> None:
    net = NETS["llama"]()
    other, way = NETS["llama"](1).model, Alignment.random(net.graph, 2)
    adapter = random_adapter(net.model)
    saved = "base_model.model.embed.base_layer.weight"
    with_base = Adapter(adapter.config, {**adapter.tensors, saved: net.model.embed.weight.detach()})
    carried = transport_adapter(net.graph, net.model, other, adapter=with_base, alignment=way)
    assert carried.adapter.tensors.keys() == adapter.tensors.keys()
    for wrong in (net.model.embed.weight.detach() + 1e-2, torch.zeros(12, 8)):
        changed = Adapter(adapter.config, {**adapter.tensors, saved: wrong})
        with pytest.raises(MergeError, match="is not that of base A"):
            transport_adapter(net.graph, net.model, other, adapter=changed, alignment=way)


def test_the_result_tells_what_was_carried(tmp_path: Path) -> None:
    net = NETS["gpt"]()
    other = NETS["gpt"](1).model
    carried = transport_adapter(net.graph, net.model, other, adapter=random_adapter(net.model, embeddings=False))
    with pytest.raises(MergeError, match="needs a bias in the adapter, and peft has none beside embeddings"):
        transport_adapter(net.graph, net.model, other, adapter=random_adapter(net.model))
    assert carried.biases and "got a bias in the adapter" in carried.explain()
    assert carried.facts()["biases"] == list(carried.biases)
    pytest.importorskip("matplotlib")
    write_report(carried.report(), tmp_path / "report.md")
    assert "| weight" in (tmp_path / "report.md").read_text()


@pytest.mark.models("transformers")
@pytest.mark.filterwarnings("ignore")  # those of peft
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_loads_what_was_carried(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    import transformers

    torch.manual_seed(0)
    small = {"vocab_size": 31, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "llama":
        config = transformers.LlamaConfig(**small, hidden_size=16, intermediate_size=24, num_key_value_heads=2)
        targets = ["q_proj", "v_proj", "down_proj", "embed_tokens"]
    else:
        config = transformers.GPT2Config(**small, n_embd=16, n_positions=8)
        targets = ["c_attn", "c_proj", "c_fc"]
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    tokens = torch.randint(31, (2, 6))
    graph = alignkit.trace(model, input_ids=tokens, symmetries="all")
    symmetry = Alignment.random(graph, 1)
    other = symmetry.apply(fold(model, graph).network)
    lora = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, use_rslora=True)
    wrapped = peft.get_peft_model(type(model).from_pretrained(None, config=config, state_dict=model.state_dict()), lora)
    wrapped = wrapped.double().eval()
    wrapped.save_pretrained(tmp_path / "own")
    carried = transport_adapter(graph, model, other, adapter=tmp_path / "own", alignment=symmetry.inverse())
    carried.adapter.write(tmp_path / "carried")
    loaded = peft.PeftModel.from_pretrained(other, tmp_path / "carried").double().eval()
    with torch.no_grad():
        before, after = (network(input_ids=tokens).logits for network in (wrapped, loaded))
        assert not torch.allclose(before, model(input_ids=tokens).logits, atol=1e-3)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
