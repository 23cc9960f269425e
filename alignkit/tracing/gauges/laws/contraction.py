"""Matrix products, convolutions and attention: sums over a space of a value times what reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from alignkit.tracing.gauges.degrees import combine
from alignkit.tracing.gauges.facets import MEAN_KEEPING, Carrier, Facet, SpaceReading
from alignkit.tracing.gauges.laws.pointwise import apply_function
from alignkit.tracing.gauges.laws.table import LawSet
from alignkit.tracing.gauges.operation import Operation
from alignkit.tracing.gauges.parts import Part
from alignkit.tracing.recording.recorder import TensorRef

LAWS = LawSet()


@dataclass(frozen=True)
class Factor:
    """One factor of a product: where its dimensions go in the result, and which dimension is summed over."""

    ref: TensorRef
    summed: int
    kept: Mapping[int, int]


@LAWS.law("mm", "bmm", "matmul", "addmm", "baddbmm", "mv", "dot", "addmv", "linear")
def matrix_product(op: Operation) -> None:
    """Multiply [..., m, k] by [..., k, n], and add a term: any matrix, where one side writes and the other reads."""
    name = op.step.op.split("::")[1].rstrip("_")
    if name == "linear":
        left, right, term = op.arg("input"), op.arg("weight"), op.arg("bias")
    elif name in ("addmm", "baddbmm", "addmv"):
        term, left, right = op.inputs[:3]
    else:
        (left, right), term = op.inputs[:2], None
    rank, m, n = len(op.output.shape), len(left.shape), len(right.shape)
    matrix = min(n, 2)  # a vector on the right leaves no dimension
    kept_left = {d: d + rank - m + (1 if matrix == 1 else 0) for d in range(m - 1)}
    kept_right = {d: d + rank - n for d in range(n - 2)}
    if name == "linear":
        summed, kept_right = n - 1, {d: rank - n + 1 + d for d in range(n - 1)}
    else:
        summed = n - matrix
        if matrix == 2:
            kept_right[n - 1] = rank - 1
            kept_left = {d: d + rank - max(m, 2) if m > 1 else d for d in range(m - 1)}
    is_plain = op.arg("beta", 1) == op.arg("alpha", 1) == 1
    contract(op, Factor(left, m - 1, kept_left), Factor(right, summed, kept_right), term, levels=is_plain)


@LAWS.law("_grouped_mm")
def grouped_product(op: Operation) -> None:
    """Multiply each token [in] by the matrix [in, out] of its expert: any matrix, the same for all experts."""
    x, stack = op.arg("self"), op.arg("mat2")
    if len(x.shape) == 2 and len(stack.shape) == 3:
        contract(op, Factor(x, 1, {0: 0}), Factor(stack, 1, {2: 1}), None)
    else:
        apply_function(op)


@LAWS.law("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable", "cudnn_convolution")
def convolution(op: Operation) -> None:
    """Multiply channels by a kernel: any matrix. Where each channel has a kernel of its own, factors of any sign."""
    signal, kernel, bias = op.arg("input"), op.arg("weight"), op.arg("bias")
    groups, axis = op.arg("groups", 1), 0 if op.arg("transposed", False) else 1
    size = kernel.shape[2:]
    if groups == 1:
        # A border of zeros, and the steps of a transposed convolution, read a constant at some positions only.
        levels = not any(op.arg("padding")) and (axis == 1 or all(n == 1 for n in (*size, *op.arg("stride"))))
        contract(op, Factor(signal, 1, {0: 0}), Factor(kernel, axis, {1 - axis: 1}), bias, 1, levels=levels)
    elif groups == signal.shape[1] == op.output.shape[1]:
        _scale_channels(op, signal, kernel, bias)
    else:
        apply_function(op)


def _scale_channels(op: Operation, signal: TensorRef, kernel: TensorRef, bias: TensorRef | None) -> None:
    """Convolve each channel with a kernel of its own."""
    for output, result in op.results():
        at = {0: result.first.get(1, 0)}
        operands = [*op.beside(result, len(output.shape), [signal]), op.at(kernel, result.space, at)]
        carriers = [carrier for carrier in operands if carrier is not None]
        for carrier in carriers:
            op.use(carrier)
            op.findings.block(carrier.facet, "not_contracted", op.where)
        op.keep_only(result.space, (), "a kernel for each channel")
        degree = combine((1, carrier.facet.degree) for carrier in carriers)
        if bias is not None and (shift := op.at(bias, result.space, at)):
            op.use(shift)
            op.findings.require(result.space, combine([(1, degree), (-1, shift.facet.degree)]))
        op.set(output, result, Facet(degree))


def contract(
    op: Operation,
    left: Factor,
    right: Factor,
    term: TensorRef | None,
    term_dim: int | None = None,
    *,
    levels: bool = True,
) -> None:
    """Sum over one dimension of each factor, and add a term.

    ``levels`` says whether what is the same at all positions of a value comes out so, as a part of the term.
    """
    pairs: dict[tuple[Part, Part], tuple[Carrier, Carrier]] = {}
    for mine, other in ((left, right), (right, left)):
        for part in op.parts(mine.ref):
            if mine.summed not in part.dims or any(_is_zero(op, part, mine, side) for side in (mine, other)):
                continue  # zeros are the state from which a loop starts
            carrier = op.carrier(mine.ref, part)
            partner = _partner(op, part, mine, other)
            if partner is None:
                op.use(carrier)
                op.findings.block(carrier.facet, "not_contracted", op.where or op.step.op)
                op.require(part.space, carrier.facet)
                op.keep_only(part.space, MEAN_KEEPING if carrier.facet.form == "vector" else (), "sum over the space")
            else:
                pair = (carrier, partner) if mine is left else (partner, carrier)
                pairs[pair[0].part, pair[1].part] = pair
    for pair in pairs.values():
        _meet(op, *pair, term if levels else None)
    _note_scores(op, left, right)
    for output, result in op.results():
        kept = [_kept(op, result, *sides) for sides in ((left, right), (right, left))]
        facets = [facet for facet in kept if facet is not None]
        if not facets:
            continue
        facet = facets[0]
        if len(facets) > 1:
            op.keep_only(result.space, (), "elementwise product")
            facet = Facet(combine((1, facet.degree) for facet in facets))
        if term is not None:
            facet = _add_term(op, output, result, facet, term, term_dim)
        op.set(output, result, facet)


def _add_term(
    op: Operation, output: TensorRef, result: Part, facet: Facet, term: TensorRef, term_dim: int | None
) -> Facet:
    """Return the facet of a product with a term, which lies along one dimension or broadcasts."""
    at = None if term_dim is None else op.at(term, result.space, {0: result.first.get(term_dim, 0)})
    added = [at] if at else op.beside(result, len(output.shape), [term]) if term_dim is None else []
    writers = [facet.writers]
    for carrier in added:
        op.use(carrier)
        op.findings.require(result.space, combine([(1, facet.degree), (-1, carrier.facet.degree)]))
        writers.append(carrier.facet.writers)
    return replace(facet, writers=frozenset().union(*writers) if all(writers) else frozenset())


def _is_zero(op: Operation, part: Part, mine: Factor, side: Factor) -> bool:
    """Tell whether a factor is zero at all positions of a part of ``mine`` in the sum."""
    first = part.first.get(mine.summed, 0)
    last = first + op.findings.spaces.size_of(part.space) - 1
    dim, ranges = op.findings.zero_ranges.get(side.ref.key, (-1, ()))
    is_beside = dim == side.summed and any(first in zeros and last in zeros for zeros in ranges)
    return is_beside or side.ref.key in op.findings.zero_values


def _partner(op: Operation, part: Part, mine: Factor, other: Factor) -> Carrier | None:
    """Return the part of the other factor that a part meets in the sum."""
    back = {to: d for d, to in other.kept.items()}
    coordinates = {other.summed: part.first.get(mine.summed, 0)}
    for d, at in part.first.items():
        if d in mine.kept and mine.kept[d] in back:
            n, m = mine.ref.shape[d], other.ref.shape[back[mine.kept[d]]]
            coordinates[back[mine.kept[d]]] = at * m // n if n else 0  # grouped queries share a head of keys
    same = [p for p in op.parts(other.ref) if p.space == part.space and other.summed in p.dims]
    return op.at(other.ref, part.space, coordinates) if same else None


def _meet(op: Operation, left: Carrier, right: Carrier, term: TensorRef | None) -> None:
    """Sum over a space of one value times another: one of them writes it, the other reads it, beside a term."""
    findings, space = op.findings, left.part.space
    findings.require(space, combine([(1, left.facet.degree), (1, right.facet.degree)]))
    for value, reader in ((left, right), (right, left)):
        if value.facet.form != "vector":
            op.keep_only(space, ())
        if reader.facet.segment is not None and value.facet.segment is None:
            bias = findings.name_of(term) if term is not None and value.facet.level else None
            facet = op.passed_on(value)
            findings.facts[space].readings.append(SpaceReading(reader.facet.segment, facet, bias, op.where))
            return
    for carrier in (left, right):
        op.use(carrier)
        findings.block(carrier.facet, "not_contracted", op.where or op.step.op)


def _kept(op: Operation, result: Part, mine: Factor, other: Factor) -> Facet | None:
    """Return the facet of a part of the result that comes from a part of this factor.

    Where each unit that is summed over has outputs of its own, as in a stack of matrices, those of the result are new
    ones, which come from the one part that stands there.
    """
    there = [
        part
        for part in op.parts(mine.ref)
        if part.space == result.space and set(result.dims) <= {mine.kept.get(d) for d in part.dims}
    ]
    same = [part for part in there if part.source == result.source]
    if not same and (result.source >= 0 or len(there) != 1):
        return None
    carrier = op.carrier(mine.ref, (same or there)[0])
    facet = carrier.facet
    if facet.norm is not None:
        op.use(carrier)
        op.findings.block(facet, "not_contracted", op.where or op.step.op)
    writers = facet.writers
    mixed: frozenset[int] = frozenset()
    if facet.segment is None:  # a value, averaged over positions
        is_average = other.ref.key in op.findings.weights_of_one
        passed = op.passed_on(carrier)
        mixed = passed.writers | passed.mixed if is_average else frozenset()
        writers = frozenset()
    else:
        op.use(carrier)
    return Facet(facet.degree, facet.form, writers=writers, mixed=mixed, level=facet.level)


def _note_scores(op: Operation, left: Factor, right: Factor) -> None:
    """Remember which biases of keys are in a product of queries and keys, for the softmax over its last dimension."""
    for part in op.parts(right.ref):
        if right.summed in part.dims:
            carrier = op.carrier(right.ref, part)
            if carrier.facet.segment is None and (writers := op.writers(carrier)):
                op.findings.scores[op.output.key] = writers


@LAWS.law("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math",
          "scaled_dot_product_attention", "_scaled_dot_product_flash_attention",
          "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
          "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def attention(op: Operation) -> None:
    """Compute softmax(q k^T + mask) v: any matrix between queries and keys, and any between values and their reader."""
    query, key, value = (op.arg(name) for name in ("query", "key", "value"))
    last = len(query.shape) - 1
    batch = {d: d for d in range(last - 1)}
    factors = Factor(query, last, batch), Factor(key, last, batch)
    for part in op.parts(query):
        if last in part.dims and (partner := _partner(op, part, *factors)):
            _meet(op, op.carrier(query, part), partner, None)
    for part in op.parts(key):
        if last in part.dims:
            op.findings.zeros |= op.writers(op.carrier(key, part))
    for output, result in op.results():
        for part in op.parts(value) if output is op.output else ():
            if part.space == result.space and part.source == result.source and set(result.dims) <= set(part.dims):
                carrier = op.carrier(value, part)
                op.findings.block(carrier.facet, "not_contracted", op.where)
                passed = op.passed_on(carrier)
                mixed = passed.writers | passed.mixed
                facet = Facet(carrier.facet.degree, carrier.facet.form, mixed=mixed, level=carrier.facet.level)
                op.set(output, result, facet)


@LAWS.law("_softmax", "softmax", "_safe_softmax")
def softmax(op: Operation) -> None:
    """Normalise along a dimension; what is the same along it drops out."""
    apply_function(op)
    rank = len(op.output.shape)
    if rank and op.arg("dim") % rank == rank - 1:
        op.findings.weights_of_one.add(op.output.key)
        op.findings.zeros |= op.findings.scores.get(op.inputs[0].key, frozenset())
