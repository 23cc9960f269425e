"""U-Nets and autoencoders of diffusers, built from a configuration."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignkit.errors import ModelSourceError
from alignkit.models import building
from alignkit.models.building import TOKENS, Example, draw_noise

UNUSED = frozenset(("quantization_config",))
"""Fields that are about files of weights."""
SIDE = 64
"""Height and width of example images where the configuration names none; autoencoders take images of any size."""


def diffusers_model(path: str, bare: bool = False) -> Example:
    """Build a U-Net or an autoencoder of diffusers from its ``config.json``, or the folder that has it.

    The weights are random; with ``bare``, or more than 10^9 parameters, there are none.
    """
    diffusers = building.import_library("diffusers", "diffusers")
    content = building.read_config(Path(path))
    name = content.get("_class_name")
    model_class = model_class_of(name, diffusers)
    if model_class is None:
        problem = f"diffusers {diffusers.__version__} has no model {name}." if name else "it has no _class_name."
        raise ModelSourceError(f"diffusers:{path}: {problem}")
    # diffusers writes fields that it works out itself beside those that it takes, and leaves them out when it reads.
    accepted = inspect.signature(model_class.__init__).parameters.keys() - UNUSED
    values = {key: value for key, value in content.items() if key in accepted and not key.startswith("_")}
    model = building.build_with_weights(f"diffusers:{path}", lambda: model_class(**values), bare)
    return model, (), diffusers_inputs(model)


def diffusers_fields(content: dict[str, Any], text: str) -> dict[str, Any]:
    """Return every field of a configuration, with the defaults of diffusers for those that are not given."""
    diffusers = building.import_library("diffusers", "diffusers")
    model_class = model_class_of(content.get("_class_name"), diffusers)
    parameters = {} if model_class is None else inspect.signature(model_class.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    given = {key: value for key, value in content.items() if key == "_class_name" or not key.startswith("_")}
    every = {**defaults, **given}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in every.items() if key not in UNUSED
    }


def model_class_of(name: object, diffusers: Any) -> Any:
    """Return the model of diffusers of this name; None if there is none, also if it is a scheduler or a pipeline."""
    if not isinstance(name, str) or name not in dir(diffusers):
        return None
    named = building.build_alone(name, lambda: getattr(diffusers, name))  # diffusers imports it now
    return named if inspect.isclass(named) and issubclass(named, diffusers.ModelMixin) else None


def diffusers_inputs(model: nn.Module) -> dict[str, Any]:
    """Return example inputs of a model of diffusers: a noisy image, a time, and what it is conditioned on.

    Raises:
        ModelSourceError: Its main input is not an image.
    """
    config: Any = model.config
    accepted = inspect.signature(model.forward).parameters
    if "sample" not in accepted:
        raise building.refuse_input(model, next(iter(accepted), "nothing"))
    height, width = building.height_and_width(config.get("sample_size") or SIDE)
    if "timestep" not in accepted:  # autoencoders take images of any size
        height, width = min(height, SIDE), min(width, SIDE)
    inputs: dict[str, Any] = {"sample": draw_noise(1, config.get("in_channels", 3), height, width)}
    if "timestep" in accepted:
        inputs["timestep"] = torch.tensor([1])
    if "encoder_hidden_states" in accepted:
        width = config.get("encoder_hid_dim") or config.get("cross_attention_dim", 1280)
        inputs["encoder_hidden_states"] = draw_noise(1, TOKENS, width[0] if isinstance(width, list | tuple) else width)
    if config.get("num_class_embeds"):
        inputs["class_labels"] = torch.zeros(1, dtype=torch.int64)
    if config.get("addition_embed_type") == "text_time":
        times = 6  # original size, corner of the crop, target size: two numbers each
        text = config["projection_class_embeddings_input_dim"] - times * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {"text_embeds": draw_noise(1, text), "time_ids": torch.zeros(1, times)}
    return inputs
