"""Models of transformers, built from a configuration."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from alignkit.errors import ModelSourceError
from alignkit.models import building
from alignkit.models.building import Example
from alignkit.models.transformers_inputs import transformers_inputs
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
    return building.build_alone(text, lambda: known[kind].from_dict(_numbers(fields)))


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


def _numbers(content: Any) -> Any:
    """Put the numbers in place that transformers writes as words, ``{"__float__": "Infinity"}``."""
    if isinstance(content, dict):
        if content.keys() == {"__float__"}:
            return float(content["__float__"])
        return {key: _numbers(value) for key, value in content.items()}
    return [_numbers(part) for part in content] if isinstance(content, list) else content
