"""All built-in rules, in one mapping."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from alignkit.plugins.hookspecs import hookimpl
from alignkit.tracing.rules import contraction, index, pointwise, reduce, scatter, shape, spatial, transforms
from alignkit.tracing.rules.table import Rule

_FILES = (contraction, index, pointwise, reduce, scatter, shape, spatial, transforms)

BUILT_IN: Mapping[str, Rule] = MappingProxyType({name: rule for file in _FILES for name, rule in file.RULES.items()})
"""Built-in rules by op name, such as "aten::add". No op has a rule in two files."""


@hookimpl
def alignkit_register_trace_rules() -> Mapping[str, Rule]:
    """Offer the built-in rules, as any other package offers its own."""
    return BUILT_IN
