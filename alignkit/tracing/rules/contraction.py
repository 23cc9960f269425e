"""Matrix products, convolutions, attention: the summed dimension of both operands moves together and is gone."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.tracing.labels.combine import drop, matmul, reduce
from alignkit.tracing.labels.picking import can_pick, pick, units_along
from alignkit.tracing.labels.reshape import repeat_each, reshape
from alignkit.tracing.labels.tensor_labels import Labels
from alignkit.tracing.recording.recorder import TensorRef
from alignkit.tracing.rules.table import Call, RuleSet

RULES = RuleSet()


@RULES.rule("mm", "bmm", "matmul", "mv", "dot", "vdot")
def product(call: Call) -> Labels:
    """Multiply [..., m, k] by [..., k, n], with broadcasting."""
    return _multiply(call, *call.operands())


@RULES.rule("addmm", "baddbmm", "addmv", "_sparse_addmm")
def product_and_sum(call: Call) -> Labels:
    """Multiply, and add a term that broadcasts."""
    term, a, b = call.operands()
    return call.unify(call.shape, [_multiply(call, a, b), term])


@RULES.rule("_cdist_forward", "_euclidean_dist")
def distances(call: Call) -> Labels:
    """Measure each of [..., m, k] against each of [..., n, k]: a sum over k, as in a product."""
    a, b = call.operands()
    rank = len(b.shape)
    return _multiply(call, a, b.permute((*range(rank - 2), rank - 1, rank - 2)))


@RULES.rule("_trilinear")
def trilinear(call: Call) -> Labels:
    """Multiply three tensors, each with new dimensions of size 1, and sum over some."""
    operands = call.operands()
    for number in range(3):
        for dim in call.arg(f"expand{number + 1}"):
            operands[number] = operands[number].insert_dim(dim)
    shape = [max(sizes) for sizes in zip(*(x.shape for x in operands), strict=True)]
    product = call.unify(shape, operands)
    return reduce(call.constraints, product, set(call.arg("sumdim")), keep_dims=False)


@RULES.rule("linear")
def linear(call: Call) -> Labels:
    """Multiply [..., in] by the transpose of [out, in], and add [out]."""
    result = _multiply(call, call.labels("input"), call.labels("weight").permute((1, 0)))
    bias = call.arg("bias")
    return result if bias is None else call.unify(call.shape, [result, call.labels(bias)])


def _multiply(call: Call, a: Labels, b: Labels) -> Labels:
    """Return the labels of a product in the shape of the result; vectors are matrices with a dimension of size 1."""
    a = a.insert_dim(0) if len(a.shape) == 1 else a
    b = b.insert_dim(1) if len(b.shape) == 1 else b
    rank = max(len(a.shape), len(b.shape))
    return reshape(call.constraints, matmul(call.constraints, a.pad_rank(rank), b.pad_rank(rank)), call.shape)


@RULES.rule("outer", "ger")
def outer(call: Call) -> Labels:
    """Multiply each element of one vector by each of another."""
    a, b = call.operands()
    return call.unify(call.shape, [a.insert_dim(1), b])


@RULES.rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_product(call: Call) -> Labels:
    """Multiply [tokens, in] by [experts, in, out], each run of tokens by its expert.

    If the tokens are sorted by numbers of experts, and the runs are as long as there are such numbers, the choice of
    each token is known. Else which expert is which matters.
    """
    c, (x_ref, weight_ref) = call.constraints, call.step.inputs[:2]
    x, weight = call.labels(x_ref), call.labels(weight_ref)
    ends, said = call.chosen("offs") if isinstance(call.arg("offs"), TensorRef) else (Labels.of(()), None)
    if len(x.shape) != 2 or len(weight.shape) != 3:
        c.fix_choice(said)
        return call.fix(x, weight, ends)
    choice = c.stand_ins.choice_of_runs(units_along(x, 0), said)
    if choice is not None and can_pick(weight, 0, choice):
        picked = pick(c, weight, 0, choice)
        picked = picked.with_blocks([*picked.blocks, x.owner[0]])
        return matmul(c, x.insert_dim(1), picked).permute([0, 2])
    c.fix_choice(said)
    call.fix(ends)
    shared = call.fix_dims(weight, [0]).permute((1, 2))
    return matmul(c, call.fix_dims(x, [0]), shared)


@RULES.rule("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable", "cudnn_convolution")
def convolution(call: Call) -> Labels:
    """Multiply as [batch, groups, outputs of a group, inputs of a group], and sum over the last.

    Space is fixed, but for dimensions in which the kernel has size 1 and takes every position, as in mixers of tokens.
    """
    c, groups = call.constraints, call.arg("groups", 1)
    x, weight = call.labels("input"), call.labels("weight")
    batch, channels, *space = x.shape
    strides = list(call.arg("stride"))
    kept = [
        d
        for d, stride in zip(range(2, len(x.shape)), strides * (len(space) // len(strides)), strict=True)
        if weight.shape[d] == stride == 1 and call.shape[d] == x.shape[d]
    ]
    sizes, ones = [x.shape[d] for d in kept], [1] * len(kept)
    per_group_in, per_group_out = channels // groups, call.shape[1] // groups
    signal = call.fix_dims(x, [d for d in range(2, len(x.shape)) if d not in kept]).permute((0, 1, *kept))
    filters = call.fix_dims(weight, range(2, len(weight.shape))).permute((0, 1))
    signal = reshape(c, signal, (batch, groups, 1, per_group_in, *sizes))
    if call.arg("transposed", False):
        filters = reshape(c, filters, (1, groups, per_group_in, per_group_out)).permute((0, 1, 3, 2))
    else:
        filters = reshape(c, filters, (1, groups, per_group_out, per_group_in))
    filters = reshape(c, filters, (*filters.shape, *ones))
    terms = call.unify((batch, groups, per_group_out, per_group_in, *sizes), [filters, signal])
    result = reshape(c, reduce(c, terms, {3}, keep_dims=False), (batch, call.shape[1], *sizes))
    shape = [n if d < 2 or d in kept else 1 for d, n in enumerate(call.shape)]
    result = result.move_dims(shape, dict(enumerate((0, 1, *kept))))
    bias = call.arg("bias")
    if bias is not None:
        result = call.unify(result.shape, [result, call.labels(bias).along(1, len(result.shape))])
    uniform = [flag and (d < 2 or d in kept) for d, flag in enumerate(result.uniform)]
    return Labels.of(call.shape, uniform, result.blocks)


@RULES.rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math",
            "scaled_dot_product_attention", "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def attention(call: Call) -> Sequence[Labels]:
    """Compute softmax(q k^T + mask) v. Units of q and k meet, units of v pass through, heads are a batch dimension."""
    c = call.constraints
    q, k, v = (call.labels(name) for name in ("query", "key", "value"))
    rank = len(q.shape)
    if rank > 2 and q.shape[-3] != k.shape[-3] > 1:  # grouped queries: several share a head of keys and values
        k, v = (repeat_each(c, x, rank - 3, q.shape[-3] // x.shape[-3]) for x in (k, v))
    scores = matmul(c, q, k.permute((*range(rank - 2), rank - 1, rank - 2)))
    masks = call.labels_of_tensors("attn_mask", "attn_bias")
    if masks:
        scores = call.unify(scores.shape, [scores, *masks])
    if call.arg("is_causal"):
        scores = call.fix_dims(scores, [rank - 2, rank - 1], scores.shape)
    drop(c, scores, {rank - 1})
    return call.first_output(matmul(c, scores, v))
