"""Models of timm, by name or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit.errors import ModelSourceError
from alignkit.models.building import Example, build_model, check_name, draw_noise, import_library, read_config


def timm_model(name: str) -> Example:
    """Build a model of timm with random weights: ``timm:vit_tiny_patch16_224``, or a folder with a ``config.json``.

    Such a folder is one that timm wrote for the hub of Hugging Face.
    """
    timm = import_library("timm", "timm")
    content: dict[str, Any] = {}
    if Path(name).exists():
        content = read_config("timm", Path(name))
        architecture = content.get("architecture")
        if not isinstance(architecture, str) or not timm.is_model(architecture):
            raise ModelSourceError(f"timm:{name}: timm {timm.__version__} has no architecture {architecture!r}.")
    else:
        architecture = name
        check_name(name, timm.list_models(), "timm")
    classes = content.get("num_classes")
    options = {**({} if classes is None else {"num_classes": classes}), **content.get("model_args", {})}
    model = build_model(f"timm:{name}", lambda: timm.create_model(architecture, pretrained=False, **options))
    size = content.get("pretrained_cfg", {}).get("input_size") or model.default_cfg["input_size"]
    return model, (draw_noise(1, *size),), {}
