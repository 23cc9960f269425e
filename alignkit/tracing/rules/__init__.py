"""The built-in rules, in files by what ops do to axes. Importing this package fills the table."""

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
from alignkit.tracing.rules.table import BUILT_IN

__all__ = [
    "BUILT_IN",
    "attention",
    "concatenate",
    "contraction",
    "convolution",
    "index",
    "normalise",
    "pointwise",
    "recurrent",
    "reduce",
    "shape",
    "spatial",
]
