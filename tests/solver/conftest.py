"""Fixtures of the tests of `alignkit.solver`."""

from __future__ import annotations

import pytest

from alignkit.plugins import Registry
from alignkit.testing import mlp, planted_pair
from helpers.answering_solvers import Fails, Offers, Swaps


@pytest.fixture
def registry():
    made = Registry([])
    made.register(Offers(Swaps, Fails))
    return made


@pytest.fixture
def pair():
    return planted_pair(mlp(4, 8, 7, 3))
