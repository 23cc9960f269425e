"""Networks of different floating-point dtypes in one job; in memory and on disk."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import alignkit
from alignkit import Alignment, Task, write_weights
from alignkit.errors import MergeError, UsageError
from alignkit.testing import mlp, planted_pair
from helpers.small_pairs import pair_of

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn")
MIXED = [pair for pair in itertools.product(FLOATS, FLOATS) if pair[0] != pair[1]]
FAST = {
    "sinkhorn": {"max_steps": 5, "check_every": 5},
    "straight_through": {"max_steps": 3},
    "deepalign": {},
    "frank_wolfe": {"max_steps": 5},
}


def in_dtype(weights, dtype):
    return {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}


def networks(graph, *dtypes):
    """Networks, each in its dtype; the last is the first with its units in another order, rounded."""
    torch.manual_seed(0)
    own = [{n: torch.randn(t.shape) for n, t in graph.tensors.items()} for _ in dtypes[:-1]]
    own = [in_dtype(weights, dtype) for weights, dtype in zip(own, dtypes, strict=False)]
    wide = {name: tensor.double() for name, tensor in own[0].items()}
    return [*own, in_dtype(Alignment.random(graph, 5).apply(wide), dtypes[-1])]


@pytest.fixture(params=["two layers", "heads", "experts"])
def graph(request):
    return pair_of(request.param).graph


@pytest.mark.parametrize("dtypes", MIXED, ids="-".join)
class TestPairs:
    def test_a_rounded_copy_is_the_same_and_a_changed_one_is_not(self, graph, dtypes):
        a, b = networks(graph, *dtypes)
        found = alignkit.distance(graph, a, b)
        assert found.same and found.solution.apply(b).keys() == b.keys()
        eps = [torch.finfo(getattr(torch, dtype)).eps for dtype in dtypes]
        assert found.verdict.endswith(f"and rounding to {dtypes[int(eps[1] > eps[0])]}")
        name = next(iter(b))
        place = b[name].double().abs().flatten().argmin()  # the change is small beside the largest element
        wide = b[name].double().flatten()
        wide[place] = 0.4 * wide.abs().max()
        changed = {**b, name: wide.reshape(b[name].shape).to(b[name].dtype)}
        assert not alignkit.distance(graph, a, changed).same

    def test_an_average_has_the_dtype_of_the_first_and_tells_its_rounding(self, graph, dtypes):
        a, b = networks(graph, *dtypes)
        merged = alignkit.merge(graph, a, b, weights=[3, 1])
        lost = size = 0.0
        for name, tensor in merged.network.items():
            both = [side[name].double().numpy() for side in merged.aligned]
            exact = torch.from_numpy(np.asarray(0.75 * both[0] + 0.25 * both[1]))
            assert tensor.dtype == a[name].dtype and torch.equal(tensor.double(), exact.to(tensor.dtype).double())
            lost, size = lost + float((tensor.double() - exact).square().sum()), size + float(exact.square().sum())
        assert merged.rounding.relative == pytest.approx((lost / size) ** 0.5, abs=1e-15)
        assert merged.facts()["weight_rounding"] == merged.rounding.relative
        assert (merged.rounding.relative > 1e-6) == ("Rounded to" in merged.explain())

    def test_jobs_agree_with_those_on_float64(self, graph, dtypes):
        a, b = networks(graph, *dtypes)
        wide = [in_dtype(side, "float64") for side in (a, b)]
        mixed, exact = alignkit.solve(graph, a, b), alignkit.solve(graph, *wide)
        assert mixed.alignment == exact.alignment and mixed.objective_after == pytest.approx(exact.objective_after)
        carried = alignkit.transport(graph, a, b, tuned=wide[0], dtype="float64").network
        expected = alignkit.transport(graph, *wide, tuned=wide[0]).network
        assert all(torch.allclose(carried[name], expected[name]) for name in expected)

    def test_networks_on_disk_give_what_networks_in_memory_give(self, graph, dtypes, tmp_path):
        a, b = networks(graph, *dtypes)
        paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        for path, weights in zip(paths, (a, b), strict=True):
            write_weights(path, weights)
        inside, outside = alignkit.merge(graph, a, b), alignkit.merge(graph, *paths, memory="1MB")
        read = {name: outside.network[name] for name in graph.tensors}
        assert all(torch.equal(read[n].double(), inside.network[n].double()) for n in read)
        assert {n: t.dtype for n, t in read.items()} == {n: a[n].dtype for n in read}
        assert outside.rounding.relative == pytest.approx(inside.rounding.relative)
        assert alignkit.distance(graph.bind(*paths, memory="1MB")).same


def test_many_networks_of_many_dtypes(graph, tmp_path):
    sides = networks(graph, "bfloat16", "float32", "float64", "float16")
    paths = [tmp_path / f"{number}.safetensors" for number in range(len(sides))]
    for path, weights in zip(paths, sides, strict=True):
        write_weights(path, weights)
    wide = [in_dtype(side, "float64") for side in sides]
    expected = alignkit.align_many(graph, *wide).alignments
    for memory, models in ((None, sides), ("1MB", paths)):
        many = alignkit.align_many(graph, *models, memory=memory)
        assert many.alignments == expected
        moved = [network[name].dtype for network in many.apply(sides) for name in network]
        assert moved == [tensor.dtype for side in sides for tensor in side.values()]
        canonical = alignkit.canonicalize(graph, models[1:], models[0], memory=memory)
        last = canonical.network(2)
        assert all(torch.equal(last[n].bfloat16(), sides[0][n]) for n in sides[0])
    merged = alignkit.merge(graph, *sides, dtype="float32")
    assert {tensor.dtype for tensor in merged.network.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["mappings", "modules"])
@pytest.mark.parametrize("solver", sorted(alignkit.list_solvers()))
def test_every_solver_and_task_takes_mixed_dtypes(solver, kind):
    planted = planted_pair(mlp(4, 8, 7, 3), seed=3)
    x = torch.randn(32, 4)
    task = Task(planted.a, (x, planted.a(x).detach()), "mse")
    for dtypes in (("float32", "bfloat16"), ("bfloat16", "float64")):
        a, b = (model.to(getattr(torch, dtype)) for model, dtype in zip((planted.a, planted.b), dtypes, strict=True))
        if kind == "mappings":
            a, b = a.state_dict(), b.state_dict()
        merged = alignkit.merge(planted.graph, a, b, solver=solver, task=task, repair=True, **FAST.get(solver, {}))
        state = merged.network.state_dict() if kind == "modules" else merged.network
        assert {str(tensor.dtype) for tensor in state.values()} == {f"torch.{dtypes[0]}"}
        assert merged.losses.explain()
        if alignkit.list_solvers()[solver].solver.returns.exact_on_permuted_copies:
            assert merged.alignment.alignment == planted.answer


@pytest.mark.parametrize("wanted", ["bf16", "torch.bfloat16", torch.bfloat16])
def test_the_dtype_of_a_result_can_be_chosen(wanted):
    a, b = pair_of("two layers").a, pair_of("two layers").b
    graph = pair_of("two layers").graph
    merged = alignkit.merge(graph, a, b, dtype=wanted)
    exact = alignkit.merge(graph, *(in_dtype(side, "float64") for side in (a, b))).network
    assert all(torch.equal(merged.network[name], tensor.bfloat16()) for name, tensor in exact.items())
    assert merged.rounding.dtypes == {"bfloat16"} and 1e-4 < merged.rounding.relative < 4e-3
    assert "Rounded to bfloat16" in merged.explain()


def test_modules_are_cast_without_their_unsaved_buffers():
    pair = planted_pair(mlp(4, 8, 7, 3), seed=3)
    for model in (pair.a, pair.b):
        model.register_buffer("angles", torch.linspace(0, 1, 7) / 3, persistent=False)
    network = alignkit.average([pair.a, pair.b], dtype="float16")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float16}
    assert torch.equal(network.angles, pair.a.angles)


@pytest.mark.parametrize("wanted", ["int8", "float33", "bfloat61", "nn"])
def test_what_is_not_a_floating_point_dtype_is_refused(wanted):
    pair = pair_of("two layers")
    with pytest.raises(UsageError, match=f"'{wanted}' is not a floating-point dtype: take float64"):
        alignkit.merge(pair.graph, pair.a, pair.b, dtype=wanted)


def test_what_the_wanted_dtype_cannot_hold_is_refused():
    pair = pair_of("two layers")
    large = {name: 1e6 * tensor for name, tensor in pair.a.items()}
    with pytest.raises(MergeError, match=r"overflows: a value becomes .* float16 holds up to"):
        alignkit.merge(pair.graph, large, pair.b, dtype="float16")
