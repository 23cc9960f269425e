"""Running the rules over a recorded run: labels go in at the parameters, constraints come out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from alignkit.text import describe_error
from alignkit.tracing.labels.choices import follow
from alignkit.tracing.labels.constants import Constants
from alignkit.tracing.labels.constraints import Cause, Constraints
from alignkit.tracing.labels.reads import Reads
from alignkit.tracing.labels.tensor_labels import Choice, IntArray, Labels
from alignkit.tracing.labels.writes import Box, Key, are_apart, box_of, put_box, take_box
from alignkit.tracing.recording.recorder import Leak, OpRecord, TensorRef
from alignkit.tracing.rules.table import Call, RuleTable

_NO_WRITE = {"transpose_", "t_", "unsqueeze_", "squeeze_", "as_strided_", "resize_", "set_", "swapaxes_", "detach_"}
"""In-place ops that write no element: other views of the storage keep their labels."""
_NO_DATA = {"prim::device", "aten::sym_size", "aten::is_same_size", "aten::sym_numel", "aten::_assert_async",
            "aten::_linalg_check_errors"}  # fmt: skip
"""Ops whose results are not computed from elements, or that only raise."""


def live_steps(steps: Iterable[OpRecord], results: Iterable[TensorRef]) -> list[OpRecord]:
    """Return the steps on which the results depend.

    Dead steps would couple units for nothing: the unused final states of stacked LSTM layers, for example. So would
    dead results, such as the position of a maximum.
    """
    steps = list(steps)
    leaked = [ref for step in steps if isinstance(step, Leak) for ref in step.inputs]
    live = {ref.storage for ref in (*results, *leaked)}
    given_away = {ref.storage for ref in leaked}
    read = {ref.key for ref in results}
    kept = []
    for step in reversed(steps):
        storages = {ref.storage for ref in step.inputs}
        if step.written or not storages.issuperset(ref.storage for ref in step.outputs):
            is_live = any(ref.storage in live for ref in (*step.outputs, *step.written))
        else:  # a view that nothing reads, such as one that is asked for its shape
            is_live = any(ref.key in read or ref.storage in given_away for ref in step.outputs)
        if (is_live or not step.outputs) and step.op not in _NO_DATA:
            unused = frozenset(i for i, ref in enumerate(step.outputs) if ref.storage not in live)
            kept.append(replace(step, unused=unused))
            live.update(storages)
            read.update(ref.key for ref in step.inputs)
    return kept[::-1]


@dataclass(frozen=True, eq=False)
class LabelledStep:
    """A step with the labels of its operands, by their keys, and of its outputs, in order."""

    step: OpRecord
    operands: Mapping[Key, Labels]
    outputs: list[Labels]


@dataclass
class Interpreter:
    """Gives every tensor of a run its labels, in order.

    `unknown` holds ops that fixed what they touched, and why; `left_aside` the atoms of positions that some op leaves
    aside, `unread` those on which no result of the run depends, `single_step` those of positions of `weights` (their
    storages) that it multiplied with nothing but constants. With `gives_numbers` another run may take other positions,
    see `RecordedRun`. With a `history`, every step is added to it with the labels of its operands and results.
    """

    table: RuleTable
    constraints: Constraints
    weights: set[int]
    history: list[LabelledStep] | None = None
    gives_numbers: bool = False
    unknown: dict[str, None] = field(default_factory=dict)
    left_aside: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    unread: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    single_step: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    _constants: Constants = field(default_factory=Constants)
    _reads: Reads = field(default_factory=Reads)
    _labels: dict[Key, Labels] = field(default_factory=dict)
    _aliases: dict[int, set[Key]] = field(default_factory=lambda: defaultdict(set))
    _stale: dict[Key, Cause] = field(default_factory=dict)  # by the write that made them so
    _origins: dict[Key, Cause] = field(default_factory=dict)  # what fixed all of a tensor that had units before
    _leaked: set[int] = field(default_factory=set)
    _written: dict[int, list[Labels]] = field(default_factory=lambda: defaultdict(list))

    def set_labels(self, ref: TensorRef, labels: Labels) -> None:
        """Give a tensor its labels."""
        if ref.storage in self._leaked:
            self.constraints.fix_labels(labels)
            labels = Labels.of(ref.shape)
        self._labels[ref.key] = labels
        self._aliases[ref.storage].add(ref.key)
        self._stale.pop(ref.key, None)
        self._origins.pop(ref.key, None)

    def labels_of(self, ref: TensorRef) -> Labels:
        """Return the labels of a tensor; tensors from outside (inputs, constants) are fixed."""
        known = self._labels.get(ref.key)
        if known is not None and ref.key not in self._stale:
            return known
        # From outside, written through another view, or made of elements of others in an unknown way: fixing
        # everything that the storage ever held is always right.
        write = self._stale.get(ref.key)
        if write is not None:
            self.constraints.blame(write.op, write.where)
            self._origins[ref.key] = write
            self.unknown[f"{write.op.replace('.', '::')} (what it writes is read through a view of other parts)"] = None
        self._fix_storage(ref.storage)
        fixed = Labels.of(ref.shape)
        if write is None:
            self.set_labels(ref, fixed)
        return fixed

    def _fix_storage(self, storage: int) -> None:
        """Fix all that the tensors of a storage hold and held: it may be used in any way."""
        for labels in (*self._written[storage], *(self._labels[key] for key in self._aliases[storage])):
            self.constraints.fix_labels(labels)
            self._reads.use(storage, labels)

    def run(self, steps: Iterable[OpRecord], results: Iterable[tuple[str, TensorRef]]) -> None:
        """Interpret steps in order, then fix the results, and what no step reads."""
        for step in steps:
            cause = self._origin(step) or Cause(step.op.replace("::", "."), step.where)
            self.constraints.blame(cause.op, cause.where)
            if isinstance(step, Leak):
                self._leak(step)
                continue
            outputs = step.outputs
            output_labels = self._apply_rule(step, outputs)
            if self.history is not None:
                example = self.constraints.stand_ins.example
                operands = {ref.key: example(self._labels[ref.key]) for ref in step.inputs if ref.key in self._labels}
                self.history.append(LabelledStep(step, operands, [example(labels) for labels in output_labels]))
            if step.func._schema.is_mutable and step.op.split("::")[1] not in _NO_WRITE:
                self._write_through(step, outputs, output_labels)
            for ref, labels in zip(outputs, output_labels, strict=True):
                self.set_labels(ref, labels)
            origin = self._origin(step) or (None if self.table.find(step.func) else cause)
            if origin is not None:
                self._origins |= {
                    ref.key: origin for ref, x in zip(outputs, output_labels, strict=True) if not x.blocks
                }
        for name, ref in results:
            self.constraints.blame(f"output {name}".rstrip(), "")
            labels = self.labels_of(ref)
            self.constraints.fix_labels(labels)
            self._reads.read(ref.storage, labels)
            self._reads.use(ref.storage, labels)
        self.left_aside = self._reads.fix_unread(self.constraints)
        self.unread = self._reads.unused(self.left_aside)
        self.single_step = self._constants.fix_results(self.constraints, self.weights)

    def _origin(self, step: OpRecord) -> Cause | None:
        """Return what fixed all of an operand: what meets it is fixed by that, not by the op in which they meet."""
        return next((self._origins[ref.key] for ref in step.inputs if ref.key in self._origins), None)

    def _leak(self, step: Leak) -> None:
        """Fix what some storages hold, now and later: it is read and written without an op."""
        for ref in step.inputs:
            if any(self._labels[key].blocks for key in self._aliases[ref.storage]):
                self.unknown[step.op] = None
            self._fix_storage(ref.storage)
            self._leaked.add(ref.storage)
            for key in self._aliases[ref.storage]:
                self._labels[key] = Labels.of(self._labels[key].shape)

    def _apply_rule(self, step: OpRecord, outputs: list[TensorRef]) -> list[Labels]:
        """Return the labels of a step's outputs, by its rule or by fixing all that it touches."""
        reason = ""
        rule = self.table.find(step.func)
        if rule is not None and outputs:
            self.constraints.summed.clear()
            try:
                followed = self._follow(step)
                call = Call(
                    step, self.constraints, self.labels_of, self.gives_numbers, is_followed=followed is not None
                )
                answer = rule(call)
                output_labels = [answer] if isinstance(answer, Labels) else list(answer)
                if followed is not None:
                    output_labels = [x.saying(choice) for x, choice in zip(output_labels, followed, strict=True)]
                if [x.shape for x in output_labels] == [ref.shape for ref in outputs]:
                    self._note_reads(call, output_labels)
                    self._constants.note(self.constraints, step, self.labels_of, output_labels[0])
                    return output_labels
                reason = "its rule returned other shapes than the op"
            except (Exception, SystemExit) as error:  # whatever a rule trips over, fixing what it touches is sound
                reason = f"its rule failed: {describe_error(error)}"
        operands = [self.labels_of(ref) for ref in step.inputs]
        for ref, labels in zip(step.inputs, operands, strict=True):
            self._reads.read(ref.storage, labels)
            self._reads.use(ref.storage, labels)
        if any(x.blocks for x in operands) and outputs:
            self.unknown[f"{step.op} ({reason})" if reason else step.op] = None
        self.constraints.fix_labels(*operands)
        return [Labels.of(ref.shape) for ref in outputs]

    def _follow(self, step: OpRecord) -> list[Choice | None] | None:
        """Return what the outputs of an op say about units, if it only moves elements of tensors that say so."""
        if step.written:
            return None
        choices = [self.labels_of(ref).choice for ref in step.inputs]
        return follow(step.op.split("::")[1], step.func, (step.args, step.kwargs), choices)

    def _note_reads(self, call: Call, output_labels: list[Labels]) -> None:
        """Record what an op computes with, takes a part of, or only looks at in another shape."""
        outputs = [] if call.step.written else zip(call.outputs, output_labels, strict=True)
        results = [(ref.storage, labels) for ref, labels in outputs]
        summed = [*self.constraints.summed]
        for index, ref in enumerate(call.step.inputs if call.asked else ()):
            views = [labels for storage, labels in results if storage == ref.storage]
            operand = self.labels_of(ref)
            if call.picks and index == 0:
                operand = call.picks[0].taken
                self._reads.pick(ref.storage, call.picks[0], views, self.constraints.causes[-1])
            else:
                self._reads.read(ref.storage, operand, views)
            self._reads.use(ref.storage, operand, results, summed)

    def _write_through(self, step: OpRecord, outputs: list[TensorRef], output_labels: list[Labels]) -> None:
        """Give tensors that share a storage with what an op writes the labels that they have now.

        A tensor may be written by position, by name (``out=``) or in a list (``_foreach_add_``).
        """
        for value in step.written:
            before = self.labels_of(value)
            returned = [x for ref, x in zip(outputs, output_labels, strict=True) if ref.storage == value.storage]
            after = returned[0] if returned else Labels.of(value.shape)
            if before.same_as(after):
                continue
            others = self._aliases[value.storage] - {value.key}
            self._written[value.storage] += [before, after, *(self._labels[key] for key in others)]
            self._reads.written(value.storage)
            boxes = {key: box_of(key, value.key) for key in others - self._stale.keys()}
            if others:
                for labels in (after, *(self._labels[key] for key in others)):
                    self.constraints.fix_choice(labels.choice)
            for key in others - self._stale.keys():
                self._update(key, value.key, after, boxes)
            if not returned:
                self.constraints.fix_labels(before)
                self.set_labels(value, after)

    def _update(self, key: Key, written: Key, after: Labels, boxes: Mapping[Key, Box | None]) -> None:
        """Give a tensor its labels after a write into another one of its storage; stale ones if they are not known.

        `boxes` say which part of each tensor was written.
        """
        known = self._labels[key]
        box, inside = boxes[key], box_of(written, key)
        if box is not None:
            self._labels[key] = put_box(self.constraints, known, box, after)
        elif inside is not None:
            self._labels[key] = take_box(self.constraints, after, inside, len(known.shape))
        elif not any(
            there is not None and (mine := box_of(whole, key)) is not None and are_apart(mine, there)
            for whole, there in boxes.items()
        ):
            self._stale[key] = self.constraints.causes[-1]
