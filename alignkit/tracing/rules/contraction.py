"""Matrix products: the summed dimension of both operands moves together and is gone."""

from __future__ import annotations

from alignkit.tracing.labels.combine import contract, matmul
from alignkit.tracing.labels.labels import Labels
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.rules.table import Call, rule


@rule("mm", "bmm")
def product(call: Call) -> Labels:
    """[..., m, k] times [..., k, n]."""
    return matmul(call.constraints, call.layout("self"), call.layout("mat2"))


@rule("matmul")
def general_product(call: Call) -> Labels:
    """A product that broadcasts; vectors are matrices with a dimension of size 1."""
    a, b = call.layout("self"), call.layout("other")
    if len(a.shape) == 1:
        a = a.moved((1, *a.shape), {0: 1})
    if len(b.shape) == 1:
        b = b.moved((*b.shape, 1), {0: 0})
    rank = max(len(a.shape), len(b.shape))
    result = matmul(call.constraints, a.left_padded(rank), b.left_padded(rank))
    return reshape(call.constraints, result, call.shape)


@rule("addmm", "baddbmm")
def product_and_sum(call: Call) -> Labels:
    """A product plus a term that broadcasts."""
    second, third = ("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")
    result = matmul(call.constraints, call.layout(second), call.layout(third))
    return call.unify(call.shape, [result, call.layout("self")])


@rule("mv")
def matrix_vector(call: Call) -> Labels:
    """[m, k] times [k]."""
    vector = call.layout("vec")
    column = vector.moved((*vector.shape, 1), {0: 0})
    return reshape(call.constraints, matmul(call.constraints, call.layout("self"), column), call.shape)


@rule("addmv")
def matrix_vector_and_sum(call: Call) -> Labels:
    """[m, k] times [k], plus [m]."""
    vector = call.layout("vec")
    column = vector.moved((*vector.shape, 1), {0: 0})
    result = reshape(call.constraints, matmul(call.constraints, call.layout("mat"), column), call.shape)
    return call.unify(call.shape, [result, call.layout("self")])


@rule("dot", "vdot")
def dot(call: Call) -> Labels:
    """The sum of an elementwise product of vectors."""
    operands = call.operands()
    return contract(call.constraints, operands, {0}, operands[0].shape)


@rule("outer", "ger")
def outer(call: Call) -> Labels:
    """All products of two vectors' elements."""
    a, b = call.operands()
    return call.unify(call.shape, [a.moved((*a.shape, 1), {0: 0}), b])


@rule("linear")
def linear(call: Call) -> Labels:
    """[..., in] times the transpose of [out, in], plus [out]."""
    x, weight = call.layout("input"), call.layout("weight")
    transposed = weight.moved(weight.shape[::-1], {0: 1, 1: 0})
    rank = max(len(x.shape), 2)
    result = matmul(call.constraints, x.left_padded(rank), transposed.left_padded(rank))
    result = reshape(call.constraints, result, call.shape)
    bias = call.arg("bias")
    return result if bias is None else call.unify(call.shape, [result, call.layout(bias)])


@rule("_grouped_mm")
def grouped_product(call: Call) -> Labels:
    """[tokens, in] times [experts, in, out], each run of tokens with its expert: which expert is which matters."""
    x, weight = call.layout("self"), call.layout("mat2")
    if len(x.shape) != 2 or len(weight.shape) != 3:
        call.fix(x, weight)
        return Labels.of(call.shape)
    left = call.fix_dims(weight, [0])
    shared = Labels.of(weight.shape[1:], left.uniform[1:], []).with_blocks(
        [block.shifted(-1) for block in left.blocks if 0 not in block.span]
    )
    rows = call.fix_dims(x, [0])
    return matmul(call.constraints, rows, shared)
