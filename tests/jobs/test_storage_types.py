"""Jobs on weights of every floating-point dtype agree with numpy, flat and under families; in memory and on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import alignkit
from alignkit import Alignment
from alignkit.checkpoints import open_checkpoint
from alignkit.jobs.from_disk import match_checkpoints, merge_checkpoints
from alignkit.matching.unit_similarity import similarity_matrix, unit_similarity
from helpers.small_pairs import pair_of

DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "bfloat16", "float16", "float64")
GRAPHS = ("two layers", "one group on both axes", "heads", "grouped convolution", "experts")


@pytest.fixture(params=GRAPHS)
def graph(request):
    return pair_of(request.param).graph


def networks(graph, dtype, count):
    """Networks with weights that every dtype holds, and one that is a reordered copy of the first."""
    torch.manual_seed(0)
    sides = [
        {n: (torch.randint(-7, 8, t.shape) / 4).to(getattr(torch, dtype)) for n, t in graph.tensors.items()}
        for _ in range(count)
    ]
    return [*sides, Alignment.random(graph, 5).apply(sides[0])]


def numbers(weights):
    return {name: tensor.double().numpy() for name, tensor in weights.items()}


def squared_distance(a, b):
    left, right = numbers(a), numbers(b)
    return sum(float(np.square(left[name] - right[name]).sum()) for name in left)


@pytest.mark.parametrize("dtype", DTYPES)
class TestInMemory:
    def test_solve_and_distance_measure_what_numpy_does(self, graph, dtype):
        a, b, _ = networks(graph, dtype, 2)
        solution, distance = alignkit.solve(graph, a, b), alignkit.distance(graph, a, b)
        moved = solution.apply(b)
        assert solution.objective_before == distance.before == pytest.approx(squared_distance(a, b))
        assert solution.objective_after == distance.after == pytest.approx(squared_distance(a, moved))
        assert all(tensor.dtype == getattr(torch, dtype) for tensor in moved.values())

    def test_merge_rounds_the_mean_that_numpy_computes(self, graph, dtype):
        a, b, _ = networks(graph, dtype, 2)
        merged = alignkit.merge(graph, a, b, weights=[3, 1])
        left, right = numbers(a), numbers(merged.aligned[1])
        for name, tensor in merged.network.items():
            mean = torch.from_numpy(np.asarray(0.75 * left[name] + 0.25 * right[name])).to(tensor.dtype)
            assert torch.equal(tensor.double(), mean.double())

    def test_transport_adds_the_task_vector_at_the_places_of_b(self, graph, dtype):
        base, _, copy = networks(graph, dtype, 2)
        tuned = {name: (tensor.double() + 0.25).to(tensor.dtype) for name, tensor in base.items()}
        order = Alignment.random(graph, 5).inverse()
        carried = alignkit.transport(graph, base, copy, tuned=tuned, alignment=order).network
        expected = order.inverse().apply(tuned)
        assert all(torch.equal(tensor.double(), expected[name].double()) for name, tensor in carried.items())

    def test_many_networks_come_to_one_order(self, graph, dtype):
        a, b, copy = networks(graph, dtype, 2)
        canonical = alignkit.canonicalize(graph, [b, copy], a)
        for i, network in enumerate((b, copy)):
            assert float(canonical.before[i]) == pytest.approx(squared_distance(a, network))
            moved = canonical.alignment(i).apply(network)
            assert all(torch.equal(canonical.network(i)[n].double(), t.double()) for n, t in moved.items())
            assert float(canonical.after[i]) == pytest.approx(squared_distance(a, moved))
        many = alignkit.align_many(graph, a, b, copy)
        sides = many.apply([a, b, copy])
        pairs = [squared_distance(sides[i], sides[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert many.spread_after == pytest.approx(sum(pairs) / 3)

    def test_similarities_of_units_are_cosines(self, graph, dtype):
        a, b, _ = networks(graph, dtype, 2)
        alignment = Alignment.random(graph, 1)
        wide = [{name: tensor.double() for name, tensor in side.items()} for side in (a, b)]
        for group, similarity in unit_similarity(graph, a, b, alignment).items():
            expected = unit_similarity(graph, *wide, alignment)[group]
            assert torch.equal(similarity.before, expected.before) and torch.equal(similarity.after, expected.after)
            matrix = similarity_matrix(graph, a, b, alignment, group)
            assert torch.equal(matrix, similarity_matrix(graph, *wide, alignment, group))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_work_on_disk_is_work_in_memory(graph, dtype, suffix, tmp_path):
    a, b, _ = networks(graph, dtype, 2)
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path, side in zip(paths, (a, b), strict=True):
        alignkit.write_weights(path, side)
    solution = match_checkpoints(graph, *paths, memory="1MB")
    assert solution.alignment == alignkit.solve(graph, a, b).alignment
    merge_checkpoints(tmp_path / f"m.{suffix}", [open_checkpoint(path) for path in paths], [None, solution])
    expected = alignkit.merge(graph, a, b).network
    for name, tensor in alignkit.read_weights(tmp_path / f"m.{suffix}").items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor.double(), expected[name].double())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int16", "int64"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_counters_of_every_dtype_become_the_largest(dtype, shape):
    top = torch.iinfo(getattr(torch, dtype)).max
    counters = [torch.from_numpy(np.full(shape, value, dtype)) for value in (3, top, 5)]
    averaged = alignkit.average([{"n.num_batches_tracked": counter} for counter in counters])
    assert torch.equal(averaged["n.num_batches_tracked"], counters[1])
