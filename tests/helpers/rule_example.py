"""Rules for two ops of a library, as a plugin of alignkit. The page "Writing a rule" shows this file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignkit import hookimpl
from alignkit.tracing import Call, Labels, Rule
from alignkit.tracing.labels.combine import drop

# --8<-- [start:ops]
library = torch.library.Library("mylib", "DEF")
library.define("bias_gelu(Tensor x, Tensor bias) -> Tensor")
library.define("unit_length(Tensor x) -> Tensor")


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Add a bias to the last axis and apply GELU, in one kernel."""
    return torch.nn.functional.gelu(x + bias)


def unit_length(x: Tensor) -> Tensor:
    """Scale each row to length 1."""
    return x / x.norm(dim=-1, keepdim=True)


for name, kernel in (("bias_gelu", bias_gelu), ("unit_length", unit_length)):
    library.impl(name, kernel, "CPU")
    library.impl(name, lambda x, *_: torch.empty_like(x), "Meta")
# --8<-- [end:ops]


# --8<-- [start:rules]
def bias_gelu_rule(call: Call) -> Labels:
    """Elementwise with broadcasting: positions of x and bias that meet move together, and so does the result."""
    return call.unify(call.shape, call.operands())


def unit_length_rule(call: Call) -> Labels:
    """The length sums over the last axis in any order; the result moves as x does."""
    x = call.labels("x")
    drop(call.constraints, x, {len(x.shape) - 1})
    return x


@hookimpl
def alignkit_register_trace_rules() -> Mapping[str, Rule]:
    """Offer both rules."""
    return {"mylib::bias_gelu": bias_gelu_rule, "mylib::unit_length": unit_length_rule}


# --8<-- [end:rules]
