"""Activation matching: every group that a module shows is found, for every kind of module, and matched exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, relu

from alignkit.activations import CrossMoments, find_readings
from alignkit.alignment import Alignment
from alignkit.errors import SolverError
from alignkit.graph import PermutationGraph
from alignkit.solve import solve
from alignkit.solver import Problem
from alignkit.solvers.activation_matching import ActivationMatching
from alignkit.task import Task
from alignkit.testing.problems import (
    Architecture,
    attention,
    convnet,
    independent_pair,
    mlp,
    planted_pair,
    residual,
)


def matched(pair, inputs=None, **options):
    inputs = pair.architecture.inputs(64, seed=3) if inputs is None else inputs
    task = Task(pair.a, (inputs, torch.zeros(len(inputs))), "mse")
    return solve(pair.bind(), solver="activation_matching", task=task, **options)


# ---------------------------------------------------------------------- kinds of modules


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 5, batch_first=True, **options)
        width = options.get("proj_size", 5) * (2 if options.get("bidirectional") else 1)
        self.read = nn.Linear(width, 2)

    def forward(self, x):
        return self.read(self.rnn(x)[0][:, -1])


def recurrent(kind, gates, **options):
    """Two layers, each with its own units; in both directions each has two."""
    model = Recurrent(kind, num_layers=2, **options)
    tails = ["", "_reverse"] if options.get("bidirectional") else [""]
    spec = {"read.bias": "."}
    for layer in (0, 1):
        below = " + ".join(f"h0{tail}" for tail in tails).replace(" ", "") if layer else "."
        for tail in tails:
            own = f"h{layer}{tail}"
            fused = "+".join([own] * gates)
            spec |= {
                f"rnn.weight_ih_l{layer}{tail}": f"{fused} {below}",
                f"rnn.weight_hh_l{layer}{tail}": f"{fused} {own}",
                f"rnn.bias_ih_l{layer}{tail}": fused,
                f"rnn.bias_hh_l{layer}{tail}": fused,
            }
    spec["read.weight"] = ". " + "+".join(f"h1{tail}" for tail in tails)
    return Architecture(f"{kind} {options}", model, spec, (6, 3))


def projected_lstm():
    spec = {
        "rnn.weight_ih_l0": "c+c+c+c .",
        "rnn.weight_hh_l0": "c+c+c+c p",
        "rnn.bias_ih_l0": "c+c+c+c",
        "rnn.bias_hh_l0": "c+c+c+c",
        "rnn.weight_hr_l0": "p c",
        "read.weight": ". p",
        "read.bias": ".",
    }
    return Architecture("projected LSTM", Recurrent("LSTM", proj_size=4), spec, (6, 3))


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 5)
        self.read = nn.Linear(5, 2)

    def forward(self, x):
        state = x.new_zeros(len(x), 5)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.read(state)


def cells():
    spec = {"cell.weight_ih": "h+h+h .", "cell.weight_hh": "h+h+h h", "cell.bias_ih": "h+h+h", "cell.bias_hh": "h+h+h"}
    return Architecture("GRU cell", Cells(), {**spec, "read.weight": ". h", "read.bias": "."}, (4, 3))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 7, batch_first=True)
        self.read = nn.Linear(6, 3)

    def forward(self, x):
        return self.read(self.block(self.embed(x)))


def encoder():
    fused = "(heads qk[heads])+(heads qk[heads])+(heads v[heads])"
    spec = {
        "embed.weight": "model .",
        "embed.bias": "model",
        "block.self_attn.in_proj_weight": f"{fused} model",
        "block.self_attn.in_proj_bias": fused,
        "block.self_attn.out_proj.weight": "model (heads v[heads])",
        "block.self_attn.out_proj.bias": "model",
        "block.linear1.weight": "hidden model",
        "block.linear1.bias": "hidden",
        "block.linear2.weight": "model hidden",
        "block.linear2.bias": "model",
        "read.weight": ". model",
        "read.bias": ".",
    }
    spec |= {f"block.norm{i}.{part}": "model" for i in (1, 2) for part in ("weight", "bias")}
    return Architecture("encoder", Encoder(), spec, (5, 4), {"heads": 2, "qk": 3, "v": 3})


def up_and_down():
    """Convolutions of every kind, with norms and a learned slope."""
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 2),
        nn.GroupNorm(1, 4),
        nn.PReLU(4),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.InstanceNorm2d(4, affine=True),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 5, 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 6, 3, groups=1),
        nn.Flatten(),
        nn.Linear(6 * 9, 2),
    )
    spec = {"0.weight": ". c . .", "0.bias": "c", "2.weight": "c", "3.weight": "c . . .", "3.bias": "c"}
    spec |= {f"{i}.{part}": "c" for i in (1, 4) for part in ("weight", "bias")}
    spec |= {"6.weight": "c d . .", "6.bias": "d", "8.weight": "e d . .", "8.bias": "e"}
    return Architecture("up and down", model, {**spec, "10.weight": ". (e 9)", "10.bias": "."}, (2, 5, 5))


def grouped():
    """A grouped convolution: groups of channels, and the channels inside them."""
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 9, 2, groups=3), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(9 * 9, 2))
    spec = {"0.weight": "(g i[g]) . . .", "0.bias": "(g i[g])", "2.weight": "(g o[g]) i[g] . .", "2.bias": "(g o[g])"}
    return Architecture("grouped", model, {**spec, "5.weight": ". (g o[g] 9)", "5.bias": "."}, (1, 4, 4), {"g": 3})


class Mixer(nn.Module):
    """Mixes tokens and then channels: the units of one group lie on the sample axes of the other."""

    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Linear(4, 6), nn.Linear(6, 2)
        self.token_up, self.token_down = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.token_down(relu(self.token_up(x.mT))).mT
        return self.read(relu(x).mean(1))


def mixer():
    spec = {"embed.weight": "c .", "embed.bias": "c", "read.weight": ". c", "read.bias": "."}
    spec |= {"token_up.weight": "t .", "token_up.bias": "t", "token_down.weight": ". t", "token_down.bias": "."}
    return Architecture("mixer", Mixer(), spec, (5, 4))


class Transposed(nn.Module):
    """A module that the table does not know: a linear layer whose weight is [in, out], both of one size."""

    def __init__(self, size):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(size, size))

    def forward(self, x):
        return x @ self.kernel


def unknown_module():
    model = nn.Sequential(Transposed(6), nn.Tanh(), Transposed(6), nn.Tanh(), nn.Linear(6, 2))
    spec = {"0.kernel": ". a", "2.kernel": "a b", "4.weight": ". b", "4.bias": "."}
    return Architecture("unknown module", model, spec, (6,))


def normalised_weights():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    path = "0.parametrizations.weight"
    spec = {f"{path}.original0": "h .", f"{path}.original1": "h .", "0.bias": "h", "2.weight": ". h", "2.bias": "."}
    return Architecture("weight norm", model, spec, (4,))


KINDS = {
    "mlp": lambda: mlp(4, 8, 7, 3),
    "convnet": convnet,
    "residual": residual,
    "attention": attention,
    "encoder": encoder,
    "rnn": lambda: recurrent("RNN", 1),
    "lstm": lambda: recurrent("LSTM", 4),
    "gru both ways": lambda: recurrent("GRU", 3, bidirectional=True),
    "projected lstm": projected_lstm,
    "cells": cells,
    "up and down": up_and_down,
    "grouped": grouped,
    "mixer": mixer,
    "unknown module": unknown_module,
    "weight norm": normalised_weights,
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("activation", ["post", "pre"])
@pytest.mark.parametrize("statistic", ["correlation", "covariance"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_permuted_copies_are_recovered_from_activations_alone(kind, statistic, activation):
    pair = planted_pair(KINDS[kind](), seed=1)
    pair.graph.verify(pair.a, pair.architecture.inputs(4))
    found = matched(pair, activation=activation, statistic=statistic)
    assert found.stats["groups_by_weights"] == 0, found.history
    assert found.objective_after < 1e-9 * found.objective_before
    assert found.alignment == pair.answer


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


class Functional(nn.Module):
    """Uses the weights of its first layer itself, so that no hook of that layer is ever called."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.read = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.bare = nn.Parameter(torch.zeros(5))

    def forward(self, x):
        hidden = linear(x, self.first.weight, self.first.bias)
        hidden = linear(relu(hidden), self.second.weight, self.second.bias)
        return self.read(relu(hidden) + self.bare)


def functional():
    spec = {"first.weight": "a .", "first.bias": "a", "second.weight": "b a", "second.bias": "b", "bare": "b"}
    return Architecture("functional", Functional(), {**spec, "read.weight": ". b", "read.bias": "."}, (4,))


def test_groups_that_are_not_seen_are_matched_by_weights_and_named():
    pair = planted_pair(functional(), seed=0)
    found = matched(pair)
    assert found.alignment == pair.answer
    assert found.stats["groups_by_weights"] == 1
    assert found.history[-1].note == "not seen in activations, matched by weights: a"


def test_constant_units_are_told_apart_by_their_weights():
    pair = planted_pair(mlp(4, 8, 3), seed=0)
    with torch.no_grad():
        for model, bias in ((pair.a, pair.a[0].bias), (pair.b, pair.b[0].bias)):
            dead = model[0].weight[:, 0] > model[0].weight[:, 0].median()
            bias[dead] -= 100
    found = matched(pair)
    assert found.alignment == pair.answer


def test_wrong_places_are_not_used():
    """The spec claims that the second layer reads the units of the first. A shuffle shows that it does not."""

    class Sorts(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.two(self.one(x).sort(-1).values)

    model = Sorts()
    graph = PermutationGraph.from_spec(
        {"one.weight": "h .", "one.bias": "h", "two.weight": ". h", "two.bias": "."}, model
    )
    task = Task(model, (torch.randn(16, 4), torch.zeros(16)), "mse")
    readings, _ = find_readings(graph, task, task.checked(model))
    assert {reading.place.label for reading in readings["h"]} == {"output"}


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
            found = matched(pair, inputs, activation=activation, statistic=statistic)
            own = table[torch.arange(5), found.alignment.perms["h1"]].sum()
            assert float(own) == pytest.approx(float(values.max()), abs=1e-6)
            assert found.history[0].objective == pytest.approx(-float(values.max()) / 5, abs=1e-6)


def test_families_are_matched_as_well_as_any_order_of_heads_and_units():
    pair = independent_pair(encoder(), seed=0)
    found = matched(pair).alignment
    task = Task(pair.a, (pair.architecture.inputs(64, seed=3), torch.zeros(64)), "mse")
    seen = ActivationMatching()._observe(Problem(pair.bind(), task=task))
    orders = torch.tensor(list(itertools.permutations(range(3))))
    inner = [torch.stack(pair) for pair in itertools.product(orders, repeat=2)]
    values = [
        seen.objective({**found.perms, "heads": heads, "qk": qk, "v": v})
        for heads in (torch.tensor([0, 1]), torch.tensor([1, 0]))
        for qk in inner
        for v in inner
    ]
    assert seen.objective(found.perms) == pytest.approx(min(values), abs=1e-9)


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
    found = solve(pair.bind(), solver="activation_matching", input_shape=(2, 6, 6), probes=300)
    assert found.alignment == pair.answer
    assert found.stats["samples"] >= 300
    again = solve(pair.bind(), solver="activation_matching", input_shape=(2, 6, 6), probes=300)
    assert again.history == found.history
    assert solve(pair.bind(), solver="activation_matching", input_shape=(2, 6, 6), seed=1).history != found.history


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.read = nn.Embedding(9, 5), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, tokens):
        return self.read(relu(self.up(self.embed(tokens)))).mean(1)


def test_probes_have_the_shape_and_kind_of_the_tasks_inputs():
    spec = {"embed.weight": ". e", "up.weight": "h e", "up.bias": "h", "read.weight": ". h", "read.bias": "."}
    pair = planted_pair(Architecture("words", Words(), spec, (7,)), seed=0)
    tokens = torch.randint(0, 9, (8, 7), generator=torch.Generator().manual_seed(0))
    task = Task(pair.a, (tokens, torch.zeros(8)), "mse")
    found = solve(pair.bind(), solver="activation_matching", task=task, probes=100)
    assert found.alignment == pair.answer
    assert found.stats["samples"] == 700


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
    found = solve(pair.bind(), solver="activation_matching", task=task)
    init = Alignment.random(pair.graph, 3)
    assert solve(pair.bind(), solver="activation_matching", task=task, init=init).alignment == found.alignment
    assert not any(module._forward_hooks for module in task._model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
