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

UNUSED = frozenset(
    (
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
        *(
            "use_kernels",
            "kernel_config",
            "auto_map",
            "trust_remote_code",
            "quantization_config",
            "dtype",
            "torch_dtype",
        ),
        *("_name_or_path", "name_or_path", "use_pretrained_backbone", "_commit_hash", "return_dict"),
    )
)
"""Fields that say where weights and code come from and how they run, and not what the model is.

transformers chooses how attention runs, which is then one of torch's own ways.
"""
EXPERTS = "batched_mm"
"""How experts run: in any dtype and without values, which torch's grouped products do not."""


def transformers_model(path: str, bare: bool = False) -> Example:
    """Build a model of transformers from a configuration: a ``config.json``, or a folder that has one.

    The class is the configuration's first architecture, else the base model of its type. The weights are random; a
    model with more than 10^9 parameters, and any with ``bare``, gets none, which is enough for a trace.
    """
    transformers = building.import_library("transformers", "transformers")
    content = building.read_config(Path(path))
    text = f"transformers:{path}"
    config = parsed_config(content, text)
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = EXPERTS
    model_class = _model_class(config, text)
    build = transformers.AutoModel.from_config if model_class is None else model_class
    model = building.build_with_weights(text, lambda: build(config), bare)
    return model, (), transformers_inputs(model)


def parsed_config(content: dict[str, Any], text: str) -> Any:
    """Return the configuration object of transformers, with the defaults of all fields that are not given.

    Raises:
        ModelSourceError: Its ``model_type`` is unknown, or its fields do not fit.
    """
    transformers = building.import_library("transformers", "transformers")
    kind, known = content.get("model_type"), transformers.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        problem = f"its model_type {kind!r} is unknown to transformers {transformers.__version__}."
        hint = did_you_mean(kind, known) if isinstance(kind, str) else ""
        raise ModelSourceError(f"{text}: {problem if kind else 'it has no model_type.'}{hint}")
    fields = building.without_fields(content, UNUSED)
    return building.build_alone(text, lambda: known[kind].from_dict(fields))


def transformers_fields(content: dict[str, Any], text: str) -> dict[str, Any]:
    """Return every field of a configuration, with the defaults of transformers for those that are not given."""
    fields: dict[str, Any] = building.without_fields(parsed_config(content, text).to_dict(), UNUSED)
    return fields


def _model_class(config: Any, text: str) -> Any:
    """Return the class of models that a configuration names first; None if it names none."""
    transformers = building.import_library("transformers", "transformers")
    architectures = config.architectures or [None]
    name = architectures[0] if isinstance(architectures, list | tuple) else architectures
    if name is None:
        return None
    named = building.build_alone(text, lambda: getattr(transformers, name, None)) if isinstance(name, str) else None
    if inspect.isclass(named) and issubclass(named, transformers.PreTrainedModel):
        return named
    problem = f"the installed transformers {transformers.__version__} has no {name}."
    advice = "Models whose code comes with their weights are not supported: give a factory, package.module:factory."
    raise ModelSourceError(f"{text}: {problem} {advice}")


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
