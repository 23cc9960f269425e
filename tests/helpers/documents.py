"""Documents of alignkit, changed by hand: without check sums, as earlier releases wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from alignkit.checkpoints.documents import DIGEST, ENTRY, TENSORS


def unsealed(text: str) -> dict[str, Any]:
    """Return the values of a JSON text without its check sums."""
    return {key: value for key, value in json.loads(text).items() if key not in (DIGEST, TENSORS)}


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Path:
    """Change values and tensors of a safetensors document, and write it without check sums."""
    with safetensors.safe_open(path, "pt") as file:
        values = unsealed(file.metadata()[ENTRY])
    tensors = safetensors.torch.load_file(path)
    change(values, tensors)
    safetensors.torch.save_file(tensors, path, {ENTRY: json.dumps(values)})
    return path
