"""Fixtures of the tests of `alignkit.plugins`."""

from __future__ import annotations

import itertools
import sys
import types
from importlib.metadata import EntryPoint

import pytest

from helpers.plugin_code import FakeDistribution


@pytest.fixture
def code_entry(tmp_path, monkeypatch):
    """Make an entry point whose module is a file with this code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    numbers = itertools.count()

    def make(code: str, name: str = "odd", package: str = "alignkit-odd") -> EntryPoint:
        module = f"plugin_of_{tmp_path.name}_{next(numbers)}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
        return EntryPoint(name, module, "alignkit")._for(FakeDistribution.of(package))

    return make


@pytest.fixture
def entry(monkeypatch):
    """Make an entry point of a package with any object behind it."""
    numbers = itertools.count()

    def make(name: str, package: str, plugin: object) -> EntryPoint:
        module = types.ModuleType(f"module_of_plugin_{next(numbers)}")
        module.plugin = plugin
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return EntryPoint(name, f"{module.__name__}:plugin", "alignkit")._for(FakeDistribution.of(package))

    return make
