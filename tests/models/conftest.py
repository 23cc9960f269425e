"""Fixtures of the tests of `alignkit.models`."""

from helpers.model_modules import model_modules as model_modules
