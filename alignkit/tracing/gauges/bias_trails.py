"""Bias trails: where a bias is added to what a sine is taken of, and by how much it is multiplied on its way there.

``sin(u + pi)`` is ``-sin(u)`` and ``cos(u + pi)`` is ``-cos(u)``. A bias that reaches sines and cosines only, as a
number that is added at all positions of a unit, may move by half periods, and units behind it change their sign. Each
bias in each frequency has an unknown of its own, which is 1 where units behind it change their sign. A bias that
anything else reads stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from alignkit.tracing.gauges.facets import Added, Facet, Key, key_of
from alignkit.tracing.gauges.laws.movement import matching
from alignkit.tracing.gauges.operation import Operation
from alignkit.tracing.gauges.turns import name_of
from alignkit.tracing.recording.recorder import Leak, TensorRef

_PERIODIC = {"sin", "cos"}
"""Functions that change their sign with half a period."""
_MOVES = {"view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "t", "transpose", "permute",
          "unsqueeze", "squeeze", "alias", "detach", "clone", "contiguous", "_to_copy", "expand", "split",
          "split_with_sizes", "chunk", "unbind", "cat", "slice", "select"}  # fmt: skip
"""Ops that lay elements elsewhere."""
_TERMS = {"linear": "bias", "addmm": "self", "baddbmm": "self", "addmv": "self", "native_layer_norm": "bias"}
"""Ops with a term that is added at all positions, and the argument that it is."""
_CHANNEL_TERMS = {"convolution", "_convolution", "native_batch_norm", "_native_batch_norm_legit_no_training",
                  "native_group_norm"}  # fmt: skip
"""Ops that add a ``bias`` to channels, dimension 1."""

NO_FREQUENCY = "multiplied by what is no number of the code and no parameter or buffer of the checkpoint"


def follow_biases(op: Operation) -> None:
    """Follow all biases that an op reads; those that do not go on as they were added are stuck there."""
    trails = op.findings.trails
    keys = {key_of(ref, part) for ref in op.inputs for part in op.parts(ref)}
    reads = {key: trails.values[key] for key in keys if trails.values.get(key)}
    for written in op.step.written:
        for key in [key for key in trails.values if key[0][0] == written.storage and key[0] != written.key]:
            trails.stop(trails.values.pop(key), op.cause())  # it shares elements with what is written
    if reads or name_of(op.step) in _PERIODIC:
        taken = set() if isinstance(op.step, Leak) else _take(op)
        words = NO_FREQUENCY if name_of(op.step) in ("mul", "div") else ""
        for key in reads.keys() - taken:
            trails.stop(reads[key], op.cause(words))


def _take(op: Operation) -> set[Key]:
    """Follow the biases of an op's operands, and return the parts that it takes them from."""
    name = name_of(op.step)
    if op.step.written and [ref.key for ref in op.step.written] != [ref.key for ref in op.step.outputs]:
        return set()
    if name in _PERIODIC:
        return _turn(op)
    if name == "neg":
        return _add_up(op, {op.inputs[0].key: -1.0})
    if name in ("add", "sub"):
        sides = {"self": 1.0, "other": float(op.arg("alpha", 1)) * (1 if name == "add" else -1)}
        given = {ref.key: factor for side, factor in sides.items() if isinstance(ref := op.arg(side), TensorRef)}
        return _add_up(op, given) if len(given) == len(op.inputs) else set()  # else one value is added to itself
    if name in ("mul", "div"):
        return _multiply(op, divides=name == "div")
    if name in _TERMS or name in _CHANNEL_TERMS:
        return _add_term(op, op.arg(_TERMS.get(name, "bias")), 1 if name in _CHANNEL_TERMS else None)
    return _move(op) if name in _MOVES else set()


def _turn(op: Operation) -> set[Key]:
    """Take a sine: half a period of each bias changes its sign."""
    trails, taken = op.findings.trails, set()
    for output, part in op.results():
        turned = key_of(output, part)
        for carrier in op.beside(part, len(output.shape)):
            key = key_of(carrier.ref, carrier.part)
            added = trails.values.get(key)
            if not added:
                trails.without.add(part.space)
                continue
            unknowns = {trails.unknowns.setdefault(bias, -1 - len(trails.unknowns)) for bias in added}
            trails.forms[turned] = tuple((unknown, 1) for unknown in sorted(unknowns))
            taken.add(key)
            trails.values[turned] = ()
    return taken


def _add_up(
    op: Operation, sides: Mapping[tuple[int, ...], float], factor: str | None = None, space: int | None = None
) -> set[Key]:
    """Add up operands, each times a number, and times a factor that a network keeps, if it is that of one space."""
    trails, taken = op.findings.trails, set()
    for output, part in op.results():
        if space is not None and part.space != space:
            continue
        sums: dict[tuple[int, tuple[str, ...]], Added] = {}
        for carrier in op.beside(part, len(output.shape), [ref for ref in op.inputs if ref.key in sides]):
            key = key_of(carrier.ref, carrier.part)
            for bias in trails.values.get(key, ()):
                factors = tuple(sorted((*bias.factors, *([] if factor is None else [factor]))))
                known = sums.get((bias.segment, factors), Added(bias.segment, 0.0, factors))
                more = sides[carrier.ref.key] * bias.frequency
                sums[bias.segment, factors] = replace(known, frequency=known.frequency + more)
                taken.add(key)
        trails.values[key_of(output, part)] = tuple(bias for bias in sums.values() if bias.frequency)
    return taken


def _multiply(op: Operation, *, divides: bool) -> set[Key]:
    """Multiply by a number of the code, or by one or a vector that a network keeps."""
    value, other = op.arg("self"), op.arg("other")
    if isinstance(value, TensorRef) and isinstance(other, int | float) and other and math.isfinite(other):
        return _add_up(op, {value.key: 1 / other if divides else float(other)})
    if divides or not isinstance(value, TensorRef) or not isinstance(other, TensorRef):
        return set()
    for ref, factor in ((value, other), (other, value)):
        if ref.key == factor.key or _is_parameter(op, ref):
            continue
        if (name := op.findings.trails.scalars.get(factor.key)) is not None:
            return _add_up(op, {ref.key: 1.0}, name)
        if _is_parameter(op, factor):
            (vector,) = op.carriers(factor)
            assert vector.facet.segment is not None
            name = op.findings.spaces.segments[vector.facet.segment].axis.tensor
            return _add_up(op, {ref.key: 1.0}, name, vector.part.space)
    return set()


def _is_parameter(op: Operation, ref: TensorRef) -> bool:
    """Return whether a tensor is a parameter with one number for each unit of one space, as it is."""
    facets: list[Facet] = [carrier.facet for carrier in op.carriers(ref)]
    return len(facets) == 1 and op.findings.is_vector(facets[0]) and not facets[0].offset


def _add_term(op: Operation, term: TensorRef | None, along: int | None) -> set[Key]:
    """Add the term of an op at all positions; ``along`` is the dimension of its result that it lies along."""
    trails, beta, taken = op.findings.trails, float(op.arg("beta", 1)), set[Key]()
    for output, part in op.results() if term is not None else ():
        assert term is not None
        if output is not op.output:
            continue
        if along is None:
            carriers = op.beside(part, len(output.shape), [term])
        else:
            at = op.at(term, part.space, {0: part.first.get(along, 0)}) if along in part.dims else None
            carriers = [] if at is None else [at]
        for carrier in carriers:
            key = key_of(carrier.ref, carrier.part)
            if added := trails.values.get(key):
                scaled = (replace(bias, frequency=beta * bias.frequency) for bias in added)
                trails.values[key_of(output, part)] = tuple(bias for bias in scaled if bias.frequency)
                taken.add(key)
    return taken


def _move(op: Operation) -> set[Key]:
    """Lay elements elsewhere. Where they are laid beside others this is along units, or they have no trail left."""
    trails, taken = op.findings.trails, set()
    is_cat = op.step.op.endswith("::cat")
    for output, part in op.results():
        carriers = matching(op, part, op.inputs, same_source=is_cat)
        is_beside = is_cat and op.arg("dim", 0) % len(output.shape) not in part.dims
        if len(carriers) == 1 and not is_beside:
            key = key_of(carriers[0].ref, carriers[0].part)
            if added := trails.values.get(key):
                trails.values[key_of(output, part)] = added
                taken.add(key)
    return taken
