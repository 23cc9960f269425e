"""Fourier transforms and solutions of linear systems: matrices keep their positions, other dimensions pass through."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels.combine import matmul
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(call: Call) -> Labels:
    """Transform some dimensions."""
    x = call.labels("self")
    return call.fix_dims(x, call.dims(call.arg("dim"), len(x.shape)), call.shape)


@RULES.rule("linalg_solve_triangular")
def solve_triangular(call: Call) -> Labels:
    """Solve A X = B, or X A = B, for a triangular A: its order matters."""
    a, b = call.labels("self"), call.labels("B")
    rank = len(call.shape)
    a = call.fix_dims(a, [len(a.shape) - 2, len(a.shape) - 1], a.shape).pad_rank(rank)
    b = b.pad_rank(rank)
    return matmul(call.constraints, a, b) if call.arg("left", True) else matmul(call.constraints, b, a)


@RULES.rule("linalg_inv_ex")
def inverse(call: Call) -> Sequence[Labels]:
    """Invert a matrix: its rows become columns."""
    a = call.labels("A")
    rank = len(a.shape)
    return call.first_output(a.permute((*range(rank - 2), rank - 1, rank - 2)))


@RULES.rule("_linalg_solve_ex")
def solve(call: Call) -> Sequence[Labels]:
    """Solve A X = B, or X A = B: multiply by the inverse of A."""
    a, b = call.labels("A"), call.labels("B")
    rank = len(a.shape)
    inverse = a.permute((*range(rank - 2), rank - 1, rank - 2))
    if len(b.shape) != rank:
        return call.first_output(call.fix(a, b))
    operands = (inverse, b) if call.arg("left", True) else (b, inverse)
    return call.first_output(matmul(call.constraints, *operands))
