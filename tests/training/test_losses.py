"""What aligners learn from: losses are lowest at the right alignment, and changed networks compute the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alignkit import Alignment, SymmetryGraph, Task, average, builders, reset_batchnorm, trace
from alignkit.deepalign.consensus import soft_elements
from alignkit.deepalign.relaxation import relax
from alignkit.matching.families import best_element
from alignkit.tasks.batches import Batch
from alignkit.tasks.merged_runs import merged_runs
from alignkit.testing import attention, convnet, mlp, planted_pair, residual
from alignkit.training.augment import Augmentations, augment, find_freedoms
from alignkit.training.losses import alignment_loss, interpolation_loss, move_softly, supervised_loss

BUILDS = [lambda: mlp(6, 16, 12, 4), convnet, attention, residual]
NAMES = ["mlp", "convnet", "attention", "residual"]
architectures = pytest.mark.parametrize("build", BUILDS, ids=NAMES)


def relax_pairs(graph, scores, sharpness):
    return relax(graph, {name: torch.stack([one[name] for one in scores]) for name in scores[0]}, sharpness)


def flat_matrices(alignment):
    """The alignment as scores: 1 where a unit of A belongs to one of B, over all parents."""
    return {n: nn.functional.one_hot(alignment.flat(n)).float() for n in alignment.graph.groups}


def noise_scores(graph, seed):
    generator = torch.Generator().manual_seed(seed)
    units = {name: graph.instances(name) * graph.groups[name].size for name in graph.groups}
    return {name: torch.randn(n, n, generator=generator) for name, n in units.items()}


def weights_of(pair, side):
    state = side.state_dict()
    return {name: state[name] for name in pair.graph.tensors}


@pytest.fixture(params=BUILDS, ids=NAMES)
def planted(request):
    return planted_pair(request.param(), seed=3)


def losses_of(planted, relaxed):
    """All three losses of one planted pair."""
    a, b = weights_of(planted, planted.a), weights_of(planted, planted.b)
    inputs = planted.architecture.inputs(32)
    task = Task(planted.a, (inputs, inputs), "mse")
    moved, runs = move_softly(relaxed, [b]), merged_runs(task)
    with torch.no_grad():  # what A does where it takes the place of a network between two
        targets = runs(0.5, next(iter(task.batches))).outputs(task.checked(planted.a), inputs)
    batch = Batch(inputs, targets, "samples")
    return {
        "supervised": supervised_loss(relaxed, [planted.answer]),
        "alignment": alignment_loss(planted.graph, [a], moved),
        "interpolation": interpolation_loss([runs], planted.graph, [a], moved, [0.5], [batch]),
    }


def test_every_loss_vanishes_at_the_right_alignment(planted):
    relaxed = relax_pairs(planted.graph, [flat_matrices(planted.answer)], 60.0)
    for name, loss in losses_of(planted, relaxed).items():
        assert float(loss) == pytest.approx(0.0, abs=1e-4), name


def test_every_loss_is_larger_at_a_wrong_alignment(planted):
    wrong = Alignment.random(planted.graph, 11)
    relaxed = relax_pairs(planted.graph, [flat_matrices(wrong)], 60.0)
    for name, loss in losses_of(planted, relaxed).items():
        assert float(loss) > 0.02, name


@pytest.mark.parametrize("loss", ["supervised", "alignment", "interpolation"])
def test_a_step_against_the_gradient_lowers_the_loss(planted, loss):
    scores = {n: m.requires_grad_() for n, m in noise_scores(planted.graph, 5).items()}
    value = losses_of(planted, relax_pairs(planted.graph, [scores], 4.0))[loss]
    gradients = torch.autograd.grad(value, list(scores.values()))
    size = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    before = float(value.detach())
    assert size > 0
    for step in (0.3, 0.1, 0.03):
        stepped = {n: (m - step * g / size).detach() for (n, m), g in zip(scores.items(), gradients, strict=True)}
        if float(losses_of(planted, relax_pairs(planted.graph, [stepped], 4.0))[loss]) < before:
            return
    pytest.fail("no step against the gradient lowers the loss")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["supervised", "alignment"])
def test_descent_on_scores_finds_the_permutation(planted, loss):
    scores = {n: (0.1 * m).requires_grad_() for n, m in noise_scores(planted.graph, 6).items()}
    optimizer = torch.optim.Adam(list(scores.values()), lr=0.1)
    for _ in range(200):
        value = losses_of(planted, relax_pairs(planted.graph, [scores], 4.0))[loss]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    found = Alignment(planted.graph, best_element(planted.graph, {n: m.detach().double() for n, m in scores.items()}))
    right = sum(int((found.flat(n) == planted.answer.flat(n)).sum()) for n in planted.graph.groups)
    total = sum(len(found.flat(n)) for n in planted.graph.groups)
    # Descent on labels finds everything; on the distance it may end in a local minimum.
    assert right == total if loss == "supervised" else right > total / 3


@architectures
def test_pairs_relaxed_together_are_those_relaxed_alone(build):
    graph = build().graph()
    scores = [noise_scores(graph, seed) for seed in range(3)]
    together = relax_pairs(graph, scores, 3.0)
    for at, one in enumerate(scores):
        alone = relax_pairs(graph, [one], 3.0)
        for name in graph.groups:
            torch.testing.assert_close(together.soft[name][at], alone.soft[name][0], atol=2e-3, rtol=0)


@architectures
def test_the_relaxation_is_that_of_the_solver(build):
    graph = build().graph()
    scores = noise_scores(graph, 1)
    expected = soft_elements(graph, {n: m.double() for n, m in scores.items()}, 0.7)
    for name, matrix in relax_pairs(graph, [scores], 0.7).alignment(0).matrices.items():
        torch.testing.assert_close(matrix.double(), expected[name], atol=0.02, rtol=0)


def test_groups_without_scores_are_at_the_centre_and_cost_nothing():
    graph = mlp(6, 8, 5, 4).graph()
    scores = {"h1": noise_scores(graph, 0)["h1"]}
    relaxed = relax_pairs(graph, [scores], 3.0)
    torch.testing.assert_close(relaxed.alignment(0).matrices["h2"], torch.full((5, 5), 0.2))
    answer = Alignment.random(graph, 0)
    alone = supervised_loss(relaxed, [answer])
    target = answer.elements["h1"]
    rows = nn.functional.cross_entropy(relaxed.logits["h1"][0], target)
    columns = nn.functional.cross_entropy(relaxed.logits["h1"][0].T, target.argsort())
    torch.testing.assert_close(alone, (rows + columns) / 2)


def test_constant_scores_have_finite_gradients():
    graph = mlp(6, 8, 5, 4).graph()
    scores = {n: torch.full_like(m, 0.3).requires_grad_() for n, m in noise_scores(graph, 0).items()}
    supervised_loss(relax_pairs(graph, [scores], 3.0), [Alignment.random(graph, 0)]).backward()
    assert all(bool(torch.isfinite(m.grad).all()) for m in scores.values())


# ---------------------------------------------------------------------- augmentations


class LayerNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x):
        return self.down(torch.relu(self.norm(self.up(x))))


def activated(activation):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.down(activation(self.up(x)))

    return Network()


SPEC = {"up.weight": "h .", "up.bias": "h", "down.weight": ". h", "down.bias": "."}


def freedoms_of(model, spec, inputs):
    graph = SymmetryGraph.from_spec(spec, like=model)
    weights = {name: model.eval().state_dict()[name] for name in graph.tensors}
    return graph, weights, find_freedoms(graph, model, Batch(inputs, inputs, "inputs"))


@pytest.mark.parametrize(
    ("activation", "kinds"),
    [
        (torch.relu, {"positive"}),
        (torch.tanh, {"sign"}),
        (lambda x: torch.sin(30 * x), {"sign"}),
        (nn.functional.gelu, set()),
        (lambda x: x, {"positive", "sign"}),
    ],
    ids=["relu", "tanh", "sin", "gelu", "linear"],
)
def test_freedoms_are_those_of_the_activation(activation, kinds):
    torch.manual_seed(0)
    _, _, freedoms = freedoms_of(activated(activation), SPEC, torch.randn(16, 6))
    assert {freedom.kind for freedom in freedoms} == kinds


@pytest.mark.parametrize("build", BUILDS[:1] + BUILDS[1:2] + [LayerNormed], ids=["mlp", "convnet", "layernorm"])
def test_rescaling_moves_weights_and_not_the_function(build):
    torch.manual_seed(1)
    if build is LayerNormed:
        model, spec, inputs = LayerNormed(), SPEC | {"norm.weight": "h", "norm.bias": "h"}, torch.randn(16, 6)
    else:
        architecture = build()
        model = planted_pair(architecture, seed=1).a
        spec, inputs = architecture.spec, architecture.inputs(16)
    graph, weights, freedoms = freedoms_of(model, spec, inputs)
    assert {freedom.group for freedom in freedoms} == set(graph.groups)
    settings = Augmentations(noise=0, zeroing=0, scaling=0)
    changed = augment(graph, weights, freedoms, settings, torch.Generator().manual_seed(2))
    moved = torch.func.functional_call(model, changed, inputs, strict=False)
    torch.testing.assert_close(moved, model(inputs), rtol=1e-4, atol=1e-5)
    assert all(
        any(not torch.allclose(changed[name], weights[name], rtol=0.05) for name in graph.tensors_of(group))
        for group in graph.groups
    )


def test_dimensions_of_heads_can_be_rescaled_and_flipped():
    architecture = attention()
    model = planted_pair(architecture, seed=1).a
    graph = SymmetryGraph.from_spec(architecture.spec, like=model, sizes=architecture.sizes)
    inputs = architecture.inputs(8)
    freedoms = find_freedoms(graph, model, Batch(inputs, inputs, "inputs"))
    found = {(freedom.group, freedom.kind) for freedom in freedoms}
    assert found == {(group, kind) for group in ("qk", "v") for kind in ("positive", "sign")}


def test_noise_and_zeros_have_the_size_that_was_asked_for():
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    graph = builders.mlp(model)
    weights = dict(model.state_dict())
    shares, levels = [], []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        only = {"scaling": 0, "rescaling": 1, "flips": False}
        zeroed = augment(graph, weights, (), Augmentations(noise=0, **only), generator)
        shares.append(float((zeroed["0.weight"] == 0).float().mean()))
        generator = torch.Generator().manual_seed(seed)
        noisy = augment(graph, weights, (), Augmentations(zeroing=0, **only), generator)
        levels.append(float((noisy["0.weight"] - weights["0.weight"]).std() / weights["0.weight"].std()))
    assert max(shares) < 0.42 and min(shares) < 0.05 and max(shares) > 0.3
    assert max(levels) < 1.05 and min(levels) < 0.15 and max(levels) > 0.8


def test_the_same_seed_changes_a_network_in_the_same_way():
    model = planted_pair(convnet(), seed=1).a
    graph = convnet().graph()
    weights = {name: model.state_dict()[name] for name in graph.tensors}
    one, same, other = (
        augment(graph, weights, (), Augmentations(), torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert torch.equal(one["1.running_var"], weights["1.running_var"])


# ---------------------------------------------------------------------- networks with running statistics


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_the_loss_between_networks_is_that_of_merges_with_statistics_of_their_own(share):
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval() for _ in range(2))
    b[1].running_mean += 3
    inputs, targets = torch.randn(64, 6), torch.randint(3, (64,))
    task, graph = Task(a, (inputs, targets), "cross_entropy"), trace(a, inputs[:2])
    weights = [{name: side.state_dict()[name] for name in graph.tensors} for side in (a, b)]
    runs, batches = [merged_runs(task)], [Batch(inputs, targets, "samples")]
    loss = interpolation_loss(runs, graph, weights[:1], weights[1:], [share], batches)
    merged = average([a, b], [1 - share, share])
    expected = b if share == 1 else reset_batchnorm(merged, [inputs])
    assert float(loss) == pytest.approx(task.evaluate(expected).loss, rel=0.02)
