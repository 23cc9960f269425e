"""Matrix products: the summed dimension of both operands moves together and is gone."""

from __future__ import annotations

from alignkit.tracing.labels.combine import contract, matmul
from alignkit.tracing.labels.reshape import reshape
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("mm", "bmm")
def product(call: Call) -> Labels:
    """Multiply [..., m, k] by [..., k, n]."""
    return matmul(call.constraints, call.labels("self"), call.labels("mat2"))


@RULES.rule("matmul")
def general_product(call: Call) -> Labels:
    """Multiply with broadcasting; vectors are matrices with a dimension of size 1."""
    a, b = call.labels("self"), call.labels("other")
    if len(a.shape) == 1:
        a = a.move_dims((1, *a.shape), {0: 1})
    if len(b.shape) == 1:
        b = b.move_dims((*b.shape, 1), {0: 0})
    rank = max(len(a.shape), len(b.shape))
    result = matmul(call.constraints, a.pad_rank(rank), b.pad_rank(rank))
    return reshape(call.constraints, result, call.shape)


@RULES.rule("addmm", "baddbmm")
def product_and_sum(call: Call) -> Labels:
    """Multiply, and add a term that broadcasts."""
    second, third = ("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")
    result = matmul(call.constraints, call.labels(second), call.labels(third))
    return call.unify(call.shape, [result, call.labels("self")])


@RULES.rule("mv")
def matrix_vector(call: Call) -> Labels:
    """Multiply [m, k] by [k]."""
    vector = call.labels("vec")
    column = vector.move_dims((*vector.shape, 1), {0: 0})
    return reshape(call.constraints, matmul(call.constraints, call.labels("self"), column), call.shape)


@RULES.rule("addmv")
def matrix_vector_and_sum(call: Call) -> Labels:
    """Multiply [m, k] by [k], and add [m]."""
    vector = call.labels("vec")
    column = vector.move_dims((*vector.shape, 1), {0: 0})
    result = reshape(call.constraints, matmul(call.constraints, call.labels("mat"), column), call.shape)
    return call.unify(call.shape, [result, call.labels("self")])


@RULES.rule("dot", "vdot")
def dot(call: Call) -> Labels:
    """Sum the elementwise product of two vectors."""
    operands = call.operands()
    return contract(call.constraints, operands, {0}, operands[0].shape)


@RULES.rule("outer", "ger")
def outer(call: Call) -> Labels:
    """Multiply each element of one vector by each of another."""
    a, b = call.operands()
    return call.unify(call.shape, [a.move_dims((*a.shape, 1), {0: 0}), b])


@RULES.rule("linear")
def linear(call: Call) -> Labels:
    """Multiply [..., in] by the transpose of [out, in], and add [out]."""
    x, weight = call.labels("input"), call.labels("weight")
    transposed = weight.move_dims(weight.shape[::-1], {0: 1, 1: 0})
    rank = max(len(x.shape), 2)
    result = matmul(call.constraints, x.pad_rank(rank), transposed.pad_rank(rank))
    result = reshape(call.constraints, result, call.shape)
    bias = call.arg("bias")
    return result if bias is None else call.unify(call.shape, [result, call.labels(bias)])


@RULES.rule("_grouped_mm")
def grouped_product(call: Call) -> Labels:
    """Multiply [tokens, in] by [experts, in, out], each run of tokens by its expert: which expert is which matters."""
    x, weight = call.labels("self"), call.labels("mat2")
    if len(x.shape) != 2 or len(weight.shape) != 3:
        call.fix(x, weight)
        return Labels.of(call.shape)
    weight = call.fix_dims(weight, [0])
    blocks = [block.shift(-1) for block in weight.blocks if 0 not in block.span]
    shared = Labels.of(weight.shape[1:], weight.uniform[1:], blocks)
    return matmul(call.constraints, call.fix_dims(x, [0]), shared)
