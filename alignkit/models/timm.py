"""Models of timm, by name or from a folder."""

from __future__ import annotations

from pathlib import Path

from alignkit.errors import ModelSourceError
from alignkit.models.building import Example, build_model, check_name, draw_noise, import_library, read_config


def timm_model(name: str) -> Example:
    """Build a model of timm with random weights: ``timm:vit_tiny_patch16_224``, or a folder with a ``config.json``."""
    if Path(name).exists():
        return _build_folder(Path(name))
    timm = import_library("timm", "timm")
    check_name(name, timm.list_models(), "timm")
    model = build_model(f"timm:{name}", lambda: timm.create_model(name, pretrained=False))
    return model, (draw_noise(1, *model.default_cfg["input_size"]),), {}


def _build_folder(path: Path) -> Example:
    """Build the model of a folder that timm wrote for the hub of Hugging Face; weights are random."""
    timm = import_library("timm", "timm")
    content = read_config("timm", path)
    name, classes = content.get("architecture"), content.get("num_classes")
    if not isinstance(name, str) or not timm.is_model(name):
        raise ModelSourceError(f"timm:{path}: timm {timm.__version__} has no architecture {name!r}.")
    options = {**({} if classes is None else {"num_classes": classes}), **content.get("model_args", {})}
    model = build_model(f"timm:{path}", lambda: timm.create_model(name, pretrained=False, **options))
    size = content.get("pretrained_cfg", {}).get("input_size") or model.default_cfg["input_size"]
    return model, (draw_noise(1, *size),), {}
