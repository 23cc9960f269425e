"""Models of transformers, built from a configuration."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.errors import ModelSourceError
from alignkit.models import building
from alignkit.models.building import TOKENS, Example, draw_noise
from alignkit.text import did_you_mean


def transformers_model(path: str, bare: bool = False) -> Example:
    """Build a model of transformers from a configuration: a ``config.json``, or a folder that has one.

    The class is the configuration's first architecture, else the base model of its type. The weights are random; a
    model with more than 10^9 parameters, and any with ``bare``, gets none, which is enough for a trace.
    """
    transformers = building.import_library("transformers", "transformers")
    content = building.read_config("transformers", Path(path))
    kind, known = content.get("model_type"), transformers.CONFIG_MAPPING
    if kind not in known:
        problem = f"its model_type {kind!r} is unknown to transformers {transformers.__version__}."
        hint = did_you_mean(kind, known) if isinstance(kind, str) else ""
        raise ModelSourceError(f"transformers:{path}: {problem if kind else 'it has no model_type.'}{hint}")
    config = building.build_model(f"transformers:{path}", lambda: known[kind].from_dict(content))
    architecture = (config.architectures or [None])[0]
    if architecture is not None and not hasattr(transformers, architecture):
        problem = f"the installed transformers {transformers.__version__} has no {architecture}."
        advice = "Models whose code comes with their weights are not supported: give a factory, package.module:factory."
        raise ModelSourceError(f"transformers:{path}: {problem} {advice}")
    model_class = getattr(transformers, architecture) if architecture else transformers.AutoModel
    build = model_class if architecture else model_class.from_config
    model = building.build_with_weights(f"transformers:{path}", lambda: build(config), bare)
    return model, (), transformers_inputs(model)


def transformers_inputs(model: nn.Module) -> dict[str, Any]:
    """Return example inputs of a transformers model: few tokens, one image, or a short sound.

    Raises:
        ModelSourceError: Its main input is of another kind.
    """
    config: Any = model.config
    main = str(getattr(model, "main_input_name", "input_ids"))
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {}
    if main == "input_ids":
        inputs[main] = _ids(config)
    elif main == "pixel_values":
        size = building.height_and_width(_field(config, "image_size", 224))
        inputs[main] = draw_noise(1, _field(config, "num_channels", 3), *size)
    elif main == "input_features":
        inputs[main] = draw_noise(1, _field(config, "num_mel_bins", 80), 2 * _field(config, "max_source_positions", 64))
    elif main == "input_values":
        inputs[main] = draw_noise(1, 4000)
    else:
        raise building.refuse_input(model, main)
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _ids(config)
    return inputs


def _ids(config: Any) -> Tensor:
    """Return token ids from the middle of the vocabulary, where no special tokens are."""
    vocabulary: int = _field(config, "vocab_size", 1000)
    first = vocabulary // 2
    return torch.arange(TOKENS).reshape(1, TOKENS) % max(1, vocabulary - first) + first


def _field(config: Any, name: str, default: Any) -> Any:
    """Return a field of a configuration, or of the first of its parts that has it."""
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))]
    return next((value for part in parts if (value := getattr(part, name, None)) is not None), default)
