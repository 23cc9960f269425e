"""Models of timm, by name or from a folder."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from alignkit.errors import ModelSourceError
from alignkit.models.building import (
    Example,
    build_with_weights,
    check_name,
    draw_noise,
    import_library,
    read_config,
)
from alignkit.text import list_some

BUILDER_ARGUMENTS = frozenset(("device", "dtype", "feature_cls", "features_only", "out_indices", "pruned"))
"""Arguments that timm takes out by hand before it makes a model, beside those in the signatures of its builders."""


def timm_model(name: str, bare: bool = False) -> Example:
    """Build a model of timm with random weights: ``timm:vit_tiny_patch16_224``, or a folder with a ``config.json``.

    Such a folder is one that timm wrote for the hub of Hugging Face. With ``bare``, or more than 10^9 parameters, there
    are no weights.
    """
    timm = import_library("timm", "timm")
    text, content = f"timm:{name}", {}
    if os.path.exists(name):
        content = read_config(Path(name))
        architecture = content.get("architecture")
        if not isinstance(architecture, str) or not timm.is_model(architecture):
            raise ModelSourceError(f"{text}: timm {timm.__version__} has no architecture {architecture!r}.")
    else:
        architecture = name
        check_name(name, timm.list_models(), "timm")
    arguments = model_arguments(content, text)
    model: Any = build_with_weights(text, lambda: timm.create_model(architecture, pretrained=False, **arguments), bare)
    size = _mapping(content, "pretrained_cfg", text).get("input_size") or model.default_cfg["input_size"]
    return model, (draw_noise(1, *size),), {}


def model_arguments(content: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the arguments of the architecture that a ``config.json`` of timm gives.

    Raises:
        ModelSourceError: Others are among them, such as ``checkpoint_path``: they are for timm's builders, which load
            files and change what is built.
    """
    timm = import_library("timm", "timm")
    builders = (timm.create_model, import_library("timm.models", "timm").build_model_with_cfg)
    named = {name for builder in builders for name in inspect.signature(builder).parameters}
    given = {key: value for key, value in _mapping(content, "model_args", text).items() if value is not None}
    if foreign := sorted(given.keys() & (named | BUILDER_ARGUMENTS)):
        raise ModelSourceError(
            f"{text}: model_args names {list_some(foreign)}, which is not an argument of an architecture. Remove it."
        )
    classes = content.get("num_classes")
    return {**({} if classes is None else {"num_classes": classes}), **given}


def timm_fields(content: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the architecture, its arguments and how images are prepared, with defaults where timm has them."""
    timm = import_library("timm", "timm")
    architecture, given = content.get("architecture"), _mapping(content, "pretrained_cfg", text)
    known = timm.get_pretrained_cfg(architecture) if isinstance(architecture, str) else None
    defaults = {} if known is None else known.to_dict()
    prepared = {key: given.get(key, defaults.get(key)) for key in ("global_pool", "input_size", "mean", "std")}
    labels = {"num_classes": defaults.get("num_classes"), "label_names": content.get("label_names")}
    every = {"architecture": architecture, **prepared, **labels, **model_arguments(content, text)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in every.items()}


def _mapping(content: dict[str, Any], field: str, text: str) -> dict[str, Any]:
    """Return a field that is a mapping, or is not there."""
    value = content.get(field) or {}
    if not isinstance(value, dict):
        raise ModelSourceError(f"{text}: {field} is not a JSON object.")
    return value
