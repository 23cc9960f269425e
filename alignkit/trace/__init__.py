"""Tracing: the permutation structure of any module, found from one run.

`trace` is the front door. `RuleTable`, `Call` and `Layout` are for authors of rules for further ops.
"""

from alignkit.trace.labels import Block, Layout
from alignkit.trace.table import Call, Rule, RuleTable
from alignkit.trace.tracer import trace

__all__ = ["Block", "Call", "Layout", "Rule", "RuleTable", "trace"]
