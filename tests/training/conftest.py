"""Fixtures of the tests of `alignkit.training`."""

from __future__ import annotations

import pytest

from helpers.training_runs import Small


@pytest.fixture(scope="module")
def small():
    return Small()
