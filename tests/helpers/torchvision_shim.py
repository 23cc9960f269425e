"""Make torchvision importable beside a torch without its compiled operators.

A torchvision wheel that was built for another torch cannot load its library, and importing it then fails because it
registers fake versions of two operators that do not exist. Declaring their schemas is enough for every model that
does not run them.
"""

from __future__ import annotations

import contextlib
import importlib

import torch

_library: torch.library.Library | None = None


def install() -> None:
    """Import torchvision if it is there, with declared operators where it cannot load its own."""
    global _library
    if _library is not None:
        return
    with contextlib.suppress(ImportError):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:  # operator torchvision::nms does not exist
            _library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
