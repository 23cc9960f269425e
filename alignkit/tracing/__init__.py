"""Tracing: the permutation symmetries of any module, inferred from one run.

`trace` is the front door. `Call`, `Labels`, `LabelBlock` and `RuleTable` are for authors of rules for further ops. The
rooms inside: `recording` (one run), `labels` (of tensors, and constraints on them), `rules` (what each op does to
labels), `solving` (from constraints to symmetries), `reading` (from symmetries to layouts).
"""

from alignkit.tracing.labels.tensor_labels import LabelBlock, Labels
from alignkit.tracing.rules.table import Call, Rule, RuleTable
from alignkit.tracing.tracer import trace

__all__ = ["Call", "LabelBlock", "Labels", "Rule", "RuleTable", "trace"]
