"""Networks with nothing to align: no groups, groups of one unit, tensors without elements, no tensors at all."""

from __future__ import annotations

import pytest
import torch

import alignkit
from alignkit import Alignment, SoftAlignment, SymmetryGraph
from alignkit.checkpoints import open_checkpoint
from alignkit.jobs.from_disk import match_checkpoints, merge_checkpoints
from alignkit.matching.unit_similarity import similarity_matrix, unit_similarity

GRAPHS = {
    "no groups": ({"w": ". .", "s": ""}, {"w": (3, 2), "s": ()}),
    "one unit": ({"w": "h .", "v": ". h"}, {"w": (1, 3), "v": (2, 1)}),
    "one unit in one parent": ({"w": "p u[p] .", "v": ". p u[p]"}, {"w": (1, 1, 3), "v": (2, 1, 1)}),
    "units without weights": ({"w": "h .", "v": ". h"}, {"w": (4, 0), "v": (0, 4)}),
    "some tensors without elements": ({"w": "h .", "v": ". h", "e": ". ."}, {"w": (4, 0), "v": (2, 4), "e": (0, 3)}),
    "families without weights": ({"w": "p u[p] .", "v": ". p"}, {"w": (2, 3, 0), "v": (2, 2)}),
    "scalars alone": ({"s": ""}, {"s": ()}),
    "no tensors": ({}, {}),
}
SOLVERS = ("identity", "weight_matching", "frank_wolfe", "sinkhorn", "deepalign")


@pytest.fixture(params=GRAPHS)
def networks(request):
    """A graph and three networks on it."""
    spec, shapes = GRAPHS[request.param]
    torch.manual_seed(0)
    graph = SymmetryGraph.from_spec(spec, shapes)
    return graph, [{name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(3)]


def distance_of(a, b):
    return sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_ends_well(networks, solver):
    graph, (a, b, _) = networks
    solution = alignkit.solve(graph, a, b, solver=solver)
    assert solution.status.name == "OK"
    assert solution.objective_before == pytest.approx(distance_of(a, b))
    assert solution.objective_after == pytest.approx(distance_of(a, solution.apply(b)))
    assert solution.explain() and repr(solution)


def test_every_job_ends_well(networks):
    graph, (a, b, c) = networks
    merged = alignkit.merge(graph, a, b)
    for name, tensor in merged.network.items():
        assert torch.allclose(tensor, (a[name] + merged.aligned[1][name]) / 2, atol=1e-6)
    assert alignkit.merge(graph, a, b, c).network.keys() == a.keys()
    assert alignkit.distance(graph, a, b).before == pytest.approx(distance_of(a, b))
    carried = alignkit.transport(graph, a, b, tuned=c, alignment=Alignment.identity(graph)).network
    assert all(torch.allclose(carried[name], b[name] + c[name] - a[name], atol=1e-6) for name in a)
    for method in ("reference", "merge_many", "universe"):
        assert alignkit.align_many(graph, a, b, c, method=method).apply([a, b, c])[0].keys() == a.keys()


def test_alignments_of_it(networks):
    graph, (a, b, _) = networks
    order = Alignment.random(graph, 1)
    assert order.inverse() @ order == Alignment.identity(graph)
    moved = SoftAlignment.from_alignment(order).apply(b)
    assert all(torch.allclose(moved[name], tensor) for name, tensor in order.apply(b).items())
    for group, similarity in unit_similarity(graph, a, b, order).items():
        assert bool(torch.isfinite(similarity.after).all())
        assert bool(torch.isfinite(similarity_matrix(graph, a, b, order, group)).all())


def test_many_of_it(networks):
    graph, (a, b, c) = networks
    if not a:
        pytest.skip("networks of no tensors cannot be counted")
    canonical = alignkit.canonicalize(graph, [b, c], a)
    assert canonical.before.tolist() == pytest.approx([distance_of(a, b), distance_of(a, c)])
    assert canonical.alignment(1).graph == graph and canonical.network(0).keys() == a.keys()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_on_disk(networks, suffix, tmp_path):
    graph, (a, b, _) = networks
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path, side in zip(paths, (a, b), strict=True):
        alignkit.write_weights(path, side)
    solution = match_checkpoints(graph, *paths, memory="1MB")
    assert solution.objective_before == pytest.approx(distance_of(a, b))
    merge_checkpoints(tmp_path / f"m.{suffix}", [open_checkpoint(path) for path in paths], [None, solution])
    merged = alignkit.read_weights(tmp_path / f"m.{suffix}")
    moved = solution.apply(b)
    assert all(torch.allclose(merged[name], (a[name] + moved[name]) / 2, atol=1e-6) for name in a)
