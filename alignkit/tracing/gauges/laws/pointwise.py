"""Elementwise ops: sums and products of values, and functions of each element."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal, TypeAlias

from alignkit.tracing.gauges.degrees import ZERO, Form, combine
from alignkit.tracing.gauges.facets import MEAN_KEEPING, Carrier, Facet, Norm, key_of, same_degree
from alignkit.tracing.gauges.laws.table import LawSet
from alignkit.tracing.gauges.operation import Operation
from alignkit.tracing.gauges.parts import Part
from alignkit.tracing.recording.recorder import TensorRef

LAWS = LawSet()
Symmetry: TypeAlias = Literal["none", "odd", "even", "positive"]


def apply_function(op: Operation, symmetry: Symmetry = "none") -> None:
    """Compute something of each element; several operands count as one.

    Units may be permuted. An odd function lets signs through, a positively homogeneous one positive factors, an even
    one takes signs away.
    """
    for ref in op.inputs:
        for carrier in op.carriers(ref):
            op.use(carrier)
            op.findings.block(carrier.facet, "not_contracted", op.where or op.step.op)
            op.keep_only(carrier.part.space, ())
            op.require(
                carrier.part.space, carrier.facet, scales=symmetry != "positive", signs=symmetry in ("none", "positive")
            )
    for output, result in op.results():
        carriers = op.beside(result, len(output.shape))
        degree = ZERO
        if carriers and symmetry in ("odd", "positive"):
            degree = same_degree(op.findings, result.space, carriers)
        turned = op.findings.trails.forms.get(key_of(output, result), ZERO)
        op.findings.require_of_scales(result.space, turned)
        op.set(output, result, Facet(combine([(1, degree), (1, turned)])))


LAWS.law("tanh", "sin", "erf", "asin", "atan", "sinh", "asinh", "softsign", "sign", "erfinv", "trunc",
         "round")(partial(apply_function, symmetry="odd"))  # fmt: skip
LAWS.law("cos", "abs", "cosh")(partial(apply_function, symmetry="even"))
LAWS.law("relu", "leaky_relu", "max_pool2d_with_indices", "max_pool2d", "max_pool3d_with_indices",
         "adaptive_max_pool2d", "maximum", "minimum")(partial(apply_function, symmetry="positive"))  # fmt: skip


@LAWS.law("hardtanh")
def clamp_symmetrically(op: Operation) -> None:
    """Clamp; odd where both ends are as far from 0."""
    is_odd = op.arg("min_val", -1) == -op.arg("max_val", 1)
    apply_function(op, "odd" if is_odd else "none")


@LAWS.law("prelu", "_prelu_kernel")
def prelu(op: Operation) -> None:
    """Multiply negative values by a number, or by one for each unit, which keeps its degree of 0."""
    signal, slopes = op.inputs
    for carrier in op.carriers(slopes):
        op.use(carrier)
        op.require(carrier.part.space, carrier.facet)
    for carrier in op.carriers(signal):
        op.keep_only(carrier.part.space, ())
        op.require(carrier.part.space, carrier.facet, scales=False)
    for output, result in op.results():
        for carrier in op.beside(result, len(output.shape), [signal])[:1]:
            op.set(output, result, Facet(carrier.facet.degree))


@LAWS.law("pow", "square")
def power(op: Operation) -> None:
    """Raise each element to a power. Squares are remembered: their sums over a space do not see rotations."""
    exponent = 2 if op.step.op.endswith("square") else op.arg("exponent")
    if not isinstance(exponent, int | float) or int(exponent) != exponent or exponent < 1:
        apply_function(op)
        return
    for output, result in op.results():
        for carrier in op.beside(result, len(output.shape), op.inputs[:1])[:1]:
            op.use(carrier)
            _multiply_out(op, output, result, [carrier] * int(exponent), [1] * int(exponent))


@LAWS.law("mul", "div", "multiply", "divide", "true_divide")
def product(op: Operation) -> None:
    """Multiply or divide: any matrix beside one factor for all units, a gain that readers take, factors of units."""
    divides = "div" in op.step.op
    refs = [ref for ref in (op.arg("self"), op.arg("other")) if isinstance(ref, TensorRef)]
    for output, result in op.results():
        carriers = op.beside(result, len(output.shape), refs)
        signs = [-1 if divides and carrier.ref is refs[-1] and len(refs) > 1 else 1 for carrier in carriers]
        if len(carriers) == 1 and signs == [1]:
            _scale(op, output, result, carriers[0], [ref for ref in refs if ref is not carriers[0].ref])
        elif carriers:
            _multiply_out(op, output, result, carriers, signs)


def _scale(op: Operation, output: TensorRef, result: Part, carrier: Carrier, others: list[TensorRef]) -> None:
    """Multiply by what has no units of the space: one factor for all of them."""
    op.use(carrier)
    is_number = all(not ref.shape or max(ref.shape) == 1 for ref in others)
    kept = op.passed_on(carrier) if is_number else replace(carrier.facet, writers=frozenset(), mixed=frozenset())
    op.set(output, result, replace(kept, segment=None, level=False))


def _multiply_out(op: Operation, output: TensorRef, result: Part, carriers: list[Carrier], signs: list[int]) -> None:
    """Multiply values with units of one space elementwise."""
    facets, space = [carrier.facet for carrier in carriers], result.space
    degree = combine(zip(signs, (facet.degree for facet in facets), strict=True))
    gains = [carrier for carrier in carriers if op.findings.is_vector(carrier.facet)]
    others = [carrier for carrier in carriers if carrier not in gains]
    if len(gains) == len(others) == 1 and min(signs) > 0 and others[0].facet.form == "vector":
        _apply_gain(op, output, result, gains[0], others[0], degree)
        return
    for carrier in carriers:
        op.use(carrier)
        op.findings.block(carrier.facet, "modulated", op.where or op.step.op)
    is_square = len(carriers) == 2 and all(facet == facets[0] for facet in facets) and facets[0].form == "vector"
    if is_square and carriers[0].ref.key == carriers[-1].ref.key:
        op.set(output, result, Facet(degree, "square"))
        return
    op.keep_only(space, (), "elementwise product")
    op.set(output, result, Facet(degree))


def _apply_gain(op: Operation, output: TensorRef, result: Part, gain: Carrier, value: Carrier, degree: Form) -> None:
    """Multiply by one number for each unit: a scale that its writers take, or a gain that all readers have to take."""
    findings = op.findings
    segment = gain.facet.segment
    assert segment is not None
    name = findings.spaces.segments[segment].axis.tensor
    writers = op.writers(value)
    fits = all(findings.place_for(writer, name) is not None for writer in writers)
    if writers and fits and gain.facet.offset == 0 and value.facet.norm is None:
        findings.output_scales.append((result.space, name, writers))
        op.set(output, result, replace(value.facet, degree=degree, segment=None))
        return
    findings.block(value.facet, "not_contracted", op.where or op.step.op)
    norm = Norm(len(findings.norms), name, gain.facet.offset, where=op.where)
    findings.norms.append((result.space, norm))
    op.set(output, result, Facet(degree, "vector", norm=norm, centred=value.facet.centred))


@LAWS.law("add", "sub", "rsub", "subtract", "_unsafe_masked_fill")
def add(op: Operation) -> None:
    """Add or subtract: any matrix. One number added to all units leaves what keeps the vector of ones."""
    refs = [ref for ref in (op.arg("self"), op.arg("other")) if isinstance(ref, TensorRef)]
    number = next((x for x in (op.arg("self"), op.arg("other")) if isinstance(x, int | float)), 0)
    # The state from which a loop starts says nothing.
    added = [ref for ref in refs if ref.key not in op.findings.zero_values]
    for output, result in op.results():
        carriers = op.beside(result, len(output.shape), added)
        if not carriers:
            continue
        if len(carriers) == len(added) == 1 and len(refs) == 2:
            _scale(op, output, result, carriers[0], [])
        elif len(carriers) == 1:
            others = [ref for ref in refs if ref is not carriers[0].ref]
            _add_constant(op, output, result, carriers[0], others, number)
        else:
            is_plain = "sub" not in op.step.op and op.arg("alpha", 1) == 1
            joined = join(op, result, carriers)
            # A norm of all operands has its shift in each of them.
            shared = all(carrier.facet.norm is not None for carrier in carriers)
            op.set(output, result, replace(joined, level=joined.level and is_plain and not shared))


def _add_constant(
    op: Operation, output: TensorRef, result: Part, carrier: Carrier, others: list[TensorRef], number: float
) -> None:
    """Add the same to all units of a space."""
    facet, space = carrier.facet, result.space
    if not others and number == 0:
        op.set(output, result, facet)
        return
    op.require(space, facet)
    name = op.step.op.split("::")[1]
    if not others and op.findings.is_vector(facet) and name in ("add", "sub") and carrier.ref is op.arg("self"):
        op.set(output, result, replace(facet, offset=facet.offset + (number if name == "add" else -number)))
        return  # Gemma's norms multiply by 1 + weight
    op.use(carrier)
    op.findings.block(facet, "not_contracted", op.where or op.step.op)
    op.keep_only(space, MEAN_KEEPING if facet.form == "vector" else (), "one number added to all")
    is_mean = len(others) == 1 and op.findings.means.get(others[0].key) == carrier.ref.key
    op.set(output, result, Facet(facet.degree, facet.form, centred=is_mean and "sub" in op.step.op))


def join(op: Operation, result: Part, carriers: list[Carrier]) -> Facet:
    """Return the facet of a sum of values, or of values laid beside each other."""
    findings, space = op.findings, result.space
    facets = [carrier.facet for carrier in carriers]
    degree = same_degree(findings, space, carriers)
    gained = [carrier for carrier in carriers if carrier.facet.norm is not None]
    shifts = [carrier for carrier in carriers if findings.is_vector(carrier.facet) and not carrier.facet.offset]
    if len(gained) == len(shifts) == 1 and len(carriers) == 2 and (norm := gained[0].facet.norm) and norm.shift is None:
        segment = shifts[0].facet.segment
        assert segment is not None
        shifted = findings.add_shift(norm, findings.spaces.segments[segment].axis.tensor)
        return replace(gained[0].facet, degree=degree, norm=shifted)
    for carrier in carriers:
        op.use(carrier)
    if {facet.norm for facet in facets} != {facets[0].norm}:
        for carrier in gained:
            is_stream = findings.consumers.get(carrier.ref.key, 0) > 1
            findings.block(carrier.facet, "post_norm" if is_stream else "norm_of_branch", op.where or op.step.op)
        facets = [replace(facet, norm=None) for facet in facets]
    forms = {facet.form for facet in facets}
    if forms != {"vector"}:
        op.keep_only(space, (), "sum of values that do not all turn" if len(forms) > 1 else "")
    writers = [op.writers(carrier) for carrier in carriers]
    return Facet(
        degree,
        "vector" if forms == {"vector"} else "other",
        writers=frozenset().union(*writers) if all(writers) else frozenset(),
        norm=facets[0].norm,
        centred=all(facet.centred for facet in facets),
        level=all(facet.level for facet in facets),
    )


@LAWS.law("neg", "native_dropout", "dropout", "positive", "_conj", "lift_fresh", "lift",
          "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
          "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
          "constant_pad_nd")  # fmt: skip
def keep(op: Operation) -> None:
    """Compute a linear function of each unit's values, the same for all units: any matrix."""
    name = op.step.op.split("::")[1]
    if name == "constant_pad_nd" and op.arg("value", 0):
        apply_function(op)
        return
    pads = any(op.arg("pad" if name == "constant_pad_nd" else "padding", ()))
    for output, result in op.results():
        for carrier in op.beside(result, len(output.shape), op.inputs[:1])[:1]:
            op.use(carrier)
            level = carrier.facet.level and not pads and name != "neg"
            kept = replace(carrier.facet, segment=None, writers=frozenset(), mixed=frozenset(), level=level)
            op.set(output, result, kept)
