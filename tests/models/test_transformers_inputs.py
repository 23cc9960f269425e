"""Example inputs of transformers: each kind of model gets what it does not run without, and reads all of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import open_networks, trace
from alignkit.errors import ModelSourceError
from alignkit.graph.proof.outputs import output_tensors
from alignkit.models import load_model

pytestmark = pytest.mark.models("transformers")

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12}
PICTURE = {**SIZES, "image_size": 16, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 40, "max_position_embeddings": 32}
TOWERS = {"text_config": TEXT, "vision_config": PICTURE, "projection_dim": 8}
MAMBA = {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 4, "num_hidden_layers": 1}
SPEECH = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12,
          "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 16, "vocab_size": 60,
          "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip
QWEN = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 12, "out_hidden_size": 16, "patch_size": 4,
        "fullatt_block_indexes": [0]}  # fmt: skip
SERIES = {"num_input_channels": 3, "context_length": 24, "patch_length": 8, "patch_stride": 8, "d_model": 16,
          "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 12}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "clip": ("CLIPModel", TOWERS, {"input_ids", "pixel_values"}),
    "siglip": ("SiglipModel", TOWERS, {"input_ids", "pixel_values"}),
    "blip": ("BlipModel", TOWERS, {"input_ids", "pixel_values"}),
    "videomae": ("VideoMAEForVideoClassification", {**PICTURE, "num_frames": 4}, {"pixel_values"}),
    "vivit": ("VivitForVideoClassification", {**PICTURE, "num_frames": 4, "tubelet_size": [2, 8, 8]}, {"pixel_values"}),
    "mamba2": ("Mamba2ForCausalLM", {**MAMBA, "vocab_size": 40}, {"input_ids"}),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**SPEECH, "num_mel_bins": 8},
        {"input_features", "decoder_input_ids"},
    ),
    "speech_to_text": (
        "Speech2TextForConditionalGeneration",
        {**SPEECH, "input_feat_per_channel": 8, "conv_channels": 16},
        {"input_features", "decoder_input_ids"},
    ),
    "audio-spectrogram-transformer": (
        "ASTForAudioClassification",
        {**SIZES, "max_length": 32, "num_mel_bins": 16},
        {"input_values"},
    ),
    "patchtst": ("PatchTSTForPrediction", {**SERIES, "prediction_length": 4}, {"past_values"}),
    "qwen2_5_vl_vision": ("Qwen2_5_VisionTransformerPretrainedModel", QWEN, {"hidden_states", "grid_thw"}),
    "mistral": ("MistralForCausalLM", {**TEXT, "num_key_value_heads": 1}, {"input_ids"}),
    "bart": ("BartForConditionalGeneration", SPEECH, {"input_ids", "decoder_input_ids"}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_runs_on_its_example_and_reads_every_part(kind: str, tmp_path: Path) -> None:
    import transformers

    name, fields, inputs = MODELS[kind]
    model_class = getattr(transformers, name)
    config = model_class.config_class(**fields)
    config.architectures = [name]
    config.save_pretrained(tmp_path)
    model, args, kwargs = load_model(f"transformers:{tmp_path}")
    assert set(kwargs) == inputs
    sum(output.sum() for output in output_tensors(model(*args, **kwargs)) if output.requires_grad).backward()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    read = {name.partition(".")[0] for name, parameter in parameters.items() if parameter.grad is not None}
    assert read == {name.partition(".")[0] for name in parameters}
    graph = open_networks(model=f"transformers:{tmp_path}").graph
    assert graph.groups
    graph.verify(model, *args, **kwargs)


def test_numbers_that_are_written_as_words(tmp_path: Path) -> None:
    content = {"model_type": "mamba2", **MAMBA, "vocab_size": 40, "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config: Any = load_model(f"transformers:{tmp_path}", bare=True)[0].config
    assert list(config.time_step_limit) == [0.0, float("inf")]
    (tmp_path / "config.json").write_text(json.dumps({**content, "time_step_limit": [0.0, {"__float__": "wide"}]}))
    with pytest.raises(ModelSourceError, match="could not convert string to float"):
        load_model(f"transformers:{tmp_path}", bare=True)


def test_series_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "informer", "prediction_length": 4}')
    with pytest.raises(ModelSourceError, match="takes 'past_values', for which there is no example input"):
        load_model(f"transformers:{tmp_path}", bare=True)


def test_experts_run_in_float64_and_without_values(tmp_path: Path) -> None:
    experts = {"num_key_value_heads": 1, "num_local_experts": 4}
    content = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], **TEXT, **experts}
    (tmp_path / "config.json").write_text(json.dumps(content))
    model, args, kwargs = load_model(f"transformers:{tmp_path}", bare=True)
    graph = trace(model, *args, **kwargs)
    assert any("experts" in group for group in graph.groups)
    whole, args, kwargs = load_model(f"transformers:{tmp_path}")
    assert graph.verify(whole, *args, **kwargs).dtype == "float64"
    assert torch.isfinite(whole(*args, **kwargs).logits).all()
