"""Running the rules over a recorded run: labels go in at the parameters, constraints come out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from alignkit.text import describe_error
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.labels import Labels
from alignkit.tracing.recording.recorder import OpRecord, TensorRef
from alignkit.tracing.rules.table import Call, RuleTable

_METADATA_ONLY = {
    "transpose_",
    "t_",
    "unsqueeze_",
    "squeeze_",
    "as_strided_",
    "resize_",
    "set_",
    "swapaxes_",
    "detach_",
}
_NO_DATA = {"prim::device", "aten::sym_size", "aten::is_same_size", "aten::sym_numel", "aten::_assert_async"}


def live_steps(steps: Iterable[OpRecord], results: Iterable[TensorRef]) -> list[OpRecord]:
    """Return the steps on which the results depend.

    Dead steps would couple units for nothing: the unused final states of stacked LSTM layers, for example.
    """
    live = {ref.storage for ref in results}
    kept = []
    for step in reversed(list(steps)):
        outputs = step.outputs
        if step.op in _NO_DATA or (outputs and not any(ref.storage in live for ref in outputs)):
            continue
        kept.append(step)
        live.update(ref.storage for ref in step.inputs)
    return kept[::-1]


@dataclass
class Interpreter:
    """Gives every tensor of a run its layout, in order.

    Attributes:
        table: Rules by op.
        constraints: Collects what the rules demand.
        unknown: Ops that fixed what they touched, each with the reason.
    """

    table: RuleTable
    constraints: Constraints
    unknown: dict[str, None] = field(default_factory=dict)
    _layouts: dict[int, Labels] = field(default_factory=dict)
    _aliases: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    _stale: set[int] = field(default_factory=set)
    _written: dict[int, list[Labels]] = field(default_factory=lambda: defaultdict(list))

    def label(self, ref: TensorRef, layout: Labels) -> None:
        """Set the layout of a tensor."""
        self._layouts[ref.key] = layout
        self._aliases[ref.storage].add(ref.key)
        self._stale.discard(ref.key)

    def layout(self, ref: TensorRef) -> Labels:
        """Return the layout of a tensor; tensors from outside (inputs, constants) are fixed."""
        if ref.key in self._stale:
            # Written through another view: fixing everything that the storage ever held is always right.
            for layout in self._written[ref.storage]:
                self.constraints.fix_layout(layout)
            return Labels.of(ref.shape)
        known = self._layouts.get(ref.key)
        if known is None or known.shape != ref.shape:
            if known is not None:
                self.constraints.fix_layout(known)
            known = Labels.of(ref.shape)
            self.label(ref, known)
        return known

    def run(self, steps: Iterable[OpRecord], results: Iterable[TensorRef]) -> None:
        """Interpret steps in order, then fix the results."""
        for step in steps:
            self.constraints.blame(step.op.replace("::", "."), step.where)
            self._interpret(step)
        self.constraints.blame("output", "")
        for ref in results:
            self.constraints.fix_layout(self.layout(ref))

    def _interpret(self, step: OpRecord) -> None:
        outputs = step.outputs
        layouts = self._outcome(step)
        if step.func._schema.is_mutable and step.op.split("::")[1] not in _METADATA_ONLY:
            layouts = self._write_through(step, layouts)
        for ref, layout in zip(outputs, layouts, strict=True):
            self.label(ref, layout)

    def _outcome(self, step: OpRecord) -> list[Labels]:
        """Return the layouts of a step's outputs, by its rule or by fixing all that it touches."""
        outputs = step.outputs
        fixed = [Labels.of(ref.shape) for ref in outputs]
        rule = self.table.find(step.func)
        if rule is not None and outputs:
            try:
                found = rule(Call(step, self.constraints, self.layout))
                layouts = [found] if isinstance(found, Labels) else list(found)
                if [x.shape for x in layouts] == [ref.shape for ref in outputs]:
                    return layouts
                reason = "its rule returned other shapes than the op"
            except Exception as error:  # whatever a rule trips over, fixing what it touches is sound
                reason = f"its rule failed: {describe_error(error)}"
        else:
            reason = ""
        operands = [self.layout(ref) for ref in step.inputs]
        if any(x.blocks for x in operands) and outputs:
            self.unknown[f"{step.op} ({reason})" if reason else step.op] = None
        for layout in operands:
            self.constraints.fix_layout(layout)
        return fixed

    def _write_through(self, step: OpRecord, layouts: list[Labels]) -> list[Labels]:
        """Account for other views of tensors that an op writes."""
        for argument, value in zip(step.func._schema.arguments, step.args, strict=False):
            if argument.alias_info is None or not argument.alias_info.is_write or not isinstance(value, TensorRef):
                continue
            before = self.layout(value)
            after = layouts[0] if layouts else Labels.of(value.shape)
            if before.same_as(after):
                continue
            others = {key for key in self._aliases[value.storage] if key != value.key}
            self._written[value.storage] += [before, after]
            self._written[value.storage] += [self._layouts[key] for key in others]
            self._stale |= others
            if not layouts:
                self.constraints.fix_layout(before)
                self.label(value, after)
        return layouts


def unread(steps: Iterable[OpRecord], tensors: Mapping[str, TensorRef]) -> list[str]:
    """Return the names of tensors that no step reads."""
    read = {ref.storage for step in steps for ref in step.inputs}
    return [name for name, ref in tensors.items() if ref.storage not in read]
