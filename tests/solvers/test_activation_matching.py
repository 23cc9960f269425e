"""Activation matching: every group that a module shows is found, for every kind of module, and matched exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from alignkit.activations import CrossMoments, find_readings
from alignkit.errors import SolverError
from alignkit.graph import SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.solve import solve
from alignkit.solver import Problem
from alignkit.solvers.activation_matching import ActivationMatching
from alignkit.tasks.task import Task
from alignkit.testing import decoder
from alignkit.testing.problems import attention, convnet, independent_pair, mlp, planted_pair
from alignkit.tracing import trace
from helpers.activation_problems import KINDS, encoder, functional, words


def matched(pair, inputs=None, **options):
    inputs = pair.architecture.inputs(64, seed=3) if inputs is None else inputs
    task = Task(pair.a, (inputs, torch.zeros(len(inputs))), "mse")
    return solve(pair.bind(), solver="activation_matching", task=task, **options)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("activation", ["post", "pre"])
@pytest.mark.parametrize("statistic", ["correlation", "covariance"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_permuted_copies_are_recovered_from_activations_alone(kind, statistic, activation):
    pair = planted_pair(KINDS[kind](), seed=1)
    pair.graph.verify(pair.a, pair.architecture.inputs(4))
    solution = matched(pair, activation=activation, statistic=statistic)
    assert solution.stats["groups_by_weights"] == 0, solution.history
    assert solution.objective_after < 1e-9 * solution.objective_before
    assert solution.alignment == pair.answer


@pytest.mark.parametrize("kind", ["attention", "convnet", "encoder", "lstm", "up and down"])
def test_traced_graphs_are_matched_as_written_ones(kind):
    architecture = KINDS[kind]()
    pair = planted_pair(architecture, seed=2)
    inputs = architecture.inputs(32)
    graph = trace(pair.a, inputs[:2])
    shuffle = Alignment.random(graph, 5)
    task = Task(pair.a, (inputs, torch.zeros(32)), "mse")
    solution = solve(graph.bind(pair.a, shuffle.apply(pair.a)), solver="activation_matching", task=task)
    assert solution.alignment == shuffle.inverse()
    assert solution.stats["groups_by_weights"] == 0


def test_weights_that_say_nothing_are_no_obstacle():
    """A and B compute the same with units of different scales, so that weights mislead and activations do not."""
    pair = planted_pair(mlp(4, 8, 3), seed=2)
    with torch.no_grad():
        scale = torch.logspace(-2, 2, 8)[torch.randperm(8, generator=torch.Generator().manual_seed(0))]
        pair.b[0].weight *= scale[:, None]
        pair.b[0].bias *= scale
        pair.b[2].weight /= scale
    assert matched(pair).alignment == pair.answer
    assert solve(pair.bind()).alignment != pair.answer


# ---------------------------------------------------------------------- what is not seen


def test_groups_that_are_not_seen_are_matched_by_weights_and_named():
    pair = planted_pair(functional(), seed=0)
    solution = matched(pair)
    assert solution.alignment == pair.answer
    assert solution.stats["groups_by_weights"] == 1
    assert solution.history[-1].note == "not seen in activations, matched by weights: a"


def test_constant_units_are_told_apart_by_their_weights():
    pair = planted_pair(mlp(4, 8, 3), seed=0)
    with torch.no_grad():
        for model, bias in ((pair.a, pair.a[0].bias), (pair.b, pair.b[0].bias)):
            dead = model[0].weight[:, 0] > model[0].weight[:, 0].median()
            bias[dead] -= 100
    solution = matched(pair)
    assert solution.alignment == pair.answer


def test_wrong_places_are_not_used():
    """The spec claims that the second layer reads the units of the first. A shuffle shows that it does not."""

    class Sorts(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.two(self.one(x).sort(-1).values)

    model = Sorts()
    graph = SymmetryGraph.from_spec({"one.weight": "h .", "one.bias": "h", "two.weight": ". h", "two.bias": "."}, model)
    task = Task(model, (torch.randn(16, 4), torch.zeros(16)), "mse")
    readings, _ = find_readings(graph, task, task.checked(model))
    assert {reading.site.label for reading in readings["h"]} == {"output"}


# ---------------------------------------------------------------------- statistics


def test_the_result_is_the_best_of_all_orders():
    pair = independent_pair(mlp(3, 5, 2), seed=4)
    inputs = pair.architecture.inputs(40, seed=3)
    for activation, upto in (("post", 2), ("pre", 1)):
        a, b = (model[:upto](inputs).detach().double() for model in (pair.a, pair.b))
        for statistic in ("correlation", "covariance"):
            left, right = (side - side.mean(0) for side in (a, b))
            table = left.T @ right / len(inputs)
            if statistic == "correlation":
                table = table / left.std(0, correction=0).clamp(min=1e-12)[:, None]
                table = table / right.std(0, correction=0).clamp(min=1e-12)
            orders = [torch.tensor(order) for order in itertools.permutations(range(5))]
            values = torch.stack([table[torch.arange(5), order].sum() for order in orders])
            solution = matched(pair, inputs, activation=activation, statistic=statistic)
            own = table[torch.arange(5), solution.alignment.elements["h1"]].sum()
            assert float(own) == pytest.approx(float(values.max()), abs=1e-6)
            assert solution.history[0].objective == pytest.approx(-float(values.max()) / 5, abs=1e-6)


def test_families_are_matched_as_well_as_any_order_of_heads_and_units():
    pair = independent_pair(encoder(), seed=0)
    found = matched(pair).alignment
    task = Task(pair.a, (pair.architecture.inputs(64, seed=3), torch.zeros(64)), "mse")
    seen = ActivationMatching()._observe(Problem(pair.bind(), task=task))
    orders = torch.tensor(list(itertools.permutations(range(3))))
    inner = [torch.stack(pair) for pair in itertools.product(orders, repeat=2)]
    values = [
        seen.objective({**found.elements, "heads": heads, "qk": qk, "v": v})
        for heads in (torch.tensor([0, 1]), torch.tensor([1, 0]))
        for qk in inner
        for v in inner
    ]
    assert seen.objective(found.elements) == pytest.approx(min(values), abs=1e-9)


def test_statistics_do_not_depend_on_how_the_data_is_cut():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(90, 4, generator=generator, dtype=torch.float64) + 1e4
    b = a.flip(1) + torch.randn(90, 4, generator=generator, dtype=torch.float64)
    cut = CrossMoments()
    for rows in torch.arange(90).split([10, 50, 1, 29]):
        cut.update(a[rows].clone(), b[rows].clone())
    both = torch.corrcoef(torch.cat([a, b], 1).T)[:4, 4:]
    assert torch.allclose(cut.correlation(), both, atol=1e-9)
    assert torch.allclose(cut.covariance(), torch.cov(torch.cat([a, b], 1).T, correction=0)[:4, 4:], atol=1e-8)


def test_max_batches_reads_only_the_first():
    pair = independent_pair(mlp(4, 8, 3), seed=0)
    inputs = pair.architecture.inputs(64)
    batches = [(part, torch.zeros(len(part))) for part in inputs.split(16)]
    task, first = (Task(pair.a, data, "mse") for data in (batches, batches[:2]))
    limited = solve(pair.bind(), solver="activation_matching", task=task, max_batches=2)
    assert limited.stats["samples"] == 32
    assert limited.alignment == solve(pair.bind(), solver="activation_matching", task=first).alignment


# ---------------------------------------------------------------------- without data


def test_probes_need_no_data():
    pair = planted_pair(convnet(), seed=0)
    solution = solve(pair.bind(), solver="activation_matching", input_shape=(2, 6, 6), probes=300)
    assert solution.alignment == pair.answer
    assert solution.stats["samples"] >= 300
    again = solve(pair.bind(), solver="activation_matching", input_shape=(2, 6, 6), probes=300)
    assert again.history == solution.history
    assert solve(pair.bind(), solver="activation_matching", input_shape=(2, 6, 6), seed=1).history != solution.history


def test_probes_have_the_shape_and_kind_of_the_tasks_inputs():
    pair = planted_pair(words(), seed=0)
    tokens = torch.randint(0, 9, (8, 7), generator=torch.Generator().manual_seed(0))
    task = Task(pair.a, (tokens, torch.zeros(8)), "mse")
    solution = solve(pair.bind(), solver="activation_matching", task=task, probes=100)
    assert solution.alignment == pair.answer
    assert solution.stats["samples"] == 700


def test_state_dicts_are_enough_with_a_task():
    pair = planted_pair(attention(), seed=0)
    inputs = pair.architecture.inputs(32)
    task = Task(pair.a, (inputs, torch.zeros(32)), "mse")
    bound = pair.graph.bind(pair.a.state_dict(), pair.b.state_dict())
    assert solve(bound, solver="activation_matching", task=task).alignment == pair.answer
    with pytest.raises(SolverError, match="bind modules"):
        solve(bound, solver="activation_matching", input_shape=(5, 4))
    with pytest.raises(SolverError, match="pass task="):
        solve(bound, solver="activation_matching")


# ---------------------------------------------------------------------- failures


def test_nan_in_the_data_is_named():
    pair = planted_pair(mlp(4, 8, 3), seed=0)
    inputs = pair.architecture.inputs(32)
    batches = [(part, torch.zeros(len(part))) for part in inputs.split(16)]
    batches[1] = (torch.full((16, 4), torch.nan), torch.zeros(16))
    task = Task(pair.a, batches, "mse")
    with pytest.raises(SolverError, match=r"batch 1: the input of module '2' holds NaN"):
        solve(pair.bind(), solver="activation_matching", task=task)


def test_start_does_not_matter_and_hooks_are_gone():
    pair = independent_pair(attention(), seed=0)
    inputs = pair.architecture.inputs(32)
    task = Task(pair.a, (inputs, torch.zeros(32)), "mse")
    solution = solve(pair.bind(), solver="activation_matching", task=task)
    init = Alignment.random(pair.graph, 3)
    assert solve(pair.bind(), solver="activation_matching", task=task, init=init).alignment == solution.alignment
    assert not any(module._forward_hooks for module in task.model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


class TestStreamsThatRotate:
    """Residual streams are matched by activations and weights together, and nothing that is known is lost."""

    @pytest.mark.parametrize("stream", ["orthogonal", "centred"])
    def test_the_sum_goes_from_what_activations_say_to_what_weights_say(self, stream):
        pair = independent_pair(decoder(stream), seed=1)
        found = {weights: matched(pair, weights=weights) for weights in (0.0, 1e-6, 1.0, 1e6)}
        streams = {weights: solution.alignment.elements["model"] for weights, solution in found.items()}
        torch.testing.assert_close(streams[1e-6], streams[0.0], atol=1e-4, rtol=0)
        assert float((streams[1.0] - streams[0.0]).norm()) > 0.1

        def gained(weights):
            then = solve(pair.bind(), solver="weight_matching", init=found[weights].alignment)
            return then.objective_init - then.objective_after

        assert gained(0.0) > gained(1.0) > 10 * gained(1e6)

    @pytest.mark.parametrize("weights", [0.0, 0.1, 1.0, 10.0])
    @pytest.mark.parametrize("stream", ["orthogonal", "centred"])
    def test_planted_rotations_are_found_with_any_weight(self, stream, weights):
        pair = planted_pair(decoder(stream), seed=2)
        solution = matched(pair, weights=weights)
        assert solution.objective_after < 1e-9 * solution.objective_before

    def test_orders_alone_are_found_as_before(self):
        pair = independent_pair(attention(), seed=1)
        assert matched(pair, weights=0.0).alignment == matched(pair).alignment == matched(pair, weights=5.0).alignment
