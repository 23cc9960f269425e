"""Fixtures of the tests of `alignkit.jobs`."""

from __future__ import annotations

import pytest

from alignkit import SymmetryGraph
from helpers.weight_files import SPEC, weights


@pytest.fixture
def graph() -> SymmetryGraph:
    return SymmetryGraph.from_spec(SPEC, weights(0))
