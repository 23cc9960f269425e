"""Reductions and norms."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

from alignkit.tracing.gauges.degrees import combine
from alignkit.tracing.gauges.facets import MEAN_KEEPING, Carrier, Facet, Norm
from alignkit.tracing.gauges.laws.movement import matching
from alignkit.tracing.gauges.laws.pointwise import apply_function, join
from alignkit.tracing.gauges.laws.table import LawSet
from alignkit.tracing.gauges.operation import Operation
from alignkit.tracing.gauges.parts import Part
from alignkit.tracing.recording.recorder import TensorRef

LAWS = LawSet()


def _dims(op: Operation) -> set[int]:
    """Return the dimensions over which an op reduces."""
    rank, dims = len(op.inputs[0].shape), op.arg("dim")
    listed = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return {d % rank for d in listed} if rank else set()


@LAWS.law("mean", "sum")
def add_up(op: Operation) -> None:
    """Add up: over a space this keeps the sum of a vector, and the length where squares are added."""
    ref, gone = op.inputs[0], _dims(op)
    for carrier in op.carriers(ref):
        op.use(carrier)
        if not gone.isdisjoint(carrier.part.dims):
            _sum_units(op, carrier)
            if prod(ref.shape[d] for d in gone) == op.findings.spaces.size_of(carrier.part.space):
                op.findings.means[op.output.key] = ref.key
    for output, result in op.results():
        for carrier in matching(op, result, [ref]):
            if gone.isdisjoint(carrier.part.dims):
                level = carrier.facet.level and op.step.op.endswith("mean")
                kept = replace(carrier.facet, segment=None, writers=frozenset(), mixed=frozenset(), level=level)
                op.set(output, result, kept)


def _sum_units(op: Operation, carrier: Carrier) -> None:
    """Add up the units of a space."""
    space, facet = carrier.part.space, carrier.facet
    op.findings.block(facet, "not_contracted", op.where or op.step.op)
    op.require(space, facet)
    if facet.form == "square":
        op.findings.facts[space].unit_length = True
    else:
        op.keep_only(space, MEAN_KEEPING if facet.form == "vector" else (), "sum over the space")


@LAWS.law("linalg_vector_norm", "norm")
def length(op: Operation) -> None:
    """Measure lengths: of vectors of a space, rotations keep the Euclidean one."""
    ref, gone = op.inputs[0], _dims(op)
    order = op.arg("ord", op.arg("p", 2))
    euclidean = order in (None, 2)
    for carrier in op.carriers(ref):
        op.use(carrier)
        op.findings.block(carrier.facet, "not_contracted", op.where or op.step.op)
        if gone.isdisjoint(carrier.part.dims) or not euclidean or carrier.facet.form != "vector":
            op.keep_only(carrier.part.space, ())
        op.require(carrier.part.space, carrier.facet, signs=not euclidean)
        op.findings.facts[carrier.part.space].unit_length = True
    for output, result in op.results():
        op.set(output, result, Facet())


@LAWS.law("cumsum")
def add_up_so_far(op: Operation) -> None:
    """Add up to each position: along another dimension than the units', any matrix."""
    ref = op.inputs[0]
    rank = len(ref.shape)
    _keep_linear(op, [ref], op.arg("dim") % rank if rank else 0)


@LAWS.law("index_add")
def add_rows(op: Operation) -> None:
    """Add rows to rows that are chosen, along another dimension than the units': any matrix."""
    target, source = op.arg("self"), op.arg("source")
    rank = len(target.shape)
    rows = [ref for ref in (target, source) if ref.key not in op.findings.zero_values]
    _keep_linear(op, rows, op.arg("dim") % rank if rank else 0)


@LAWS.law("_embedding_bag", "_embedding_bag_forward_only")
def add_up_bags(op: Operation) -> None:
    """Add up rows of a table, or average them: any matrix. Their maximum takes permutations only."""
    if op.arg("mode", 0) == 2:
        apply_function(op)
    else:
        _keep_linear(op, [op.arg("weight")], 0)


def _keep_linear(op: Operation, refs: list[TensorRef], along: int) -> None:
    """Combine rows of values linearly along a dimension in which no unit stands; else permutations are left."""
    parts = [(ref, part) for ref in refs for part in op.parts(ref)]
    everywhere = all(op.parts(ref) for ref in refs)
    if not everywhere or any(along in part.dims for _, part in parts):
        apply_function(op)
        return
    for output, result in op.results():
        carriers = [c for ref in refs for c in op.beside(result, len(output.shape), [ref])]
        if carriers:
            for carrier in carriers:
                op.use(carrier)
            facet = join(op, result, carriers) if len(carriers) > 1 else carriers[0].facet
            op.set(output, result, replace(facet, segment=None, writers=frozenset(), mixed=frozenset(), level=False))


LAWS.law("amax", "amin")(partial(apply_function, symmetry="none"))


@LAWS.law("native_layer_norm")
def layer_norm(op: Operation) -> None:
    """Subtract the mean, and divide by the length, of a space: a map of it that keeps the vector of ones commutes."""
    _normalise(op, len(op.arg("normalized_shape")), "weight", "bias", centred=True)


@LAWS.law("rms_norm", "_fused_rms_norm")
def rms_norm(op: Operation) -> None:
    """Divide by the length: all rotations commute."""
    _normalise(op, len(op.arg("normalized_shape")), "weight", None, centred=False)


def _normalise(op: Operation, count: int, gain: str, shift: str | None, *, centred: bool) -> None:
    signal: TensorRef = op.arg("input")
    inner = set(range(len(signal.shape) - count, len(signal.shape)))
    for carrier in op.carriers(signal):
        op.use(carrier)
        space, facet = carrier.part.space, carrier.facet
        op.findings.block(facet, "post_norm", op.where or op.step.op)
        if inner.isdisjoint(carrier.part.dims) or facet.form != "vector":
            op.keep_only(space, ())
        elif centred:
            op.keep_only(space, MEAN_KEEPING, "mean is subtracted")
        op.require(space, facet, signs=centred or inner.isdisjoint(carrier.part.dims))
        op.findings.facts[space].unit_length = True
    parameters = [op.arg(name) for name in (gain, shift) if name]
    for output, result in list(op.results()):
        if output is not op.output:
            op.set(output, result, Facet())
            continue
        carriers = op.beside(result, len(output.shape), [signal])
        if not carriers:
            continue
        tensors = [ref for ref in parameters if isinstance(ref, TensorRef)]
        vectors = op.beside(result, len(output.shape), tensors)
        is_one_space = prod(signal.shape[d] for d in inner) == op.findings.spaces.size_of(result.space)
        _gain_and_shift(op, output, result, carriers[0], vectors, centred and is_one_space)


def _gain_and_shift(
    op: Operation, output: TensorRef, result: Part, value: Carrier, vectors: list[Carrier], centred: bool
) -> None:
    """Set the facet behind a norm with its parameters, of which each stands in the space."""
    findings, space = op.findings, result.space
    names = []
    for vector in vectors:
        if not findings.is_vector(vector.facet):
            op.use(vector)
            op.keep_only(space, (), "gain is computed")
        else:
            segment = vector.facet.segment
            assert segment is not None
            names.append(findings.spaces.segments[segment].axis.tensor)
    degree = value.facet.degree
    norm = None
    if names and len(names) == len(vectors):
        norm = Norm(len(findings.norms), names[0], shift=names[1] if len(names) > 1 else None, where=op.where)
        findings.norms.append((space, norm))
        degree = combine([(1, degree), (1, vectors[0].facet.degree)])
        for vector in vectors[1:]:
            findings.require(space, combine([(1, degree), (-1, vector.facet.degree)]))
    form = value.facet.form
    op.set(output, result, Facet(degree, form, norm=norm, centred=centred))


@LAWS.law("native_group_norm")
def group_norm(op: Operation) -> None:
    """Normalise over groups of channels: permutations only. Gain and shift stay."""
    _normalise_channels(op, [])


@LAWS.law("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
          "_batch_norm_no_update")  # fmt: skip
def batch_norm(op: Operation) -> None:
    """Normalise each channel by its running statistics. Gain and shift scale what comes out."""
    _normalise_channels(op, ["running_mean"])


def _normalise_channels(op: Operation, means: list[str]) -> None:
    signal: TensorRef = op.arg("input")
    rank = len(signal.shape)

    def vector(name: str, part: Part) -> Carrier | None:
        """Return the part of a vector of all channels that belongs to a part of the signal."""
        ref = op.arg(name)
        is_here = isinstance(ref, TensorRef) and part.dims == (1,)
        return op.at(ref, part.space, {0: part.first[1]}) if is_here else None

    for output, result in op.results():
        carriers = op.beside(result, rank, [signal])
        if not carriers or output is not op.output:
            op.set(output, result, Facet())
            continue
        facet, space = carriers[0].facet, result.space
        op.use(carriers[0])
        op.keep_only(space, ())
        op.findings.block(facet, "not_contracted", op.where)
        op.require(space, facet, signs=not means)
        for name in means:
            if mean := vector(name, result):
                op.findings.require(space, combine([(1, facet.degree), (-1, mean.facet.degree)]))
        if variance := vector("running_var", result):
            op.require(space, variance.facet)
        degree = facet.degree
        if gain := vector("weight", result):
            op.use(gain)
            if gain.facet.segment is not None:
                op.findings.facts[space].gains.add(gain.facet.segment)
            degree = combine([(1, degree), (1, gain.facet.degree)])
        if shift := vector("bias", result):
            op.use(shift)
            op.findings.require(space, combine([(1, degree), (-1, shift.facet.degree)]))
        op.set(output, result, Facet(degree))
    for part in op.parts(signal):
        if part.dims != (1,):
            op.keep_only(part.space, ())
            op.require(part.space, op.carrier(signal, part).facet)
