"""Tracing: the permutation structure of any module, found from one run.

`trace` is the front door. `RuleTable`, `Call` and `Labels` are for authors of rules for further ops.
"""

from alignkit.tracing.labels.labels import LabelBlock, Labels
from alignkit.tracing.rules.table import Call, Rule, RuleTable
from alignkit.tracing.tracer import trace

__all__ = ["Call", "LabelBlock", "Labels", "Rule", "RuleTable", "trace"]
