"""Weights of any size: planted orders are found, objectives are those of numpy, and what has no squares is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import alignkit
from alignkit import Alignment
from alignkit.errors import BindError
from alignkit.jobs.from_disk import match_checkpoints
from alignkit.matching.unit_similarity import unit_similarity
from helpers.small_pairs import pair_of

quick = settings(max_examples=8, suppress_health_check=list(HealthCheck))
SOLVERS = {
    "weight matching": {"solver": "weight_matching"},
    "weight matching in float32": {"solver": "weight_matching", "products": "float32"},
    "frank-wolfe": {"solver": "frank_wolfe", "polish": False},
    "sinkhorn": {"solver": "sinkhorn", "start": "identity", "max_steps": 60, "patience": 20},
    "deepalign": {"solver": "deepalign"},
}
GRAPHS = ("two layers", "heads", "experts")
SIZES = [*(("float32", size) for size in (1e-30, 1e30)), *(("float64", size) for size in (1e-100, 1e-30, 1e30, 1e100))]


def planted(name, sizes, dtype="float64", seed=0):
    """A network whose tensors have these sizes, and the same with its units in another order."""
    graph, generator = pair_of(name).graph, torch.Generator().manual_seed(seed)
    a = {
        n: (size * torch.randn(t.shape, generator=generator, dtype=torch.float64)).to(getattr(torch, dtype))
        for (n, t), size in zip(graph.tensors.items(), sizes, strict=False)
    }
    return graph, a, Alignment.random(graph, 3).apply(a)


def same(a, b):
    return all(torch.equal(a[name], tensor) for name, tensor in b.items())


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("dtype", "size"), SIZES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_planted_orders_are_found_at_every_size(solver, dtype, size, name):
    graph, a, b = planted(name, [size] * 9, dtype)
    solution = alignkit.solve(graph, a, b, **SOLVERS[solver])
    assert same(a, solution.apply(b)) and solution.status.name == "OK"
    before = sum(float(((a[n].double() - b[n].double()) / size).square().sum()) for n in a)
    assert solution.objective_before / size**2 == pytest.approx(before) and solution.objective_after == 0


@pytest.mark.parametrize("solver", ["weight_matching", "frank_wolfe", "deepalign"])
@pytest.mark.parametrize("name", [*GRAPHS, "concatenation"])
@quick
@given(st.lists(st.integers(-12, 8), min_size=9, max_size=9), st.integers(0, 1000))
def test_planted_orders_are_found_where_tensors_differ_in_size(solver, name, powers, seed):
    graph, a, b = planted(name, [10.0**power for power in powers], seed=seed)
    assert same(a, alignkit.solve(graph, a, b, solver=solver).apply(b))


@pytest.mark.parametrize("size", [1e-100, 1e-30, 1e30, 1e100])
@pytest.mark.parametrize("name", ["two layers", "heads"])
class TestJobs:
    def test_many_networks_are_the_same_problem(self, name, size):
        graph, a, b = planted(name, [size] * 9)
        canonical = alignkit.canonicalize(graph, [b, a], a)
        assert same(a, canonical.network(0)) and canonical.after.tolist() == [0, 0]
        for method in ("merge_many", "universe"):
            many = alignkit.align_many(graph, a, b, a, method=method)
            assert same(a, many.apply([a, b, a])[1]) and many.spread_after <= 1e-20 * size**2

    def test_distances_and_cosines_have_no_size(self, name, size):
        graph, a, b = planted(name, [size] * 9)
        _, plain_a, plain_b = planted(name, [1.0] * 9)
        assert alignkit.distance(graph, a, b).same
        order = Alignment.random(graph, 1)
        for group, similarity in unit_similarity(graph, a, b, order).items():
            expected = unit_similarity(graph, plain_a, plain_b, order)[group]
            assert torch.allclose(similarity.before, expected.before, atol=1e-12)
            assert torch.allclose(similarity.after, expected.after, atol=1e-12)


@pytest.mark.parametrize("products", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_matching_from_disk_finds_what_matching_in_memory_does(size, products, tmp_path):
    graph, a, b = planted("heads", [size] * 9, "float32")
    for path, side in (("a", a), ("b", b)):
        alignkit.write_weights(tmp_path / f"{path}.safetensors", side)
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert same(a, match_checkpoints(graph, *paths, memory="1MB", products=products).apply(b))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("encoder", ["probes", "learned"])
def test_networks_that_run_into_infinity_or_zero_are_matched_by_weights(encoder, size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(size)
    graph = alignkit.trace(model, torch.randn(2, 4))
    other = Alignment.random(graph, 2).apply(model)
    solution = alignkit.solve(graph, model, other, solver="deepalign", encoder=encoder)
    assert same(model.state_dict(), solution.apply(other).state_dict())


class TestWhatHasNoSquares:
    @pytest.mark.parametrize("solver", ["identity", "weight_matching", "frank_wolfe", "sinkhorn", "deepalign"])
    @pytest.mark.parametrize(("size", "said"), [(1e160, "'w1' holds.*squares overflow"), (1e-170, "squares vanish")])
    def test_solve_refuses_it_whatever_the_solver(self, solver, size, said):
        graph, a, b = planted("two layers", [size] * 9)
        with pytest.raises(BindError, match=said):
            alignkit.solve(graph, a, b, solver=solver, throw=False)

    @pytest.mark.parametrize("size", [1e160, 1e-170])
    def test_so_do_jobs(self, size, tmp_path):
        graph, a, b = planted("two layers", [size] * 9)
        for path, side in (("a", a), ("b", b)):
            alignkit.write_weights(tmp_path / f"{path}.safetensors", side)
        paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        for job in (
            lambda: alignkit.merge(graph, a, b),
            lambda: alignkit.distance(graph, a, b),
            lambda: alignkit.transport(graph, a, b, tuned=a),
            lambda: alignkit.align_many(graph, a, b, a),
            lambda: alignkit.canonicalize(graph, [b], a),
            lambda: match_checkpoints(graph, *paths, memory="1MB"),
        ):
            with pytest.raises(BindError, match="squares"):
                job()

    def test_one_network_among_many_is_named(self):
        graph, a, b = planted("two layers", [1.0] * 9)
        far = {name: 1e160 * tensor for name, tensor in b.items()}
        with pytest.raises(BindError, match="network 1 holds numbers whose squares overflow"):
            alignkit.canonicalize(graph, [b, far], a)

    def test_networks_of_zeros_are_at_distance_zero(self):
        graph, a, _ = planted("two layers", [0.0] * 9)
        assert alignkit.solve(graph, a, a).objective_after == 0
