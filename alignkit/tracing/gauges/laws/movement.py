"""Ops that move elements and compute nothing: every unit keeps its factor, wherever it goes."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from alignkit.tracing.gauges.facets import Carrier, Facet
from alignkit.tracing.gauges.laws.pointwise import join
from alignkit.tracing.gauges.laws.table import LawSet
from alignkit.tracing.gauges.operation import Operation
from alignkit.tracing.gauges.parts import Part
from alignkit.tracing.gauges.turns import Turn
from alignkit.tracing.recording.recorder import TensorRef

LAWS = LawSet()
_JOINS = {"cat", "concat", "concatenate", "stack"}
_PADS = {"tril", "triu", "im2col"}


@LAWS.law("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "t", "t_copy", "numpy_T",
          "transpose", "transpose_copy", "swapaxes", "mT", "permute", "permute_copy", "unsqueeze", "squeeze", "alias",
          "detach", "clone", "contiguous", "_to_copy", "to", "type_as", "as_strided", "copy")  # fmt: skip
def rename(op: Operation) -> None:
    """Rename, join or split dimensions, or change the dtype: the value stays what it is."""
    refs = op.inputs[1:] if op.step.op.rstrip("_").endswith("::copy") else op.inputs[:1]
    for output, result in op.results():
        carriers = matching(op, result, refs)
        if carriers:
            op.set(output, result, op.passed_on(carriers[0]) if len(carriers) == 1 else join(op, result, carriers))


@LAWS.law("slice", "slice_copy", "narrow", "select", "unbind", "split", "split_with_sizes", "chunk", "unsafe_split",
          "unsafe_chunk", "tensor_split", "unsafe_split_with_sizes", "split_copy", "index_select", "index")  # fmt: skip
def pick(op: Operation) -> None:
    """Pick positions. A matrix of a stack reads as the whole stack does: what goes into one goes into all."""
    _require_of_lost(op)
    for output, result in op.results():
        for carrier in matching(op, result, op.inputs[:1])[:1]:
            op.set(output, result, op.passed_on(carrier))


@LAWS.law("embedding", "expand", "expand_as", "broadcast_to", "expand_copy", "repeat", "tile", "repeat_interleave",
          "flip", "roll", "gather", "cat", "concat", "concatenate", "stack", "unfold", "im2col", "pixel_shuffle",
          "pixel_unshuffle", "tril", "triu", "take", "masked_select", "diagonal")  # fmt: skip
def lay_together(op: Operation) -> None:
    """Repeat positions or lay them together: a parameter is written with, and is no reader any more."""
    name = op.step.op.split("::")[1]
    along = op.arg("dim", 0) if name in _JOINS - {"stack"} else None
    _require_of_lost(op)
    if along is not None:
        _note_zeros(op, along % max(1, len(op.output.shape)))
    for output, result in op.results():
        is_along = along is not None and along % len(output.shape) in result.dims
        carriers = matching(op, result, op.inputs, same_source=is_along and result.source >= 0)
        for carrier in carriers:
            op.use(carrier)
        if carriers:
            facet = join(op, result, carriers) if len(carriers) > 1 else op.passed_on(carriers[0])
            # What is laid beside it without units, and what it is padded with, has nothing of its norm's shift.
            carry = {carrier.ref.key for carrier in carriers}
            is_whole = name not in _PADS
            if name in _JOINS:
                is_whole = all(ref.key in carry for ref in op.inputs if 0 not in ref.shape)
            op.set(output, result, replace(facet, segment=None, level=facet.level and is_whole))


@LAWS.law("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
          "new_empty", "new_full", "new_empty_strided")  # fmt: skip
def make_alike(op: Operation) -> None:
    """Make a tensor of the same shape: nothing of the values goes there."""
    for output, result in op.results():
        op.set(output, result, Facet())


def _require_of_lost(op: Operation) -> None:
    """Require that units which the result does not show, such as experts that were picked, have no factor.

    Where no other tensor chooses among units, the result shows all of which it holds elements: the queries of a fused
    projection hold none of its values.
    """
    if all(op.labels(ref).choice is None for ref in op.inputs):
        return
    shown = {part.space for _, part in op.results()}
    for ref in op.inputs:
        for part in op.parts(ref):
            if part.space not in shown and (facet := op.findings.known(ref, part)) is not None:
                op.require(part.space, facet)


def _note_zeros(op: Operation, dim: int) -> None:
    """Remember where values are laid that are zero: the state from which a loop starts, beside an input."""
    ends = list(accumulate(ref.shape[dim] if dim < len(ref.shape) else 0 for ref in op.inputs))
    places = zip([0, *ends], ends, op.inputs, strict=False)
    zeros = tuple(range(start, end) for start, end, ref in places if ref.key in op.findings.zero_values)
    if zeros:
        op.findings.zero_ranges[op.output.key] = dim, zeros


@LAWS.law("rotary")
def turn(op: Operation) -> None:
    """Turn planes by angles that depend on the position: phases of planes."""
    assert isinstance(op.step, Turn)
    for output, result in op.results():
        for carrier in matching(op, result, op.inputs):
            if len(output.shape) - 1 in result.dims:
                op.keep_only(result.space, (op.step.kind,), "rotary positions")
            op.findings.block(carrier.facet, "not_contracted", op.where)
            op.set(output, result, Facet(carrier.facet.degree, carrier.facet.form))


def matching(op: Operation, result: Part, refs: list[TensorRef], *, same_source: bool = False) -> list[Carrier]:
    """Return the parts of operands whose elements a part of the result holds, or of those with its source only."""
    carriers = []
    for ref in refs:
        parts = [part for part in op.parts(ref) if part.space == result.space]
        same = [part for part in parts if part.source == result.source]
        if len(same) > 1:
            same = [part for part in same if part.unit == result.unit] or same
        if not same and not same_source and len(parts) == 1:
            same = parts
        carriers += [op.carrier(ref, part) for part in same[:1]]
    return carriers
