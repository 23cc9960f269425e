"""Balancing keeps the function and undoes scales, invertible matrices and factors of planes that were planted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alignkit import SymmetryGraph
from alignkit.graph import AxisOf, Balance
from alignkit.rewriting import WideWeights, balance_weights, fold_weights
from alignkit.rewriting.balancing import balanced_matrices, balanced_scales
from helpers.folding_nets import NETS, Net, mlp, outputs
from helpers.planted import act, planted, sides

BALANCED = [name for name, make in NETS.items() if make().graph.balances]


def error(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


def prepared(net: Net) -> dict[str, Tensor]:
    """Return folded weights in float64."""
    weights = WideWeights(dict(net.model.state_dict()))
    fold_weights(weights, net.graph.folds)
    return {**net.model.state_dict(), **weights.wide}


def turned_back(graph: SymmetryGraph, weights: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring every space by signs, rotations or phases, whichever its balance leaves, nearest to other weights."""
    moved = {name: tensor.clone() for name, tensor in weights.items()}
    for balance in graph.balances:
        writes, reads = sides(graph, balance, moved)
        targets = [view for side in sides(graph, balance, like) for view in side]
        *instances, size = graph.unit_shape(balance.group)
        count = math.prod(instances)

        def rows(views: list[Tensor], count: int = count, size: int = size) -> Tensor:
            return torch.cat([view.reshape(count, -1, size) for view in views], 1)

        product = rows(targets).mT @ rows([*writes, *reads])
        if balance.kind == "invertible":
            left, _, right = torch.linalg.svd(product)
            matrices = left @ right
        elif balance.kind == "complex_planes":
            half = size // 2
            a, b = product[:, :half], product[:, half:]
            real = torch.diagonal(a[..., :half] + b[..., half:], 0, -2, -1)
            imaginary = torch.diagonal(b[..., :half] - a[..., half:], 0, -2, -1)
            phase = torch.polar(torch.ones_like(real), torch.atan2(imaginary, real))
            real, imaginary = torch.diag_embed(phase.real), torch.diag_embed(phase.imag)
            matrices = torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)
        elif balance.kind == "monomial" and graph.groups[balance.group].kind == "signed":
            matrices = torch.diag_embed(torch.diagonal(product, 0, -2, -1).sign())
        else:
            continue
        act([*writes, *reads], tuple(instances), matrices)
    return moved


def balanced(graph: SymmetryGraph, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    wide = WideWeights(weights)
    balance_weights(wide, graph)
    return {**weights, **wide.wide}


def norm(weights: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in weights.values() if t.is_floating_point()))


@pytest.mark.parametrize("name", BALANCED)
def test_balancing_keeps_the_function_and_takes_norm(name: str) -> None:
    net = NETS[name]()
    weights = prepared(net)
    result = balanced(net.graph, weights)
    assert error(outputs(net.model, result, net.inputs), outputs(net.model, weights, net.inputs)) < 1e-12
    assert norm(result) < norm(weights)
    again = balanced(net.graph, result)
    assert norm({key: again[key] - result[key] for key in result}) < 1e-11 * norm(result)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BALANCED)
def test_a_planted_element_is_undone(name: str, seed: int) -> None:
    net = NETS[name](seed=seed)
    weights = prepared(net)
    other = planted(net.graph, weights, seed)
    assert error(outputs(net.model, other, net.inputs), outputs(net.model, weights, net.inputs)) < 1e-10
    assert norm({key: other[key] - weights[key] for key in weights}) > 0.1 * norm(weights)
    ours, theirs = (balanced(net.graph, side) for side in (weights, other))
    theirs = turned_back(net.graph, theirs, ours)
    assert norm({key: theirs[key] - ours[key] for key in ours}) < 1e-9 * norm(ours)


def test_sweeps_grow_with_the_number_of_layers_and_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.rewriting.balancing.MAX_SWEEPS", 150)
    net = mlp("relu", depth=20)
    weights = dict(net.model.state_dict())
    ours, theirs = (balanced(net.graph, side) for side in (weights, planted(net.graph, weights, 0)))
    assert norm({key: theirs[key] - ours[key] for key in ours}) < 1e-9 * norm(ours)


@pytest.mark.parametrize("kind", ["scaled", "invertible"])
def test_both_sides_are_alike_once_balanced(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 5, width, generator=generator, dtype=torch.float64) for width in (9, 4))
    if kind == "scaled":
        new_x, new_y, empty = balanced_scales(x, y)
        torch.testing.assert_close(new_x.norm(dim=-1), new_y.norm(dim=-1))
    else:
        new_x, new_y, empty = balanced_matrices(x, y)
        torch.testing.assert_close(new_x @ new_x.mT, new_y @ new_y.mT)
    assert empty == (0 if kind == "scaled" else 3)  # y has 4 columns for 5 directions
    torch.testing.assert_close(new_x.mT @ new_y, x.mT @ y)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_scales_are_those_of_least_norm(degree: int) -> None:
    generator = torch.Generator().manual_seed(degree)
    x, y = (torch.randn(1, 6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    new_x, new_y, _ = balanced_scales(x, y, degree)
    least = new_x.square().sum(-1) + new_y.square().sum(-1)
    for factor in (0.99, 1.01):
        assert (((new_x * factor).square().sum(-1) + (new_y / factor**degree).square().sum(-1)) > least).all()


class TestEmpty:
    """Units and directions that nothing writes or reads: no NaN, the function stays, and it is told."""

    @pytest.mark.parametrize("side", ["writes", "reads"])
    @pytest.mark.parametrize("name", BALANCED)
    def test_empty_units(self, name: str, side: str) -> None:
        net = NETS[name]()
        weights = {key: tensor.clone() for key, tensor in prepared(net).items()}
        for balance in net.graph.balances:
            for view in sides(net.graph, balance, weights)[side == "reads"]:
                view[..., 0] = 0
                if balance.kind == "complex_planes":
                    view[..., view.shape[-1] // 2] = 0
        wide = WideWeights(weights)
        told = balance_weights(wide, net.graph)
        result = {**weights, **wide.wide}
        assert all(bool(tensor.isfinite().all()) for tensor in result.values())
        assert error(outputs(net.model, result, net.inputs), outputs(net.model, weights, net.inputs)) < 1e-12
        has_sides = {space.balance: isinstance(space.balance, Balance) for space in told}
        wanted = [net.graph.instances(balance.group) * is_one for balance, is_one in has_sides.items()]
        assert [space.empty for space in told] == wanted
        again = planted(net.graph, weights, 0)
        theirs = turned_back(net.graph, balanced(net.graph, again), result)
        assert norm({key: theirs[key] - result[key] for key in result}) < 1e-9 * norm(result)

    @pytest.mark.parametrize("rank", [0, 1, 3])
    def test_a_head_of_small_rank(self, rank: int) -> None:
        generator = torch.Generator().manual_seed(rank)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x, y = random(2, 4, rank) @ random(2, rank, 7), random(2, 4, 9)
        new_x, new_y, empty = balanced_matrices(x, y)
        assert empty == 2 * (4 - rank)
        assert bool(new_x.isfinite().all()) and bool(new_y.isfinite().all())
        torch.testing.assert_close(new_x.mT @ new_y, x.mT @ y)
        g = random(2, 4, 4)
        other_x, other_y, _ = balanced_matrices(g @ x, torch.linalg.inv(g).mT @ y)
        torch.testing.assert_close(other_x.mT @ other_x, new_x.mT @ new_x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other_y.mT @ other_y, new_y.mT @ new_y, rtol=1e-9, atol=1e-9)


def test_balancing_commutes_with_rotations_and_permutations() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 5, width, generator=generator, dtype=torch.float64) for width in (9, 7))
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    for matrix in (turn, torch.eye(5, dtype=torch.float64)[torch.randperm(5, generator=generator)]):
        left, right = balanced_matrices(matrix @ x, matrix @ y), balanced_matrices(x, y)
        torch.testing.assert_close(left[0], matrix @ right[0])
        torch.testing.assert_close(left[1], matrix @ right[1])


def test_spaces_of_different_parts_of_one_tensor_are_balanced_at_once() -> None:
    net = NETS["gpt"]()
    weights = prepared(net)
    together = balanced(net.graph, weights)
    one_by_one = weights
    for balance in net.graph.balances:
        wide = WideWeights(one_by_one)
        balance_weights(wide, net.graph, [balance])
        one_by_one = {**one_by_one, **wide.wide}
    assert all(torch.equal(together[key], one_by_one[key]) for key in together)


@pytest.mark.parametrize(("mark", "pairs"), [("%", [(0, 3), (1, 4), (2, 5)]), ("%%", [(0, 1), (2, 3), (4, 5)])])
def test_the_kind_of_a_group_says_which_positions_are_a_plane(mark: str, pairs: list[tuple[int, int]]) -> None:
    graph = SymmetryGraph.from_spec(
        {"q": f"{mark}rot .", "k": f"{mark}rot ."},
        {"q": (6, 3), "k": (6, 3)},
        balances=[Balance("rot", (AxisOf("q", 0),), (AxisOf("k", 0),), "complex_planes")],
    )
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(6, 3, generator=generator, dtype=torch.float64) for name in "qk"}
    factors = (balanced(graph, weights)["q"] / weights["q"])[:, 0]
    assert len({round(float(factor), 9) for factor in factors}) == 3
    for left, right in pairs:
        torch.testing.assert_close(factors[left], factors[right])
