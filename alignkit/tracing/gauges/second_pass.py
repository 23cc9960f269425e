"""The second pass: laws over the steps of a run, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from alignkit.tracing.gauges.bias_trails import follow_biases
from alignkit.tracing.gauges.facets import Added, Facet, Findings, Obstacle, Trails, key_of
from alignkit.tracing.gauges.laws.built_in import BUILT_IN
from alignkit.tracing.gauges.laws.pointwise import apply_function
from alignkit.tracing.gauges.operation import Operation
from alignkit.tracing.gauges.parts import Spaces
from alignkit.tracing.gauges.turns import name_of
from alignkit.tracing.interpreter import LabelledStep
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.reading.traced_layouts import TracedLayouts
from alignkit.tracing.recording.recorder import Leak, OpRecord, TensorRef

_KEEPS_ROWS = {"_to_copy", "clone", "native_dropout", "dropout", "view", "_unsafe_view", "reshape", "expand", "alias",
               "detach", "contiguous"}  # fmt: skip
"""Ops that keep the elements of the last dimension."""
_ZEROS, _PICKS = {"zeros", "zeros_like", "new_zeros"}, {"slice", "select", "unsqueeze", "squeeze", "unbind", "t"}
_SHIFTS_ROWS = _KEEPS_ROWS | {"mul", "div", "add", "sub", "masked_fill", "where"}
"""Ops that do the same to all elements of a row but for what is masked, so that a common shift stays one."""


def run_laws(
    traced: TracedLayouts,
    labels: Mapping[str, Labels],
    tensors: Mapping[str, TensorRef],
    history: Sequence[LabelledStep],
    results: Sequence[tuple[str, TensorRef]],
    scalars: Mapping[tuple[int, ...], str],
) -> Findings:
    """Return what the operations of a run admit on the spaces that the first pass found.

    Args:
        traced: What the first pass read.
        labels: First labels of parameters.
        tensors: Parameters, by name.
        history: The steps with their labels.
        results: The model's outputs: each is read once more.
        scalars: The names of tensors of one number that a network keeps and no step writes.
    """
    spaces = Spaces(traced)
    consumers = Counter(ref.key for labelled in history for ref in _read_by(labelled.step))
    consumers.update(ref.key for _, ref in results)
    shapes = {name: ref.shape for name, ref in tensors.items()}
    names = {ref.key: name for name, ref in tensors.items()}
    findings = Findings(spaces, shapes, consumers, names, trails=Trails(scalars))
    for name, first in labels.items():
        for part in spaces.add_parameter(name, first):
            facet = Facet(((part.source, 1),), "vector", part.source, writers=frozenset((part.source,)))
            findings.set(tensors[name], part, facet)
            if findings.is_vector(facet):
                findings.trails.values[key_of(tensors[name], part)] = (Added(part.source),)
    for labelled in history:
        op = Operation(labelled, findings)
        follow_biases(op)
        _run_law(op)
    returned = {ref.key for _, ref in results}
    for key, biases in findings.trails.values.items():
        if key[0] in returned:
            findings.trails.stop(biases, Obstacle("an output", ""))
    return findings


def _read_by(step: OpRecord) -> list[TensorRef]:
    """Return what a step reads, but for what it returns as it is."""
    returned = {ref.key for ref in step.outputs}
    return [ref for ref in step.inputs if ref.key not in returned]


def _run_law(op: Operation) -> None:
    """Run the law of a step, and note what it writes."""
    if isinstance(op.step, Leak):
        for ref in op.inputs:
            for carrier in op.carriers(ref):
                op.keep_only(carrier.part.space, ())
                op.findings.facts[carrier.part.space].unknown = True
        return
    name = name_of(op.step)
    for written in op.step.written:
        if op.step.op.endswith("_"):
            kept = [(ref, op.carrier(ref, part)) for ref in op.inputs for part in op.parts(ref)]
            op.findings.forget(written)
            for ref, carrier in kept:
                op.findings.set(ref, carrier.part, carrier.facet)
    zeros = op.findings.zero_values
    is_zero = [ref.key in zeros for ref in op.inputs]
    stays_zero = (name == "mul" and any(is_zero)) or (name in _KEEPS_ROWS | _PICKS and bool(is_zero) and all(is_zero))
    if (stays_zero or name in _ZEROS) and not op.step.written:
        zeros.update(ref.key for ref in op.step.outputs)
        for output, part in op.results():
            op.set(output, part, Facet())
        return
    BUILT_IN.get(name, apply_function)(op)
    for written in op.step.written:
        op.findings.forget_marks(written)
    if op.step.outputs and op.inputs:
        findings, first, last = op.findings, op.inputs[0], op.output.shape[-1:]
        if name in _KEEPS_ROWS and first.key in findings.weights_of_one and first.shape[-1:] == last:
            findings.weights_of_one.add(op.output.key)
        if name in _SHIFTS_ROWS and first.key in findings.scores and first.shape[-1:] == last:
            findings.scores[op.output.key] = findings.scores[first.key]
