"""Example inputs of transformers models: few tokens, one image or clip, a short sound, or a short series."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.models import building
from alignkit.models.building import TOKENS, draw_noise

SAMPLES = 4000
"""Length of an example sound: more than what the layers at the front of speech models need."""
FRAMES = 32
"""Length of an example spectrogram, where the model takes any."""
GRID = 4
"""Patches on each side of an example image that is given as patches."""
PLACES = ("image_token_id", "image_token_index", "image_seq_length")
"""Fields of models that put an image in the place of some tokens; without these they read text alone."""
BESIDE = ("bbox", "image_embeds_position_mask")
"""Inputs that say where in a text an image belongs; models that take them read text alone, too."""


def transformers_inputs(model: nn.Module) -> dict[str, Any]:
    """Return example inputs of a transformers model: its main one, and the others that it does not run without.

    Models of images and texts side by side, such as CLIP, get both.

    Raises:
        ModelSourceError: Its main input is of another kind.
    """
    config: Any = model.config
    accepted = inspect.signature(model.forward).parameters
    if {"hidden_states", "grid_thw"} <= accepted.keys():
        return _patches(config)
    main = str(getattr(model, "main_input_name", "input_ids"))
    if main not in accepted:
        main = next((name for name in MAKERS if name in accepted), main)
    if main not in MAKERS or (main == "past_values" and field(config, "num_input_channels", None) is None):
        raise building.refuse_input(model, main)
    needed = {name for name, parameter in accepted.items() if parameter.default is inspect.Parameter.empty}
    both = {"input_ids", "pixel_values"}
    if both <= accepted.keys() and not any(name in accepted for name in BESIDE):
        needed |= both if all(field(config, name, None) is None for name in PLACES) else set()
    inputs = {name: make(config) for name, make in MAKERS.items() if name == main or name in needed}
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _ids(config)
    return inputs


def field(config: Any, name: str, default: Any) -> Any:
    """Return a field of a configuration, or of the first of its parts that has it."""
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))]
    return next((value for part in parts if (value := getattr(part, name, None)) is not None), default)


def _ids(config: Any) -> Tensor:
    """Return token ids from the middle of the vocabulary, where no special tokens are."""
    vocabulary: int = field(config, "vocab_size", 1000)
    first = vocabulary // 2
    return torch.arange(TOKENS).reshape(1, TOKENS) % max(1, vocabulary - first) + first


def _images(config: Any) -> Tensor:
    """Return one image, or one clip for a model that says how many frames it takes."""
    size = building.height_and_width(field(config, "image_size", 224))
    frames = field(config, "num_frames", None)
    return draw_noise(1, *([] if frames is None else [frames]), field(config, "num_channels", 3), *size)


def _clips(config: Any) -> Tensor:
    size = building.height_and_width(field(config, "crop_size", field(config, "image_size", 224)))
    return draw_noise(1, field(config, "frames_per_clip", 16), field(config, "in_chans", 3), *size)


def _patches(config: Any) -> dict[str, Tensor]:
    """Return the patches of one image, one a row, and their grid."""
    size = field(config, "patch_size", 14) ** 2 * field(config, "temporal_patch_size", 1)
    channels = field(config, "in_channels", 3)
    grid = torch.tensor([[1, GRID, GRID]])
    return {"hidden_states": draw_noise(GRID * GRID, channels * size), "grid_thw": grid}


def _spectrogram(config: Any) -> Tensor:
    """Return a spectrogram: the bands of Whisper come first and fill its positions; others take any length."""
    longest, bands = field(config, "max_source_positions", None), field(config, "num_mel_bins", None)
    if longest is not None and bands is not None:
        return draw_noise(1, bands, 2 * longest)
    names = ("input_feat_per_channel", "feature_projection_input_dim", "model_in_dim", "input_dim")
    return draw_noise(1, FRAMES, bands or next((n for name in names if (n := field(config, name, None))), 80))


def _sound(config: Any) -> Tensor:
    """Return a sound: a spectrogram where the model has bands, with channels where it is a codec."""
    bands, length = field(config, "num_mel_bins", None), field(config, "max_length", None)
    if bands is not None and length is not None and field(config, "frequency_stride", None) is not None:
        return draw_noise(1, length, bands)
    if field(config, "codebook_size", None) is not None:
        return draw_noise(1, field(config, "audio_channels", 1), SAMPLES)
    return draw_noise(1, SAMPLES)


def _series(config: Any) -> Tensor:
    return draw_noise(1, field(config, "context_length", 32), field(config, "num_input_channels", 1))


MAKERS: Mapping[str, Callable[[Any], Tensor]] = {
    "input_ids": _ids,
    "pixel_values": _images,
    "pixel_values_videos": _clips,
    "input_features": _spectrogram,
    "input_values": _sound,
    "past_values": _series,
}
"""What makes each kind of input from a configuration."""
