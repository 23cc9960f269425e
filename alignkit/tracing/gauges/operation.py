"""One run of an operation as the laws of the second pass see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit.graph.kinds import GroupKind
from alignkit.tracing.gauges.degrees import combine
from alignkit.tracing.gauges.facets import Carrier, Facet, Findings, Obstacle, obstacle_of
from alignkit.tracing.gauges.parts import Part
from alignkit.tracing.interpreter import LabelledStep
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.recording.recorder import OpRecord, TensorRef


@dataclass(frozen=True, eq=False)
class Operation:
    """A step with labels, and what the second pass knows so far."""

    labelled: LabelledStep
    findings: Findings

    @property
    def step(self) -> OpRecord:
        """The recorded op."""
        return self.labelled.step

    @property
    def where(self) -> str:
        """The module that ran it."""
        return self.step.where

    @property
    def inputs(self) -> list[TensorRef]:
        """Tensors among the arguments."""
        return self.step.inputs

    @property
    def output(self) -> TensorRef:
        """The first tensor that the op returned."""
        return self.step.outputs[0]

    def arg(self, name: str, default: Any = None) -> Any:
        """Return an argument by the name that the op's schema gives it."""
        return self.step.arg(name, default)

    def cause(self, words: str = "") -> Obstacle:
        """Return this op as a cause."""
        return obstacle_of(self.step, words)

    def labels(self, ref: TensorRef) -> Labels:
        """Return the labels of an operand."""
        return self.labelled.operands.get(ref.key) or Labels.of(ref.shape)

    def parts(self, ref: TensorRef) -> tuple[Part, ...]:
        """Return the parts of an operand."""
        return self.findings.spaces.parts(self.labels(ref))

    def carriers(self, ref: TensorRef) -> Iterator[Carrier]:
        """Yield the parts of an operand with their facets."""
        for part in self.parts(ref):
            yield self.carrier(ref, part)

    def carrier(self, ref: TensorRef, part: Part) -> Carrier:
        """Return one part of an operand with its facet."""
        return Carrier(ref, part, self.findings.get(ref, part, self.cause()))

    def results(self) -> Iterator[tuple[TensorRef, Part]]:
        """Yield the parts of all outputs."""
        for ref, labels in zip(self.step.outputs, self.labelled.outputs, strict=True):
            for part in self.findings.spaces.parts(labels):
                yield ref, part

    def at(self, ref: TensorRef, space: int, coordinates: Mapping[int, int]) -> Carrier | None:
        """Return the part of an operand in which a position lies; dimensions without a coordinate count from 0."""
        same = [part for part in self.parts(ref) if part.space == space and set(part.dims) & coordinates.keys()]
        for part in same:
            at = tuple(coordinates.get(d, 0) % ref.shape[d] for d in part.block.span)
            source = self.findings.spaces.source_of(int(part.block.atoms[at]))
            if len(same) == 1 or source == part.source:
                return self.carrier(ref, part)
        return None

    def beside(self, result: Part, rank: int, refs: Sequence[TensorRef] | None = None) -> list[Carrier]:
        """Return the parts of the operands that stand at the first position of a part of an elementwise result."""
        carriers = []
        for ref in self.inputs if refs is None else refs:
            shift = rank - len(ref.shape)
            coordinates = {d - shift: at for d, at in result.first.items() if d >= shift}
            owned = {d: at for d, at in coordinates.items() if d + shift in result.dims and ref.shape[d] > 1}
            if owned and (carrier := self.at(ref, result.space, {**coordinates, **owned})):
                carriers.append(carrier)
        return carriers

    def set(self, ref: TensorRef, part: Part, facet: Facet) -> None:
        """Record the facet of a part of an output."""
        self.findings.set(ref, part, facet)

    def keep_only(self, space: int, kinds: Iterable[GroupKind], words: str = "") -> None:
        """Leave a space only those of its rotations that are among ``kinds``, because of this op."""
        self.findings.cap(space, frozenset(kinds), self.cause(words))

    def require(self, space: int, facet: Facet, *, scales: bool = True, signs: bool = True) -> None:
        """Require that a facet has degree 0."""
        self.findings.require(space, combine([(1, facet.degree)]), scales=scales, signs=signs)

    def use(self, carrier: Carrier) -> None:
        """Record that the op uses an operand other than as the reader of a value."""
        if carrier.facet.segment is not None:
            self.findings.used_otherwise.setdefault(carrier.facet.segment, self.cause())

    def passed_on(self, carrier: Carrier) -> Facet:
        """Return the facet of an operand; if something else reads it too, it has no writers of its own."""
        if self.findings.consumers.get(carrier.ref.key, 0) == 1:
            return carrier.facet
        return replace(carrier.facet, writers=frozenset(), mixed=frozenset())

    def writers(self, carrier: Carrier) -> frozenset[int]:
        """Return the segments that an operand is a linear function of, none if something else reads it too."""
        return self.passed_on(carrier).writers
