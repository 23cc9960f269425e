"""Models of torchvision, by name."""

from __future__ import annotations

import inspect
from typing import Any

from alignkit.models.building import Example, build_alone, check_name, draw_noise, import_library


def torchvision_model(name: str) -> Example:
    """Build a model of torchvision with random weights: ``torchvision:resnet18``."""
    models = import_library("torchvision.models", "torchvision")
    check_name(name, models.list_models(), "torchvision")
    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    options: dict[str, Any] = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    model = build_alone(f"torchvision:{name}", lambda: builder(**options))
    size = 299 if "inception" in name else 224
    inputs_of = {
        "video": (draw_noise(1, 3, 16, 224, 224),),
        "optical_flow": (draw_noise(1, 3, 128, 128), draw_noise(1, 3, 128, 128)),
        "detection": ([draw_noise(3, 320, 320)],),
    }
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    return model, inputs_of.get(kind, (draw_noise(1, 3, size, size),)), {}
