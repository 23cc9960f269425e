"""All built-in rules, in one mapping."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from alignkit.tracing.rules import (
    attention,
    concatenate,
    contraction,
    convolution,
    index,
    normalise,
    pointwise,
    recurrent,
    reduce,
    shape,
    spatial,
)
from alignkit.tracing.rules.table import Rule, RuleSet

_FILES = (
    attention, concatenate, contraction, convolution, index, normalise, pointwise, recurrent, reduce, shape, spatial,
)  # fmt: skip


def _collect() -> RuleSet:
    rules = RuleSet()
    for file in _FILES:
        for name, function in file.RULES.items():
            rules.rule(name)(function)  # refuses a second rule for one op
    return rules


BUILT_IN: Mapping[str, Rule] = MappingProxyType(_collect())
"""Built-in rules by op name, such as "aten::add"."""
