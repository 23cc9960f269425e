"""Different widths: what is restored exactly, what is refused, and that the input stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from alignkit import Alignment, SymmetryGraph
from alignkit.errors import SolverError
from alignkit.jobs.solve import solve
from alignkit.testing import attention, convnet, independent_pair, mlp, residual
from alignkit.testing.problems import ProblemArchitecture
from alignkit_ot import OptimalTransport, fuse


def drawn(architecture: ProblemArchitecture, seed: int = 0) -> nn.Module:
    return independent_pair(architecture, seed=seed).a


def widened(graph: SymmetryGraph, weights: dict[str, Tensor], times: int, seed: int) -> dict[str, Tensor]:
    """Every unit ``times`` times, its outgoing weights shared among its copies, all units shuffled."""
    generator = torch.Generator().manual_seed(seed)
    source = {
        name: torch.arange(group.size).repeat(times)[torch.randperm(group.size * times, generator=generator)]
        for name, group in graph.groups.items()
    }
    wide = {}
    for name, node in graph.tensors.items():
        tensor = weights[name]
        for axis, layout in enumerate(node.layout):
            units = list(layout.units())
            if not units:
                continue
            rest = node.shape[axis] // graph.groups[units[0].group].size
            index = (source[units[0].group][:, None] * rest + torch.arange(rest)).flatten()
            tensor = tensor.index_select(axis, index)
            tensor = tensor / times if axis else tensor
        wide[name] = tensor
    return wide


def graph_of(weights: dict[str, Tensor], architecture: ProblemArchitecture) -> SymmetryGraph:
    return SymmetryGraph.from_spec(architecture.spec, like=weights)


def outputs(architecture: ProblemArchitecture, weights: dict[str, Tensor]) -> Tensor:
    model = copy.deepcopy(architecture.model).double().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(architecture.inputs().double())


ARCHITECTURES = {"mlp": lambda: mlp(4, 6, 5, 3), "convnet": convnet, "residual": residual}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("times", [2, 3])
def test_a_wider_copy_is_carried_back_exactly(name: str, times: int) -> None:
    architecture = ARCHITECTURES[name]()
    weights = {n: t.double() for n, t in drawn(architecture).state_dict().items() if t.is_floating_point()}
    like = {n: t for n, t in weights.items() if n in architecture.spec}
    narrow = SymmetryGraph.from_spec(architecture.spec, like=like)
    wide = widened(narrow, like, times, seed=1)
    fusion = fuse(narrow, like, graph_of(wide, architecture), wide)
    for tensor, value in fusion.weights.items():
        assert torch.allclose(value, like[tensor], rtol=0, atol=1e-12), tensor
    assert fusion.distance2 < 1e-20
    for group, plan in fusion.plans.items():
        size = narrow.groups[group].size
        assert plan.shape == (size, times * size)
        assert torch.allclose(plan.sum(1), torch.full((size,), 1 / size, dtype=torch.float64))
        assert torch.allclose(plan.sum(0), torch.full((times * size,), 1 / (times * size), dtype=torch.float64))


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_a_narrower_network_carried_to_a_wider_one_computes_the_same(name: str) -> None:
    architecture = ARCHITECTURES[name]()
    small = {n: t.double() for n, t in drawn(architecture).state_dict().items()}
    narrow = SymmetryGraph.from_spec(architecture.spec, like=small)
    wide = widened(narrow, small, 2, seed=3)
    target = graph_of(wide, architecture)
    fusion = fuse(target, wide, narrow, small)
    assert {n: t.shape for n, t in fusion.weights.items()} == {n: t.shape for n, t in wide.items()}
    builder = {"mlp": lambda: mlp(4, 12, 10, 3), "residual": lambda: residual(width=12, hidden=14)}[name]
    assert torch.allclose(outputs(builder(), fusion.weights), outputs(architecture, small), rtol=0, atol=1e-12)


def test_widths_that_do_not_divide_each_other() -> None:
    """Seven units from five: no exact answer, but plans with the right sums, and a result close to A."""
    one, two = mlp(4, 7, 6, 3), mlp(4, 5, 8, 3)
    a, b = drawn(one), drawn(two, seed=1)
    fusion = fuse(one.graph(), a, two.graph(), b)
    assert [tuple(plan.shape) for plan in fusion.plans.values()] == [(7, 5), (6, 8)]
    model = copy.deepcopy(a)
    model.load_state_dict(fusion.weights)
    merged = {share: fusion.merged(share) for share in (0.0, 0.25, 0.5, 1.0)}
    distance = sum(float((a.state_dict()[n].double() - t.double()).square().sum()) for n, t in fusion.weights.items())
    assert fusion.distance2 == pytest.approx(distance, rel=1e-5)
    for name, tensor in a.state_dict().items():
        for share, weights in merged.items():
            assert torch.allclose(weights[name], torch.lerp(tensor, fusion.weights[name], share), atol=1e-6)
            assert weights[name].dtype == tensor.dtype


def test_equal_widths_give_what_exact_transport_gives() -> None:
    pair = independent_pair(mlp(4, 8, 7, 3))
    shuffled = Alignment.random(pair.graph, 5).apply(pair.a)
    fusion = fuse(pair.graph, pair.a, pair.graph, shuffled)
    assert fusion.distance2 == 0
    for name, tensor in pair.a.state_dict().items():
        assert torch.equal(fusion.weights[name], tensor)


def test_an_embedding_writes_its_last_axis() -> None:
    """The module says so; without it, the axis is taken for one that reads, and reads= puts it right."""
    spec = {"0.weight": ". h", "1.weight": ". h", "1.bias": "."}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)).double()
    small = dict(model.state_dict())
    order = torch.tensor([2, 0, 1, 3, 3, 2, 1, 0])
    wide = {"0.weight": small["0.weight"][:, order], "1.weight": small["1.weight"][:, order] / 2}
    wide["1.bias"] = small["1.bias"]
    graphs = [SymmetryGraph.from_spec(spec, like=w) for w in (small, wide)]
    assert fuse(graphs[0], model, graphs[1], wide).distance2 < 1e-20
    assert fuse(graphs[0], small, graphs[1], wide, reads={"0.weight": ()}).distance2 < 1e-20
    with pytest.raises(SolverError, match=r"no weight writes it; .* reads="):
        fuse(graphs[0], small, graphs[1], wide)
    with pytest.raises(SolverError, match="reads= names 'emb', which"):
        fuse(graphs[0], small, graphs[1], wide, reads={"emb": ()})


class Product(nn.Module):
    """Two layers whose outputs meet in an inner product, as queries and keys do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(3, width), nn.Linear(3, width)


def test_what_cannot_be_fused_is_listed() -> None:
    spec = {"q.weight": "u .", "q.bias": "u", "k.weight": "u .", "k.bias": "u"}
    one, two = Product(4), Product(6)
    graphs = [SymmetryGraph.from_spec(spec, like=model) for model in (one, two)]
    with pytest.raises(SolverError, match="'u' has 4 units in A and 6 in B, and no weight reads it"):
        fuse(graphs[0], one, graphs[1], two)
    small, deep = mlp(4, 6, 3), mlp(4, 6, 5, 3)
    with pytest.raises(SolverError, match=r"tensor '4[.]weight' is only in B") as caught:
        fuse(small.graph(), drawn(small), deep.graph(), drawn(deep))
    assert "group 'h2' is only in B" in str(caught.value)
    heads = independent_pair(attention())
    with pytest.raises(SolverError, match="units inside units do not fit: group 'qk' is owned by 'heads'"):
        fuse(heads.graph, heads.a, heads.graph, heads.b)
    inputs = mlp(5, 6, 3)
    with pytest.raises(SolverError, match=r"tensor '0.weight' is 'h1 .' of shape \(6, 4\) in A"):
        fuse(small.graph(), drawn(small), inputs.graph(), drawn(inputs))
    with pytest.raises(SolverError, match="at least one sweep"):
        fuse(small.graph(), drawn(small), small.graph(), drawn(small), max_steps=0)


def test_inputs_stay_as_they_were() -> None:
    one, two = mlp(4, 7, 3), mlp(4, 5, 3)
    a, b = drawn(one), drawn(two)
    kept = copy.deepcopy((a.state_dict(), b.state_dict()))
    fusion = fuse(one.graph(), a, two.graph(), b, regularization=0.1)
    for tensor in fusion.weights.values():
        tensor.zero_()
    for before, after in zip(kept, (a.state_dict(), b.state_dict()), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_entropy_softens_and_the_solver_agrees_with_exact_fusion() -> None:
    pair = independent_pair(mlp(4, 8, 7, 3))
    hard = fuse(pair.graph, pair.a, pair.graph, pair.b)
    soft = fuse(pair.graph, pair.a, pair.graph, pair.b, regularization=0.5)
    assert all(int((plan > 1e-9).sum()) == len(plan) for plan in hard.plans.values())
    assert all(int((plan > 1e-9).sum()) > len(plan) for plan in soft.plans.values())
    solution = solve(pair.bind(), solver=OptimalTransport(regularization=0))
    assert solution.objective_after == pytest.approx(hard.distance2, rel=1e-6)
