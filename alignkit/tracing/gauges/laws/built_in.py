"""All laws, in one mapping."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from alignkit.tracing.gauges.laws import contraction, movement, pointwise, reductions
from alignkit.tracing.gauges.laws.table import Law

_FILES = (contraction, movement, pointwise, reductions)

BUILT_IN: Mapping[str, Law] = MappingProxyType({name: law for file in _FILES for name, law in file.LAWS.items()})
"""Built-in laws by op name without namespace. No op has a law in two files."""
