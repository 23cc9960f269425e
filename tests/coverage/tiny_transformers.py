"""Tiny models of transformers classes: configurations shrunk by the names of their fields, inputs by their forward."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

HEADS = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_CLASSIFICATION", "MASKED_LM", "CTC",
    "AUDIO_CLASSIFICATION",
    "SEQUENCE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION", "OBJECT_DETECTION",
)  # fmt: skip
"""Tasks in the order in which a class is chosen for a type: with a head, the residual stream is free."""

VOCABULARY = 96
LARGEST = 40_000_000
"""Models with more parameters than this after shrinking are not built."""

# The first pattern that matches the whole name of a field decides; lists keep their length, or get that of the layers.
SIZES: tuple[tuple[str, int], ...] = (
    (r"num_hidden_layers|num_layers|n_layers?|depth|num_blocks|(num_)?(\w+_)?layers", 2),
    (r"\w+_num_layers|\w+_num_hidden_layers", 2),
    (r"num_key_value_heads|num_kv_heads|num_attention_groups|multi_query_group_num|\w+_num_key_value_heads", 2),
    (r"head_dim|attention_head_dim|d_kv|v_head_dim|qk_nope_head_dim|qk_rope_head_dim", 8),
    (r"global_head_dim|kv_channels|swa_head_dim", 8),
    (r"linear_(key|value)_head_dim|mamba_d_head|mamba_head_dim|index_head_dim|linear_head_dim|swa_v_head_dim", 8),
    (r"(\w+_)?(num_)?attention_heads|num_heads|n_heads?|num_query_heads", 4),
    (r"linear_num_(key|value)_heads|linear_num_heads|index_n_heads|mamba_num_heads|mamba_n_heads", 4),
    (r"qk_head_dim", 16),
    (r"kv_lora_rank|q_lora_rank", 12),
    (r"moe_intermediate_size|shared_expert_intermediate_size|moe_\w*intermediate_size", 24),
    (r"(\w+_)?intermediate_size|(\w+_)?ffn_dim|d_ff|mlp_dim|n_inner|ffn_hidden_size|intermediate_dim|\w+_mlp_dim", 48),
    (r"(\w+_)?hidden_size|d_model|n_embd|embed_dim|(\w+_)?hidden_dim|model_dim|d_embed|emb_dim|embedding_dim", 32),
    (r"embedding_size|word_embed_proj_dim|projection_dim|output_dim|lstm_\w*dim", 32),
    (r"classifier_proj_size|out_hidden_size", 32),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|num_selected_experts|moe_top_k|top_k_experts", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts|moe_num_shared_experts|first_k_dense_replace", 1),
    (r"vocab_size(_per_layer_input)?|\w+_vocab_size", VOCABULARY),
    (r"(max|n)_position(_embedding)?s|max_(source|target)_positions|n_ctx|max_seq\w*_len(gth)?", 64),
    (r"image_size|pretrain_image_size", 32),
    (r"patch_size", 8),
    (r"num_mel_bins", 16),
    (r"sliding_window|local_attention|attention_window", 8),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"mamba_chunk_size|chunk_size", 4),
    (r"num_conv_pos_embedding_groups", 4),
    (r"num_conv_pos_embeddings", 8),
    (r"num_queries", 8),
)  # fmt: skip
LISTS: tuple[tuple[str, int], ...] = (
    (r"depths|layers|num_layers|stage_num_blocks|stage_numb_of_layers|num_blocks|blocks_per_stage", 1),
    (r"conv_dim", 32),
)
KINDS = re.compile(r"(\w+_)?layer_types|layers_block_type|block_types|indexer_types")
TOKEN = re.compile(r"\w+_(token|token_id|token_ids|token_index|id)")
OVERRIDES: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": (16, 16), "axial_pos_shape": (4, 4)},
}
"""Fields whose values depend on others, by model type."""
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"hidden_size": 64, "embed_dim": 64, "d_model": 64, "head_dim": 16, "embedding_size": 64, "n_embd": 64},
    {"image_size": 64},
    {"image_size": 64, "patch_size": None},
    {"hidden_size": None, "intermediate_size": None, "num_attention_heads": None, "head_dim": None,
    "num_key_value_heads": None}, {"image_size": None, "patch_size": None, "embed_dim": None, "hidden_dim": None,
    "num_heads": None}, {"*": None},
)  # fmt: skip
"""What is tried in turn until a model builds and runs: fields with another value, None for the value of the library."""


def class_names() -> dict[str, str]:
    """Return for each model type the class that is traced: one with a head where there is one."""
    from transformers.models.auto import modeling_auto as auto

    chosen: dict[str, str] = {}
    for mapping in [*(f"MODEL_FOR_{head}_MAPPING_NAMES" for head in HEADS), "MODEL_MAPPING_NAMES"]:
        for kind, name in getattr(auto, mapping).items():
            chosen.setdefault(kind, name if isinstance(name, str) else name[0])
    return dict(sorted(chosen.items()))


def build(kind: str, name: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Return a tiny model of a type, of the class `name` if it is given, in eval mode, and inputs on which it runs.

    Raises:
        RuntimeError: No variant of the configuration builds and runs; the message has the first and the last failure.
    """
    import transformers
    from transformers import CONFIG_MAPPING

    model_class = getattr(transformers, name or class_names()[kind])
    failures: list[str] = []
    for variant in VARIANTS:
        try:
            config = shrunk(CONFIG_MAPPING[kind], variant, OVERRIDES.get(kind, {}))
            config._attn_implementation = "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
            with torch.device("meta"):
                size = sum(p.numel() for p in model_class(config).parameters())
            if size > LARGEST:
                raise RuntimeError(f"{size:,} parameters after shrinking")
            torch.manual_seed(0)
            model = model_class(config).eval().float()
        except Exception as error:  # configurations check themselves in every way
            failures.append(f"build: {_first_line(error)}")
            continue
        for inputs in candidates(model):
            try:
                with torch.no_grad():
                    model(**inputs)
                return model, inputs
            except Exception as error:  # these inputs are not the right ones
                failures.append(f"forward: {_first_line(error)}")
    raise RuntimeError(" | ".join(dict.fromkeys((failures[0], failures[-1]))))


def shrunk(config_class: Any, variant: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Return a small configuration: values of `SIZES`, few layers of each kind, small special tokens, what is given."""
    default = config_class()
    known = default.to_dict()
    changed: dict[str, Any] = {}
    layers = 2
    for name, value in known.items():
        if KINDS.fullmatch(name) and isinstance(value, list):
            layers = max(layers, min(4, len(set(map(str, value)))))
    token = VOCABULARY
    for name, value in known.items():
        if name in getattr(config_class, "sub_configs", {}):
            continue
        small = _small(name, value, layers, variant)
        if (
            TOKEN.fullmatch(name)
            and isinstance(value, int)
            and not isinstance(value, bool)
            and value >= VOCABULARY // 2
        ):
            token -= 1
            small = token
        if small is not None and small != value:
            changed[name] = small
    for name in getattr(config_class, "sub_configs", {}):
        part = getattr(default, name, None)
        if hasattr(part, "sub_configs"):
            changed[name] = shrunk(type(part), variant, {}).to_dict()
    accepted = inspect.signature(config_class.__init__).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        changed = {name: value for name, value in changed.items() if name in accepted}
    return config_class(**{**changed, **given})


def _small(name: str, value: Any, layers: int, variant: Mapping[str, Any]) -> Any:
    """Return the value for a field, or None to leave the library's."""
    if isinstance(value, list | tuple):
        return _small_list(name, value, layers, variant)
    if isinstance(value, bool) or not (isinstance(value, int) or value is None) or value == 0:
        return None
    if name in variant:
        return variant[name] if value is not None else None
    size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
    if size is None or value is None or re.fullmatch(r"window_size|\w*group_size", name):
        return None
    if (size == 2 and "layer" in name) or name in ("depth", "n_layer"):
        return layers
    if "*" in variant:
        return None if "layer" not in name else min(size, value)
    return min(size, value) if value > 0 else None


def _small_list(name: str, value: list[Any] | tuple[Any, ...], layers: int, variant: Mapping[str, Any]) -> Any:
    if KINDS.fullmatch(name) or name in ("mlp_layer_types",):
        kinds = sorted({str(v): v for v in value}.items(), key=lambda item: [str(v) for v in value].index(item[0]))
        return ([v for _, v in kinds] * layers)[:layers]
    if "*" in variant or name in variant:
        return None
    if name in ("image_size", "patch_size") and all(isinstance(v, int) for v in value):
        return [{"image_size": 32, "patch_size": 8}[name]] * len(value)
    size = next((size for pattern, size in LISTS if re.fullmatch(pattern, name)), None)
    return None if size is None else [min(size, v) if isinstance(v, int) else v for v in value]


def candidates(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield inputs that may be right for a model, likely ones first."""
    accepted = inspect.signature(model.forward).parameters
    config: Any = model.config
    main = getattr(model, "main_input_name", "input_ids")
    extra: dict[str, Any] = {}
    if "decoder_input_ids" in accepted:
        extra["decoder_input_ids"] = _ids(5, seed=2)
    for inputs in _main_inputs(main, config, accepted):
        yield {**inputs, **extra}
        if extra:
            yield inputs
    if "grid_thw" in accepted and "hidden_states" in accepted:
        patch = _first(config, "patch_size", 8) ** 2 * _first(config, "temporal_patch_size", 1) * 3
        yield {"hidden_states": _noise(16, patch), "grid_thw": torch.tensor([[1, 4, 4]])}
    if main != "input_ids" and "input_ids" in accepted:
        for pixels in _main_inputs(main, config, accepted):
            yield {"input_ids": _ids(6), **pixels}
        yield {"input_ids": _ids(6)}


def _main_inputs(main: str, config: Any, accepted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if main == "input_ids":
        yield {"input_ids": _ids(7)}
        yield {"input_ids": _ids(16)}
        if "pixel_values" in accepted:
            yield from ({"input_ids": _ids(7), "pixel_values": image} for image in _images(config))
        if "bbox" in accepted:
            yield {"input_ids": _ids(7), "bbox": torch.arange(28).reshape(1, 7, 4) % 16}
    elif main.startswith("pixel_values") or main in ("images", "image"):
        yield from ({main: image} for image in _images(config))
        frames = _first(config, "num_frames", 4)
        yield from ({main: _noise(1, frames, 3, image.shape[-2], image.shape[-1])} for image in _images(config))
        patch = _first(config, "patch_size", 8)
        grid = torch.tensor([[1, 4, 4]])
        flat = _noise(16, 3 * _first(config, "temporal_patch_size", 1) * patch * patch)
        yield {main: flat, "grid_thw": grid}
        yield {main: flat, "image_grid_thw": grid}
    elif main == "hidden_states":
        yield {"hidden_states": _noise(1, 8, 32)}
    elif main == "past_values":
        length = (_first(config, "context_length", 32) or 32) + max(getattr(config, "lags_sequence", None) or [0])
        channels = _first(config, "num_input_channels", 1)
        yield {"past_values": _noise(1, length, channels)}
        times = {"past_time_features": _noise(1, length, 1), "past_observed_mask": torch.ones(1, length)}
        yield {"past_values": _noise(1, length), **times}
        yield {"past_values": _noise(1, length)}
    else:
        bins = next((v for n in ("num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim",
        "feat_extract_input_size")
                     if isinstance(v := _find(config, n), int)), 16)  # fmt: skip
        longest = 2 * _first(config, "max_source_positions", 16)
        for length in (longest, 32, 64, 3000):
            yield {main: _noise(1, bins, length)}
            yield {main: _noise(1, length, bins)}
        yield {main: _noise(1, 4000)}
        yield {main: _noise(1, 1, 4000)}
        yield {main: _noise(1, 1, 1001, 64), "is_longer": torch.tensor([[False]])}


def _images(config: Any) -> Iterator[Tensor]:
    """Yield images of the sizes that a configuration names, then of common ones."""
    channels = _first(config, "num_channels", 3)
    size = _find(config, "image_size")
    shapes = (
        [tuple(size) if isinstance(size, list | tuple) else (size, size)] if size and not isinstance(size, dict) else []
    )
    for height, width in [*shapes, (64, 64), (96, 96), (224, 224)]:
        yield _noise(1, channels, height, width)


def _find(config: Any, name: str) -> Any:
    """Return a field of a configuration or of the first part that has it."""
    value = getattr(config, name, None)
    if value is not None:
        return value
    parts = (getattr(config, part, None) for part in getattr(config, "sub_configs", {}))
    return next((found for part in parts if part is not None and (found := _find(part, name)) is not None), None)


def _first(config: Any, name: str, default: int) -> int:
    value = _find(config, name)
    if isinstance(value, list | tuple):
        value = value[0]
    return value if isinstance(value, int) else default


def _ids(length: int, seed: int = 1) -> Tensor:
    return torch.randint(4, VOCABULARY // 2, (1, length), generator=torch.Generator().manual_seed(seed))


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160] if text else ''}"
