"""A module of functions that return models, as users write them, and one that cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FACTORIES = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.ones(1, 4)

class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, scale=1.0):
        return scale * self.two(self.one(x))

def keywords():
    return Keywords(), {"x": torch.ones(2, 4), "scale": 2.0}

class Lightning(Keywords):
    example_input_array = torch.ones(1, 4)

def bare():
    return Keywords()

def nothing():
    return 3

def broken():
    raise KeyError("no such layer")

model = mlp()[0]
"""


@pytest.fixture
def model_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a module of factories."""
    (tmp_path / "my_models.py").write_text(FACTORIES)
    (tmp_path / "my_broken.py").write_text("import no_such_library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_models", None)
