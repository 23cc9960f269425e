"""Values, similarities and nested assignment against brute force."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from alignkit import Alignment, SoftAlignment, SymmetryGraph, solve
from alignkit.graph import Pair
from alignkit.matching import Objective
from alignkit.matching.families import nested_assignment
from alignkit.matching.products import Product
from alignkit.matching.tree_objective import TreeObjective
from helpers.small_pairs import SPECS, every_alignment, pair_of


def plain_distance(pair: Pair, alignment: Alignment) -> float:
    moved = alignment.apply(dict(pair.b))
    return sum(float((pair.a[n].double() - moved[n].double()).square().sum()) for n in moved)


@pytest.mark.parametrize("name", SPECS)
def test_value_and_distance_agree_with_permuting_the_weights(name: str) -> None:
    pair = pair_of(name)
    objective = Objective(pair)
    for seed in range(5):
        alignment = Alignment.random(pair.graph, seed)
        expected = plain_distance(pair, alignment)
        assert objective.distance2(alignment) == pytest.approx(expected, rel=1e-12)
        assert objective.squares - 2 * objective.value(alignment) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_weight_matching_with_restarts_finds_the_best_of_all_elements(name: str) -> None:
    for seed in range(3):
        pair = pair_of(name, seed)
        objective = Objective(pair)
        best = objective.squares - 2 * max(objective.value(g) for g in every_alignment(pair.graph))
        solution = solve(pair, solver="weight_matching", restarts=60, patience=60, shuffle=1.0)
        assert solution.objective_after == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_similarity_gives_the_value_of_every_order_of_one_group(name: str) -> None:
    pair = pair_of(name)
    graph, objective = pair.graph, Objective(pair)
    start = Alignment.random(graph, 3)
    for group in graph.groups:
        once = all(sum(d.group == group for d in use.block.dims) == 1 for use in graph.uses[group])
        if graph.children(group) or not once:
            continue
        similarity = objective.similarity(group, start.elements)
        size = graph.groups[group].size
        values, predicted = [], []
        for seed in range(4):
            element = Alignment.random(graph, seed).elements[group]
            values.append(objective.value(Alignment(graph, {**start.elements, group: element})))
            flat = element.reshape(-1, size)
            predicted.append(float(similarity.gather(-1, flat[..., None]).sum()))
        differences = torch.tensor(values) - torch.tensor(predicted)
        assert torch.allclose(differences, differences[0].expand_as(differences), atol=1e-5)


@pytest.mark.parametrize(("sign", "equal"), [(1, True), (-1, True), (0, False)])
def test_uses_on_both_axes_of_a_tensor_share_their_products_only_if_it_is_symmetric(sign: int, equal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    a, b = (sign * matrix.T + matrix for matrix in sides)
    graph = SymmetryGraph.from_spec({"w": "h h"}, {"w": a})
    objective = Objective(graph.bind({"w": a}, {"w": b}))
    order = torch.randperm(6, generator=generator)
    first, second = (
        Product(use, {"h": order}, within_parents=True).add_to(
            torch.zeros(1, 6, 6, dtype=torch.float64), (objective.a, objective.b), lambda part, side: part
        )[0]
        for use in graph.uses["h"]
    )
    matrix = torch.eye(6, dtype=torch.float64)[order]
    assert torch.allclose(first, a @ matrix @ b.T)
    assert torch.allclose(second, a.T @ matrix @ b)
    assert torch.allclose(first, second) == equal
    assert (first * matrix).sum() == pytest.approx(float((second * matrix).sum()))


def best_of_tree(pair: Pair, root: str, others: Mapping[str, Tensor]) -> float:
    graph, objective = pair.graph, Objective(pair)
    members = set(graph.tree(root))
    seen = set()
    best = -float("inf")
    for alignment in every_alignment(graph):
        elements = {n: alignment.elements[n] if n in members else others[n] for n in graph.groups}
        key = tuple(tuple(elements[n].reshape(-1).tolist()) for n in sorted(members))
        if key in seen:
            continue
        seen.add(key)
        best = max(best, objective.value(Alignment(graph, elements)))
    return best


@pytest.mark.parametrize(("name", "root"), [("heads", "k"), ("experts", "e")])
def test_a_family_is_updated_to_its_exact_optimum(name: str, root: str) -> None:
    for seed in range(3):
        pair = pair_of(name, seed)
        start = Alignment.random(pair.graph, seed)
        proposal = TreeObjective(Objective(pair), root).propose(start.elements)
        found = Objective(pair).value(Alignment(pair.graph, {**start.elements, **proposal}))
        assert found == pytest.approx(best_of_tree(pair, root, start.elements), rel=1e-9)


def test_nested_assignment_finds_the_best_of_a_wreath_product() -> None:
    graph = SymmetryGraph.from_spec({"w": "(p c[p]) ."}, {"w": (6, 1)}, sizes={"p": 3})
    generator = torch.Generator().manual_seed(0)
    own, inner = torch.randn(3, 3, generator=generator), torch.randn(6, 6, generator=generator)

    def value(alignment: Alignment) -> float:
        parents, units = alignment.flat("p"), alignment.flat("c")
        return float(own[torch.arange(3), parents].sum() + inner[torch.arange(6), units].sum())

    best = max(map(value, every_alignment(graph)))
    assignment = nested_assignment(graph, "p", {"p": own, "c": inner})
    assert value(Alignment(graph, assignment)) == pytest.approx(best)


@pytest.mark.parametrize("name", SPECS)
def test_a_hard_soft_alignment_acts_and_counts_like_the_alignment(name: str) -> None:
    pair = pair_of(name)
    alignment = Alignment.random(pair.graph, 1)
    soft = SoftAlignment.from_alignment(alignment)
    hard, moved = alignment.apply(dict(pair.b)), soft.apply(pair.b)
    assert all(torch.allclose(hard[n], moved[n], atol=1e-6) for n in hard)
    assert Objective(pair).value(soft) == pytest.approx(Objective(pair).value(alignment), rel=1e-6)
    assert soft.round() == alignment


@pytest.mark.parametrize("name", ["flatten", "heads", "experts", "grouped convolution", "concatenation"])
def test_the_centre_is_the_mean_of_the_group(name: str) -> None:
    pair = pair_of(name)
    graph = pair.graph
    assert graph.order <= 5000
    centre = SoftAlignment.centre(graph).apply(pair.b)
    total = {n: torch.zeros_like(t) for n, t in pair.b.items()}
    for alignment in every_alignment(graph):
        for n, tensor in alignment.apply(dict(pair.b)).items():
            total[n] += tensor / graph.order
    assert all(torch.allclose(centre[n], total[n], atol=1e-4) for n in total)


def test_gradients_flow_through_a_soft_alignment() -> None:
    pair = pair_of("heads")
    matrices = {n: m.clone().requires_grad_() for n, m in SoftAlignment.centre(pair.graph).matrices.items()}
    moved = SoftAlignment(pair.graph, matrices).apply(pair.b)
    sum(t.square().sum() for t in moved.values()).backward()
    assert all(m.grad is not None and bool(m.grad.abs().sum() > 0) for m in matrices.values())
