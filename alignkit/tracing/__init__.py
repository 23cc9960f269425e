"""Tracing: the permutation structure of any module, found from one run.

`trace` is the front door. `RuleTable`, `Call` and `Layout` are for authors of rules for further ops.
"""

from alignkit.tracing.labels.labels import Block, Layout
from alignkit.tracing.rules.table import Call, Rule, RuleTable
from alignkit.tracing.tracer import trace

__all__ = ["Block", "Call", "Layout", "Rule", "RuleTable", "trace"]
