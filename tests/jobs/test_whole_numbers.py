"""Whole numbers and truth values are part of no distance, no task vector and no average; alignments still move them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from alignkit import Alignment, SymmetryGraph, solve, write_weights
from alignkit.checkpoints import open_checkpoint
from alignkit.errors import MergeError
from alignkit.graph import Pair
from alignkit.jobs.align_many import align_many
from alignkit.jobs.average import average
from alignkit.jobs.canonicalize import canonicalize
from alignkit.jobs.distance import distance
from alignkit.jobs.from_disk import match_checkpoints
from alignkit.jobs.transport import transport
from alignkit.matching.unit_similarity import similarity_matrix, unit_similarity

SPEC = {"one": "h .", "bias": "h", "two": ". h", "free": "."}
WHOLE = {"codes": "h .", "table": "h", "index": ".", "num_batches_tracked": ""}
SHAPES = {"codes": (6, 3), "table": (6,), "index": (4,), "num_batches_tracked": ()}
DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


def floats(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"one": (6, 4), "bias": (6,), "two": (3, 6), "free": (2,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def whole(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    most = 2 if dtype == torch.bool else 100
    return {name: torch.randint(0, most, shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def both(dtype: torch.dtype) -> tuple[SymmetryGraph, SymmetryGraph, list[dict[str, Tensor]]]:
    """A graph with whole numbers, the same without, and three networks of the first."""
    networks = [{**floats(seed), **whole(seed, dtype)} for seed in range(3)]
    return (
        SymmetryGraph.from_spec({**SPEC, **WHOLE}, networks[0]),
        SymmetryGraph.from_spec(SPEC, floats(0)),
        networks,
    )


@pytest.mark.parametrize("solver", ["weight_matching", "frank_wolfe", "sinkhorn", "identity"])
def test_solvers_and_distances_see_weights_alone(both, solver):
    graph, plain, (a, b, _) = both
    found, expected = (solve(g, a, b, solver=solver) for g, a, b in ((graph, a, b), (plain, floats(0), floats(1))))
    assert {n: e.tolist() for n, e in found.alignment.elements.items()} == {
        n: e.tolist() for n, e in expected.alignment.elements.items()
    }
    for name in ("objective_before", "objective_after", "gain"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9), name
    measured, wanted = distance(graph, a, b, solver=solver), distance(plain, floats(0), floats(1), solver=solver)
    assert (measured.before, measured.after) == pytest.approx((wanted.before, wanted.after))
    json.dumps(measured.facts(), allow_nan=False)


def test_many_networks_and_canonical_ones_see_weights_alone(both):
    graph, plain, networks = both
    bare = [floats(seed) for seed in range(3)]
    for method in ("merge_many", "universe"):
        found, expected = align_many(graph, *networks, method=method), align_many(plain, *bare, method=method)
        spreads = [(many.spread_before, many.spread_after) for many in (found, expected)]
        assert spreads[0] == pytest.approx(spreads[1])
    found, expected = canonicalize(graph, networks, networks[0]), canonicalize(plain, bare, bare[0])
    assert torch.allclose(found.before, expected.before)
    assert torch.allclose(found.after, expected.after)
    for one, other in zip(networks, range(3), strict=True):
        moved = Alignment(graph, {"h": found.elements["h"][other]}).apply(one)
        assert torch.equal(moved["codes"], found.weights["codes"][other]), "whole numbers follow their units"


def test_distances_from_disk_see_weights_alone(both, tmp_path):
    graph, _, (a, b, _) = both
    for name, tensors in (("a", a), ("b", b)):
        write_weights(tmp_path / f"{name}.safetensors", tensors)
    from_disk = match_checkpoints(graph, *(open_checkpoint(tmp_path / f"{n}.safetensors") for n in "ab"), "100MB")
    in_memory = solve(graph, a, b)
    assert from_disk.objective_before == pytest.approx(in_memory.objective_before)
    assert from_disk.objective_after == pytest.approx(in_memory.objective_after)
    assert from_disk.gain == pytest.approx(in_memory.gain)


def test_pictures_of_units_show_weights_alone(both):
    graph, plain, (a, b, _) = both
    order = Alignment.random(graph, 1)
    bare = Alignment(plain, order.elements)
    similarity = unit_similarity(graph, a, b, order)["h"]
    expected = unit_similarity(plain, floats(0), floats(1), bare)["h"]
    assert torch.allclose(similarity.before, expected.before)
    assert torch.allclose(similarity.after, expected.after)
    matrices = similarity_matrix(graph, a, b, order, "h"), similarity_matrix(plain, floats(0), floats(1), bare, "h")
    assert torch.allclose(*matrices)


def test_task_vectors_and_averages_are_of_weights_alone(both):
    graph, plain, (a, b, tuned) = both
    order = solve(graph, a, b).alignment
    carried = transport(graph, a, b, tuned=tuned, alignment=order)
    bare = Alignment(plain, order.elements)
    expected = transport(plain, floats(0), floats(1), tuned=floats(2), alignment=bare)
    assert carried.length == pytest.approx(expected.length)
    assert all(torch.equal(carried.network[name], b[name]) for name in WHOLE)
    assert "'codes', 'table', 'index'" in carried.explain()
    assert "num_batches_tracked" not in carried.explain()
    assert carried.facts()["whole_numbers_left"] == ["codes", "table", "index"]
    for method in ("linear", "slerp"):
        with pytest.raises(MergeError, match=r"(?s)'codes' holds (whole numbers|truth values) .*model 1 differs"):
            average([a, b], method=method)
        same = {**b, **{name: a[name] for name in WHOLE if name != "num_batches_tracked"}}
        middle = average([a, same], method=method)
        assert all(torch.equal(middle[name], a[name]) for name in ("codes", "table", "index"))
        assert int(middle["num_batches_tracked"]) == max(int(a["num_batches_tracked"]), int(b["num_batches_tracked"]))


@pytest.mark.parametrize("counter", ["num_batches_tracked", "n_averaged"])
def test_networks_that_differ_in_a_counter_are_the_same(counter):
    graph = SymmetryGraph.from_spec({"w": "h .", counter: ""}, {"w": (3, 2), counter: ()})
    a = {"w": torch.randn(3, 2), counter: torch.tensor(3)}
    b = Alignment.random(graph, 1).apply({**a, counter: torch.tensor(70_000)})
    assert distance(graph, a, b).same
    other = SymmetryGraph.from_spec({"w": "h .", "window": ""}, {"w": (3, 2), "window": ()})
    assert distance(other, {"w": a["w"], "window": torch.tensor(3)}, {"w": b["w"], "window": torch.tensor(4)}).differs


def test_codes_that_follow_their_units_are_averaged_with_the_same_codes(dtype):
    """An alignment moves the codes of quantised weights, so that reordered copies have the same ones."""
    a = {**floats(0), **whole(0, dtype)}
    graph = SymmetryGraph.from_spec({**SPEC, **WHOLE}, a)
    b = Alignment.random(graph, 5).apply(a)
    pair: Pair = graph.bind(a, b)
    measured = distance(pair)
    assert measured.same
    middle = average([a, measured.alignment.apply(b)])
    assert all(torch.equal(middle[name], a[name]) for name in a)
