"""Folders of small models of transformers, as its own ``save_pretrained`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}
PICTURES = {**SIZES, "image_size": 16, "patch_size": 8, "num_labels": 3}
TEXTS = {**SIZES, "vocab_size": 40, "max_position_embeddings": 32}
EXPERTS = {**TEXTS, "num_key_value_heads": 1, "head_dim": 8, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
SWIN = {"image_size": 16, "patch_size": 4, "window_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
SEQUENCES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 40}  # fmt: skip
TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # Names on disk are others than in memory.
    "vit": ("ViTForImageClassification", PICTURES),
    "deit": ("DeiTForImageClassification", PICTURES),
    "dinov2": ("Dinov2ForImageClassification", PICTURES),
    "swin": ("SwinForImageClassification", {**SWIN, "num_labels": 3}),
    "gpt_neox": ("GPTNeoXForCausalLM", TEXTS),
    "gpt_neox tied": ("GPTNeoXForCausalLM", {**TEXTS, "tie_word_embeddings": True}),
    # One tensor on disk is several in memory.
    "dinov2 gated": ("Dinov2ForImageClassification", {**PICTURES, "use_swiglu_ffn": True}),
    # Several tensors on disk are one in memory.
    "mixtral": ("MixtralForCausalLM", {**TEXTS, "num_key_value_heads": 1, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**EXPERTS, "num_experts": 4}),
    "qwen3_moe tied": ("Qwen3MoeForCausalLM", {**EXPERTS, "num_experts": 4, "tie_word_embeddings": True}),
    # A bare backbone.
    "vit backbone": ("ViTModel", PICTURES),
    "bert backbone": ("BertModel", TEXTS),
    # Names are the same.
    "llama": ("LlamaForCausalLM", {**TEXTS, "num_key_value_heads": 1}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_head": 2, "n_layer": 1, "vocab_size": 40, "n_positions": 32}),
    "bert": ("BertForSequenceClassification", TEXTS),
    "bart": ("BartForConditionalGeneration", {**SEQUENCES, **TOKENS, "max_position_embeddings": 32}),
}
RENAMED = ("vit", "deit", "dinov2", "swin", "gpt_neox")
REARRANGED = ("dinov2 gated", "mixtral", "qwen3_moe", "qwen3_moe tied")


def family_model(family: str, seed: int = 0) -> Any:
    """A small model with random weights, also where they start as zeros or ones."""
    import transformers

    name, fields = FAMILIES[family]
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def save_family(family: str, folder: Path, seed: int = 0, **how: Any) -> Any:
    """Save such a model into a folder, and return it."""
    model = family_model(family, seed)
    model.save_pretrained(folder, **how)
    return model


def load_like(model: Any, folder: Path) -> Any:
    """Load a folder with the class of a model; every tensor has to be found there, and no other."""
    loaded, told = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return loaded.eval()
