"""The networks of `helpers.gauge_cases` in other sizes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from unittest.mock import patch

from helpers.gauge_cases import Case


def cases_of_sizes(**sizes: int) -> Mapping[str, Case]:
    """Return all cases with other sizes, by the names of constants of `helpers.gauge_nets`, such as ``WIDTH``."""
    nets = _fresh("helpers.gauge_nets", sizes)
    with patch.dict(sys.modules, {"helpers.gauge_nets": nets}):
        cases = _fresh("helpers.gauge_cases", {})
    every: Mapping[str, Case] = {**cases.CASES, **cases.TOLD}
    return every


def _fresh(name: str, values: Mapping[str, int]) -> ModuleType:
    spec = find_spec(name)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    with patch.dict(sys.modules, {name: module}):  # dataclasses look their module up
        spec.loader.exec_module(module)
    vars(module).update(values)
    return module
