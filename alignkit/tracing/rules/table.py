"""The table of rules: what each op does to labels.

A rule is a function of one `Call`. It returns the labels of each tensor that the op returns (a list, or one `Labels`
for one tensor) and adds constraints through the call. Three promises make it sound:

- what it returns moves exactly as the op's result moves when its operands move;
- positions along a labelled dimension that the op treats differently are fixed (`call.fix`) or told apart
  (`call.constraints`);
- whatever labels it does not carry over, it fixes, unless the op reduces over them in an order-independent way.

An op without a rule, or whose rule raises, fixes all that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignkit.errors import TraceError
from alignkit.tracing.labels import combine
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.reads import Pick
from alignkit.tracing.labels.tensor_labels import Choice, IntArray, LabelBlock, Labels
from alignkit.tracing.recording.recorder import OpRecord, TensorRef

Rule = Callable[["Call"], "Labels | Sequence[Labels]"]


@dataclass(frozen=True)
class Call:
    """One run of an op, as a rule sees it.

    Attributes:
        step: The recorded op. Tensors in its arguments are `TensorRef` (shape, dtype).
        constraints: Receives the constraints.
        labels_of: Gives the labels of a tensor.
        gives_numbers: Whether the code of the model got numbers from values: another run may take other positions.
        picks: Positions that the op takes from its first tensor, see `pick`.
        is_followed: Whether the op only moves elements, so that what they say about units is known without the rule.
        asked: Labels that the rule asked for. One that asks for none takes shapes alone, as that of `zeros_like`.
    """

    step: OpRecord
    constraints: Constraints
    labels_of: Callable[[TensorRef], Labels]
    gives_numbers: bool = False
    picks: list[Pick] = field(default_factory=list)
    is_followed: bool = False
    asked: list[Labels] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the op without namespace, overload and the underscore of an in-place variant."""
        return self.step.op.split("::")[1].rstrip("_")

    @property
    def outputs(self) -> list[TensorRef]:
        """The tensors that the op returned."""
        return self.step.outputs

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first tensor that the op returned."""
        return self.outputs[0].shape

    def is_used(self, output: int) -> bool:
        """Return whether the run reads an output, by its number, or returns it."""
        return output not in self.step.unused

    def arg(self, name: str, default: Any = None) -> Any:
        """Return an argument by the name that the op's schema gives it."""
        return self.step.arg(name, default)

    def labels(self, argument: str | TensorRef) -> Labels:
        """Return the labels of a tensor argument, given by its name in the schema or as a `TensorRef`.

        Units whose numbers the tensor holds are fixed: what a rule does not ask for, it does not follow. See `chosen`.
        """
        labels, choice = self.chosen(argument)
        self.constraints.fix_choice(choice)
        return labels

    def chosen(self, argument: str | TensorRef) -> tuple[Labels, Choice | None]:
        """Return the labels of a tensor argument, and what its elements say about units, see `Choice`.

        A rule that does not follow what they say fixes these units (`call.constraints.fix_choice`).
        """
        labels = self.labels_of(self.arg(argument) if isinstance(argument, str) else argument)
        self.asked.append(labels)
        return labels.saying(None), None if self.is_followed else labels.choice

    def labels_of_tensors(self, *names: str) -> list[Labels]:
        """Return the labels of those of the named arguments that are tensors: optional ones may be missing."""
        return [self.labels(ref) for name in names if isinstance(ref := self.arg(name), TensorRef)]

    def operands(self) -> list[Labels]:
        """Return the labels of all tensor arguments, in order."""
        return [self.labels(ref) for ref in self.step.inputs]

    def dims(self, value: int | Sequence[int] | None, rank: int) -> set[int]:
        """Return dimensions counted from the front; None and the empty list mean all."""
        if value is None or (not isinstance(value, int) and not len(value)):
            return set(range(rank))
        return {d % rank for d in ([value] if isinstance(value, int) else value)} if rank else set()

    def unify(self, shape: Sequence[int], operands: Sequence[Labels]) -> Labels:
        """Align tensors elementwise, with broadcasting; return the labels of the result."""
        return combine.unify(self.constraints, shape, [x.pad_rank(len(shape)) for x in operands])

    def pick(self, labels: Labels, dim: int, index: IntArray) -> Labels:
        """Return the labels of positions `index` along `dim` of the first tensor. What no op reads of it gets fixed.

        Where another run may take other positions, all stay, and what depends on them is alike for all.
        """
        if self.gives_numbers:
            free = self.fix_dims(labels, [dim])
            return free.with_fixed([dim], (*labels.shape[:dim], len(index), *labels.shape[dim + 1 :]))
        self.picks.append(Pick(labels, dim, index))
        return combine.restrict(self.constraints, labels, dim, index)

    def cut(self, labels: Labels, dim: int, pieces: Sequence[IntArray]) -> list[Labels]:
        """Return the labels of all positions along `dim` of the first tensor, in pieces, of which some may stay unread.

        Pieces of one size are shares of the dimension; others have bounds, as slices do. Where another run may take
        other pieces, those of a stack are alike.
        """
        is_stack = any(dim in block.span and block.dims != (dim,) for block in labels.blocks)
        if self.gives_numbers and is_stack:
            return [self.pick(labels, dim, piece) for piece in pieces]
        self.picks.append(Pick(labels, dim, np.concatenate(pieces), in_pieces=len({len(p) for p in pieces}) == 1))
        return [combine.restrict(self.constraints, labels, dim, piece) for piece in pieces]

    def fix(self, *operands: Labels) -> Labels:
        """Fix every labelled position of some tensors; return labels that fix the first output."""
        self.constraints.fix_labels(*operands)
        return self.fixed_outputs()[0]

    def fix_dims(self, labels: Labels, dims: Iterable[int], shape: Sequence[int] | None = None) -> Labels:
        """Fix the positions along some dimensions; return labels without blocks there. Other dimensions keep theirs.

        Given the shape of a result with other sizes along these dimensions, or other values, they are fixed in it too.
        """
        gone = set(dims)
        blocks: list[LabelBlock] = []
        for block in labels.blocks:
            for axis in block.axes(gone.intersection(block.dims)):
                self.constraints.fix_axis(block.atoms, axis)
            touched = gone.intersection(block.span)
            blocks += combine.label_rows(self.constraints, block, gone) if touched else [block]
        free = labels.with_blocks(blocks)
        return free if shape is None else free.with_fixed(gone, shape)

    def first_output(self, labels: Labels) -> list[Labels]:
        """Return the labels of all outputs, given those of the first. Operands stay if the run reads another one."""
        if any(self.is_used(output) for output in range(1, len(self.outputs))):
            self.constraints.fix_labels(*self.operands())
        return [labels, *self.fixed_outputs()[1:]]

    def fixed_outputs(self) -> list[Labels]:
        """Return labels that fix every output."""
        return [Labels.of(ref.shape) for ref in self.outputs]


class RuleTable:
    """Rules by op name: "aten::add" for every overload, or "aten::add.Tensor" for one of them, which wins.

    Raises:
        TraceError: A name has no namespace, or its rule cannot be called.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        for name, function in rules.items():
            if "::" not in name or not callable(function):
                raise TraceError(
                    f"trace rule {name!r} is not usable: rules are functions of one Call, under names such as "
                    "'aten::add' or 'mylib::fold.default'."
                )
        self._rules = dict(rules)

    def find(self, func: Any) -> Rule | None:
        """Return the rule of an overload, or None. An in-place op without one has that of its out-of-place form."""
        name, overload = str(func._schema.name), str(func._schema.overload_name) or "default"
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        for key in (f"{name}.{overload}", name, f"{plain}.{overload}", plain):
            if key in self._rules:
                return self._rules[key]
        return None


class RuleSet(dict[str, Rule]):
    """The rules of one file, by op name. Its functions add themselves while the file is imported."""

    def rule(self, *names: str) -> Callable[[Rule], Rule]:
        """Decorate a function as the rule of ops, given as "aten::add" or, in this namespace, "add"."""

        def keep(function: Rule) -> Rule:
            for name in names:
                key = name if "::" in name else f"aten::{name}"
                if key in self:
                    raise TraceError(f"two rules for {key}: {self[key].__name__} and {function.__name__}.")
                self[key] = function
            return function

        return keep
