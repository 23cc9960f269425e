"""Deep-Align on groups whose units change signs or rotate."""

from __future__ import annotations

import pytest
import torch

import alignkit
from alignkit import Alignment, SymmetryGraph, Task
from alignkit.deepalign.relaxation import relax
from alignkit.deepalign.scores import comparable
from alignkit.errors import SolverError
from alignkit.graph.kinds import KINDS
from alignkit.solver import Problem
from alignkit.solvers.sinkhorn import Sinkhorn
from alignkit.testing import KIND_ARCHITECTURES, independent_pair, planted_pair

kinds = pytest.mark.parametrize("kind", KIND_ARCHITECTURES)


def unlabelled(pair, samples=64):
    return Task(pair.a, (pair.architecture.inputs(samples, seed=5), torch.zeros(samples)), "mse")


@kinds
def test_planted_elements_are_found_with_data_and_from_weights(kind):
    pair = planted_pair(KIND_ARCHITECTURES[kind](), seed=1)
    for given in ({"task": unlabelled(pair)}, {"input_shape": pair.architecture.input_shape}, {}):
        solution = alignkit.solve(pair.bind(), solver="deepalign", **given)
        assert solution.alignment == pair.answer
        assert solution.objective_after <= 1e-20 * solution.objective_before
    weights = pair.graph.bind(pair.a.state_dict(), pair.b.state_dict())
    assert alignkit.solve(weights, solver="deepalign").alignment == pair.answer


@kinds
def test_midpoint_steps_bring_the_outputs_in_the_middle_closer_in_any_axes(kind):
    pair = independent_pair(KIND_ARCHITECTURES[kind](), seed=2)
    measure, task = Sinkhorn(objective="outputs"), unlabelled(pair)
    problem = Problem(pair.bind(), None, task)

    def deviation(steps):
        found = alignkit.solve(pair.bind(), solver="deepalign", task=task, midpoint_steps=steps)
        return measure.objective(problem, found.alignment)

    without = deviation(0)
    assert deviation(40) < (1.0 if kind == "signed" else 0.9) * without
    move_a, move_b = (Alignment.random(pair.graph, seed) for seed in (7, 8))
    moved = pair.graph.bind(move_a.apply(pair.a), move_b.apply(pair.b))
    again = alignkit.solve(moved, solver="deepalign", task=task, midpoint_steps=40)
    assert measure.objective(Problem(moved, None, task), again.alignment) == pytest.approx(deviation(40), rel=1e-3)


@kinds
def test_without_midpoint_steps_the_distance_is_not_above_that_of_weight_matching(kind):
    if kind == "signed":
        pytest.skip("rounds of consensus, which look at more than the distance")
    pair = independent_pair(KIND_ARCHITECTURES[kind](), seed=3)
    matched = alignkit.solve(pair.bind())
    for given in ({"task": unlabelled(pair)}, {}):
        found = alignkit.solve(pair.bind(), solver="deepalign", midpoint_steps=0 if given else None, **given)
        assert found.objective_after <= matched.objective_after * (1 + 1e-6)


@pytest.mark.parametrize("kind", [kind for kind, facts in KINDS.items() if facts.mark])
def test_trained_encoders_take_permutations_alone(kind):
    mark = KINDS[kind].mark
    graph = SymmetryGraph.from_spec({"w": f"{mark}h .", "v": f". {mark}h"}, {"w": (4, 3), "v": (2, 4)})
    weights = {name: torch.randn(node.shape) for name, node in graph.tensors.items()}
    with pytest.raises(SolverError, match=r'encoder="learned" cannot take group \'h\', which .* Take encoder="probes"'):
        alignkit.solve(graph, weights, weights, solver="deepalign", encoder="learned")


def test_scores_of_signs_are_soft_in_both_signs():
    graph = SymmetryGraph.from_spec({"w": "-h ."}, {"w": (3, 2)})
    scores = comparable("signed", torch.tensor([[0.0, -9.0, 1.0], [5.0, 0.0, 0.0], [0.0, 1.0, -4.0]]).double())
    soft = relax(graph, {"h": scores[None]}, 6.0).alignment(0)
    assert soft.round().elements["h"].tolist() == [~1, 0, ~2]
    assert float(soft.matrices["h"][0, 1]) < -0.9
    turned = relax(graph, {"h": -scores[None]}, 6.0).alignment(0)
    torch.testing.assert_close(turned.matrices["h"], -soft.matrices["h"])
    assert not comparable("signed", torch.zeros(3, 3)).any()
