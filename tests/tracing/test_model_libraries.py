"""Models of torchvision, timm and transformers that broke tracers before.

They all have running statistics or gates that are not the defaults.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from alignkit.errors import VerificationError
from alignkit.graph import SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.proof.perturb import perturbed
from alignkit.tracing import trace
from helpers.trace_checks import counts, proved

IMAGE = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64).sin()
SMALL = IMAGE[:, :, :32, :32]
IDS = torch.tensor([[3, 14, 15, 9, 2, 6]])

TRAPS = [
    ("mobilenet_v2", (25, 0)),
    ("mnasnet0_5", (25, 0)),
    ("squeezenet1_1", (25, 0)),
    ("efficientnet_b0", (40, 0)),
    ("regnet_y_400mf", (37, 32)),
    ("resnet18", (12, 0)),
    ("mobilenet_v3_small", (27, 0)),
]


def vision(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    return getattr(models, name)(weights=None, **options)


@pytest.mark.models("torchvision")
@pytest.mark.parametrize(("name", "expected"), TRAPS, ids=[name for name, _ in TRAPS])
def test_convolutional_traps(name: str, expected: tuple[int, int]) -> None:
    graph = proved(vision(name), SMALL, draws=1)
    assert counts(graph) == expected
    assert graph.provenance.unknown_ops == ()


@pytest.mark.models("torchvision")
def test_densenet_concatenates_its_groups() -> None:
    from torchvision import models

    torch.manual_seed(0)
    graph = proved(models.DenseNet(growth_rate=4, block_config=(3, 3), num_init_features=8, bn_size=2), SMALL)
    assert graph.spec()["features.denseblock1.denselayer3.conv1.weight"].split(" ")[1] == (
        "features.conv0+features.denseblock1.denselayer1.conv2+features.denseblock1.denselayer2.conv2"
    )


@pytest.mark.models("torchvision")
def test_shuffled_channels_are_never_written_wrongly() -> None:
    graph = proved(vision("shufflenet_v2_x0_5"), SMALL, draws=1)
    assert any(pin.op == "no faithful notation" for pin in graph.provenance.pinned)
    assert len(graph.groups) >= 18


@pytest.mark.models("torchvision")
def test_resnet50_has_the_groups_of_the_hand_written_graph() -> None:
    assert counts(trace(vision("resnet50"), SMALL)) == (37, 0)


@pytest.fixture(scope="module")
def vit() -> tuple[nn.Module, SymmetryGraph]:
    model = perturbed(vision_transformer().eval())
    return model, trace(model, SMALL)


def vision_transformer() -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    return models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48)


@pytest.mark.models("torchvision")
def test_a_vit_has_heads_and_units_inside_them(vit: tuple[nn.Module, SymmetryGraph]) -> None:
    model, graph = vit
    graph.verify(model, SMALL)
    assert counts(graph) == (5, 4)


@pytest.mark.models("torchvision")
def test_units_of_q_and_k_may_not_cross_heads(vit: tuple[nn.Module, SymmetryGraph]) -> None:
    model, graph = vit
    layer = "encoder.layers.encoder_layer_0.self_attention"
    merged = {
        name: text.replace(f"({layer}.heads:4 {layer}.qk[{layer}.heads])", "loose")
        for name, text in graph.spec().items()
    }
    assert merged != graph.spec()
    with pytest.raises(VerificationError, match="loose"):
        SymmetryGraph.from_spec(merged, model).verify(model, SMALL)


@pytest.mark.models("torchvision")
def test_swin_frees_heads_through_shifted_windows() -> None:
    from torchvision import models

    torch.manual_seed(0)
    model = models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=5)
    graph = proved(model, SMALL)
    assert counts(graph) == (10, 8)


TIMM = [
    ("convnext_atto", SMALL, {}),
    ("vit_tiny_patch16_224", SMALL, {"img_size": 32, "depth": 2}),
    ("xcit_nano_12_p16_224", IMAGE, {"depth": 2}),
    ("mixer_s32_224", SMALL, {"img_size": 32}),
    ("ghostnet_050", SMALL, {}),
    ("resnetv2_50x1_bit", SMALL, {}),
]


@pytest.mark.models("timm")
@pytest.mark.parametrize(("name", "x", "options"), TIMM, ids=[case[0] for case in TIMM])
def test_timm_models_keep_their_function(name: str, x: torch.Tensor, options: dict[str, Any]) -> None:
    import timm

    torch.manual_seed(0)
    graph = proved(timm.create_model(name, num_classes=5, **options), x, draws=1)
    assert graph.groups
    assert graph.provenance.unknown_ops == ()


BASE = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
FALCON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_kv_heads": 2,
    "new_decoder_architecture": True,
}
# Each head of Bloom has a slope of its own (ALiBi), so that heads stay: two groups in each of 4 heads, no families.
BLOOM = {"vocab_size": 97, "hidden_size": 32, "n_layer": 1, "n_head": 4}
LANGUAGE: list[tuple[str, str, dict[str, Any], tuple[int, int]]] = [
    ("GPT2Config", "GPT2LMHeadModel", GPT2, (5, 4)),
    ("LlamaConfig", "LlamaForCausalLM", {**BASE, "num_key_value_heads": 2}, (5, 4)),
    ("Qwen3Config", "Qwen3ForCausalLM", {**BASE, "num_key_value_heads": 2, "head_dim": 8}, (5, 4)),
    ("GPTNeoXConfig", "GPTNeoXForCausalLM", BASE, (5, 4)),
    ("FalconConfig", "FalconForCausalLM", FALCON, (3, 2)),
    ("BloomConfig", "BloomForCausalLM", BLOOM, (10, 0)),
    ("BertConfig", "BertForMaskedLM", BASE, (5, 4)),
    ("T5Config", "T5ForConditionalGeneration", T5, (8, 12)),
    ("OPTConfig", "OPTForCausalLM", {**BASE, "ffn_dim": 48, "word_embed_proj_dim": 32}, (5, 4)),
]


@pytest.mark.models("transformers")
@pytest.mark.parametrize(("config", "model", "options", "expected"), LANGUAGE, ids=[case[1] for case in LANGUAGE])
def test_language_models(config: str, model: str, options: dict[str, Any], expected: tuple[int, int]) -> None:
    import transformers

    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**options))
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS} if "T5" in model else {"input_ids": IDS}
    graph = proved(built, **inputs)
    assert counts(graph) == expected
    assert graph.provenance.tensors == "fake"


TINY = {"num_hidden_layers": 1, "intermediate_size": 48, "vocab_size": 97}
ODD: dict[str, dict[str, Any]] = {
    "mamba": {**TINY, "hidden_size": 32, "state_size": 4},
    "jamba": {
        **TINY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_experts": 2,
        "mamba_d_state": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "mobilebert": {**TINY, "num_attention_heads": 4, "intra_bottleneck_size": 32, "hidden_size": 64},
}
"""Architectures whose spaces share parameters, or have scales behind scales."""


@pytest.mark.models("transformers")
@pytest.mark.parametrize("kind", ODD)
def test_all_symmetries_of_odd_architectures_are_proved(kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **ODD[kind])).eval()
    graph = trace(model, IDS, symmetries="all")
    assert graph.groups and graph.provenance.proved


@pytest.mark.models("transformers")
@pytest.mark.parametrize("shared", [2, 1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "mistral"])
def test_heads_of_each_family_are_found_in_a_batch(kind: str, attention: str, shared: int) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**BASE, "num_key_value_heads": shared, "head_dim": 8})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for ids in (IDS, IDS.repeat(2, 1) + torch.tensor([[0], [1]])):
        assert counts(proved(model, input_ids=ids, draws=1)) == ((5, 4) if shared > 1 else (7, 0))


ENCODER_DECODERS = {
    "bart": ("model.encoder.layers.0.fc2.weight", {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}),
    "mbart": ("model.encoder.layers.0.fc2.weight", {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}),
    "t5": ("encoder.block.0.layer.1.DenseReluDense.wo.weight", T5),
    "whisper": (
        "model.encoder.layers.0.fc2.weight",
        {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 8},
    ),
}


@pytest.mark.models("transformers")
@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_the_stream_of_an_encoder_moves_where_only_the_logits_count(kind: str) -> None:
    from transformers import AutoConfig, WhisperForConditionalGeneration
    from transformers.models.auto.modeling_auto import AutoModelForSeq2SeqLM

    writer, options = ENCODER_DECODERS[kind]
    names = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    heads = {
        f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 4))
    }
    config = AutoConfig.for_model(kind, **{**names, **({} if kind == "t5" else heads), **options})
    torch.manual_seed(0)
    build = WhisperForConditionalGeneration if kind == "whisper" else AutoModelForSeq2SeqLM.from_config
    model = perturbed(build(config).eval())
    sound = {"input_features": torch.linspace(-1, 1, 128).reshape(1, 8, 16).sin()}
    inputs = {**(sound if kind == "whisper" else {"input_ids": IDS}), "decoder_input_ids": IDS}
    whole = trace(model, **inputs)
    assert f"{writer}, axis 0: pinned by output encoder_last_hidden_state" in whole.report()
    graph = trace(model, outputs="logits", **inputs)
    graph.verify(model, **inputs)
    stream = graph.spec()[writer].split(" ")[0]
    assert graph.groups[stream].size == 32


@pytest.mark.models("transformers")
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba_2_has_heads_their_units_and_units_of_its_state(groups: int) -> None:
    import transformers

    config = transformers.Mamba2Config(
        vocab_size=40, hidden_size=16, num_heads=8, head_dim=4, state_size=5, num_hidden_layers=1, n_groups=groups,
        chunk_size=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    graph = proved(transformers.Mamba2ForCausalLM(config), input_ids=IDS, use_cache=False)
    own = sorted((group.size, group.parent is not None) for group in graph.groups.values() if group.size != 16)
    heads = [(8, False)] if groups == 1 else [(2, False), (4, True)]
    assert own == sorted([*heads, (4, True), (5, groups > 1)])


@pytest.mark.models("transformers")
def test_fused_queries_and_keys_of_gpt_neox_are_nested_sums() -> None:
    import transformers

    torch.manual_seed(0)
    graph = proved(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**BASE)), input_ids=IDS)
    text = graph.spec()["gpt_neox.layers.0.attention.query_key_value.weight"]
    assert text.startswith("(gpt_neox.layers.0.attention.heads:4 (2+")
    moved = Alignment.random(graph, 0).moved()
    assert set(moved) == set(graph.groups)


@pytest.mark.models("transformers")
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "phimoe"])
def test_experts_that_are_taken_one_by_one_have_units_of_their_own(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 12, "moe_intermediate_size": 12, "num_hidden_layers": 1}
    numbers = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2, "vocab_size": 40}
    config = AutoConfig.for_model(kind, **sizes, **numbers, num_local_experts=3, num_experts=3)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    graph = proved(model, torch.arange(24).reshape(2, 12), use_cache=False)
    experts = graph.tensors["model.layers.0.mlp.experts.down_proj"].groups - {"model.embed_tokens"}
    assert {graph.groups[name].size for name in experts} == {12}
    assert len(experts) == 3
