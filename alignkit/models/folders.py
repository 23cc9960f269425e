"""Models that come as a folder with a ``config.json``: those of transformers, diffusers and timm."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.errors import ModelSourceError, UsageError
from alignkit.models.building import Example, built, library, noise
from alignkit.text import did_you_mean

CONFIG = "config.json"
_IN_MEMORY = 1_000_000_000
"""Models with more parameters than this get no weights: they are built on the meta device."""
_TOKENS = 8
_SIDE = 64
"""Height and width of example images of diffusers where the configuration names none."""


def source_of(config: Path) -> str | None:
    """The source that builds the model of a ``config.json``, such as ``transformers:folder``; None if none is known."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = {"_class_name": "diffusers", "model_type": "transformers", "architecture": "timm"}
    found = (source for key, source in keys.items() if isinstance(content, dict) and key in content)
    source = next(found, None)
    return None if source is None else f"{source}:{config}"


def read_config(source: str, path: Path) -> dict[str, Any]:
    """Read the ``config.json`` at ``path``, or in the folder ``path``.

    Raises:
        UsageError: The file cannot be read.
        ModelSourceError: It is not one JSON object.
    """
    file = path / CONFIG if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{source}:{path}: {file} cannot be read: {error.strerror}. Give a folder with a {CONFIG}, or the file; "
            "nothing is downloaded."
        ) from error
    except ValueError as error:
        raise ModelSourceError(f"{source}:{path}: {file} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelSourceError(f"{source}:{path}: {file} is not one JSON object.")
    return content


# ---------------------------------------------------------------------- transformers


def transformers_model(path: str, bare: bool = False) -> Example:
    """Build a model of transformers from a configuration: a ``config.json``, or a folder that has one.

    The class is the configuration's first architecture, else the base model of its type. The weights are random; a
    model with more than 10^9 parameters, and any with ``bare``, gets none, which is enough for a trace.
    """
    transformers = library("transformers", "transformers")
    config = _configuration(transformers, Path(path))
    architecture = (config.architectures or [None])[0]
    if architecture is not None and not hasattr(transformers, architecture):
        raise ModelSourceError(
            f"transformers:{path}: the installed transformers {transformers.__version__} has no {architecture}. "
            "Models whose code comes with their weights are not supported: give a factory, package.module:factory."
        )
    model_class = getattr(transformers, architecture) if architecture else transformers.AutoModel
    build = model_class if architecture else model_class.from_config
    model = built(f"transformers:{path}", lambda: weighed(lambda: build(config), bare))
    return model, (), transformers_inputs(model)


def weighed(build: Callable[[], nn.Module], bare: bool) -> nn.Module:
    """Build a model with random weights if they are wanted and fit into memory, else on the meta device."""
    with torch.device("meta"):
        found = build()
    return found if bare or sum(p.numel() for p in found.parameters()) > _IN_MEMORY else build()


def _configuration(transformers: ModuleType, path: Path) -> Any:
    content = read_config("transformers", path)
    kind = content.get("model_type")
    known = transformers.CONFIG_MAPPING
    if kind not in known:
        said = f"its model_type {kind!r} is unknown to transformers {transformers.__version__}." if kind else ""
        near = did_you_mean(kind, known) if isinstance(kind, str) else ""
        raise ModelSourceError(f"transformers:{path}: {said or f'{path} has no model_type.'}{near}")
    return built(f"transformers:{path}", lambda: known[kind].from_dict(content))


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
        size = _field(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        inputs[main] = noise(1, _field(config, "num_channels", 3), height, width)
    elif main == "input_features":
        inputs[main] = noise(1, _field(config, "num_mel_bins", 80), 2 * _field(config, "max_source_positions", 64))
    elif main == "input_values":
        inputs[main] = noise(1, 4000)
    else:
        raise ModelSourceError(
            f"{type(model).__name__} takes {main!r}, for which there is no example input. Give a factory that "
            f"returns the model "
            "and its inputs: package.module:factory."
        )
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _ids(config)
    return inputs


def _ids(config: Any) -> Tensor:
    """Return token ids from the middle of the vocabulary, where no special tokens are."""
    vocabulary = _field(config, "vocab_size", 1000)
    first = vocabulary // 2
    ids: Tensor = torch.arange(_TOKENS) % max(1, vocabulary - first) + first
    return ids.reshape(1, _TOKENS)


def _field(config: Any, name: str, default: Any) -> Any:
    """Return a field of a configuration, or of the first of its parts that has it."""
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))]
    return next((value for part in parts if (value := getattr(part, name, None)) is not None), default)


# ---------------------------------------------------------------------- diffusers


def diffusers_model(path: str, bare: bool = False) -> Example:
    """Build a U-Net or an autoencoder of diffusers from its ``config.json``, or the folder that has it.

    The weights are random; with ``bare``, or more than 10^9 parameters, there are none.
    """
    diffusers = library("diffusers", "diffusers")
    content = read_config("diffusers", Path(path))
    name = content.get("_class_name")
    if not isinstance(name, str) or not hasattr(diffusers, name):
        said = f"diffusers {diffusers.__version__} has no {name}." if name else "there is no _class_name."
        raise ModelSourceError(f"diffusers:{path}: {said}")
    model_class = getattr(diffusers, name)
    values = {key: value for key, value in content.items() if not key.startswith("_")}
    model = built(f"diffusers:{path}", lambda: weighed(lambda: model_class(**values), bare))
    return model, (), diffusers_inputs(model)


def diffusers_inputs(model: nn.Module) -> dict[str, Any]:
    """Return example inputs of a model of diffusers: a noisy image, a time, and what it is conditioned on.

    Raises:
        ModelSourceError: Its main input is not an image.
    """
    config: Any = model.config
    accepted = inspect.signature(model.forward).parameters
    if "sample" not in accepted:
        raise ModelSourceError(
            f"{type(model).__name__} takes {next(iter(accepted), 'nothing')!r} first, for which there is no example "
            "input. Give a factory that returns the model and its inputs: package.module:factory."
        )
    size = config.get("sample_size") or _SIDE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if "timestep" not in accepted:  # autoencoders take images of any size
        height, width = min(height, _SIDE), min(width, _SIDE)
    inputs: dict[str, Any] = {"sample": noise(1, config.get("in_channels", 3), height, width)}
    if "timestep" in accepted:
        inputs["timestep"] = torch.tensor([1])
    if "encoder_hidden_states" in accepted:
        width = config.get("encoder_hid_dim") or config.get("cross_attention_dim", 1280)
        inputs["encoder_hidden_states"] = noise(1, _TOKENS, width[0] if isinstance(width, list | tuple) else width)
    if config.get("num_class_embeds"):
        inputs["class_labels"] = torch.zeros(1, dtype=torch.int64)
    if config.get("addition_embed_type") == "text_time":
        times = 6  # original size, corner of the crop, target size: two numbers each
        text = config["projection_class_embeddings_input_dim"] - times * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {"text_embeds": noise(1, text), "time_ids": torch.zeros(1, times)}
    return inputs


# ---------------------------------------------------------------------- timm


def timm_folder(path: Path) -> Example:
    """Build the model of a folder that timm wrote for the hub of Hugging Face; weights are random."""
    timm = library("timm", "timm")
    content = read_config("timm", path)
    name, given = content.get("architecture"), {"num_classes": content.get("num_classes")}
    if not isinstance(name, str) or not timm.is_model(name):
        raise ModelSourceError(f"timm:{path}: timm {timm.__version__} has no architecture {name!r}.")
    options = {**{k: v for k, v in given.items() if v is not None}, **content.get("model_args", {})}
    model = built(f"timm:{path}", lambda: timm.create_model(name, pretrained=False, **options))
    size = content.get("pretrained_cfg", {}).get("input_size") or model.default_cfg["input_size"]
    return model, (noise(1, *size),), {}
