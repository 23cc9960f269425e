"""Settings for all tests, and the marker for tests that need a library of models."""

from __future__ import annotations

import importlib.util
import os

import hypothesis
import pytest
import torch

from helpers import torchvision_shim

hypothesis.settings.register_profile("alignkit", deadline=None)  # no test depends on the clock
hypothesis.settings.load_profile("alignkit")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # One process a core already.


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that is marked `models(LIBRARY)` where the library is not installed.

    A library that is installed and cannot be imported fails the test.
    """
    for mark in item.iter_markers("models"):
        (library,) = mark.args
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed; pip install {library}")
        torchvision_shim.install()  # timm, transformers and diffusers import torchvision too
