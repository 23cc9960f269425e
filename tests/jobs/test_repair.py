"""Repairing brings the statistics of merged networks back to those of their parents, for any architecture."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, relu

from alignkit.errors import MergeError, TaskError
from alignkit.graph import builders
from alignkit.jobs.average import average
from alignkit.jobs.repair import channel_layers, repair, reset_batchnorm
from alignkit.jobs.solve import solve
from alignkit.tasks.task import Task
from alignkit.testing.problems import attention, convnet


class Zoo(nn.Module):
    """One layer of many kinds, a norm of every kind between them."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.group_norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.up_grouped = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.tokens = nn.Linear(4, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer_norm = nn.LayerNorm(8)
        self.drop = nn.Dropout()
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))

    def forward(self, x):
        x = relu(self.group_norm(self.grouped(relu(self.norm(self.wide(x))))))
        x = self.tokens(relu(self.up_grouped(relu(self.up(x)))).flatten(2).transpose(1, 2))
        x = self.layer_norm(x + self.attend(x, x, x)[0])
        return self.head(self.drop(x).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(relu(self.mix(self.embed(tokens))))


def family(build, count=3):
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        models.append(build())
    return models


def layer_statistics(model, inputs):
    """Mean and deviation of every layer's channels in eval mode, measured here and not by the code under test."""
    found, layers, handles = {}, channel_layers(model), []
    for path in layers:

        def hook(module, args, output, path=path):
            out = output[0] if isinstance(output, tuple) else output
            rows = out.movedim(layers[path].axis, -1).flatten(0, -2).double()
            found[path] = rows.mean(0), rows.std(0, correction=0)

        handles.append(model.get_submodule(path).register_forward_hook(hook))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        copy.copy(model).eval()(inputs)
    torch.backends.mha.set_fastpath_enabled(fast)
    for handle in handles:
        handle.remove()
    return found


# ---------------------------------------------------------------------- REPAIR


@pytest.mark.parametrize(
    ("build", "shape"),
    [(Zoo, (3, 8, 8)), (lambda: attention().model, (5, 4)), (lambda: convnet().model, (2, 6, 6))],
    ids=["zoo", "attention", "convnet"],
)
def test_every_layer_has_the_statistics_of_its_parents(build, shape):
    parents = [model.eval() for model in family(build)]
    inputs = torch.randn(64, *shape, generator=torch.Generator().manual_seed(9))
    shares = [0.5, 0.3, 0.2]
    fixed = repair(average(parents, shares), parents, [(inputs, torch.zeros(64))], shares)
    wanted = [layer_statistics(parent, inputs) for parent in parents]
    statistics = layer_statistics(fixed, inputs)
    behind_norm = {"wide", "0"}
    for path in statistics.keys() - behind_norm:
        for part in (0, 1):
            expected = sum(share * side[path][part] for share, side in zip(shares, wanted, strict=True))
            assert torch.allclose(statistics[path][part], expected, atol=1e-3, rtol=1e-2), f"{path}: {part}"


def test_a_network_without_change_is_left_as_it_is():
    """Merging a network with itself loses nothing, so there is nothing to repair."""
    model = Zoo().eval()
    inputs = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    model = reset_batchnorm(model, inputs)
    fixed = repair(average([model, model]), [model, model], inputs)
    with torch.no_grad():
        assert torch.allclose(fixed(inputs), model(inputs), atol=1e-4)


def test_nothing_that_was_passed_changes():
    models = [model.train() for model in family(Zoo)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    state = torch.get_rng_state()
    fixed = repair(models[0], models[1:], torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert fixed.training
    for model, kept in zip(models, before, strict=True):
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())
        assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def test_shared_weights_and_silent_channels_stay_finite():
    parents = family(Tied, 2)
    for parent in parents:
        parent.mix.weight.data[2] = 0
    fixed = repair(average(parents), parents, torch.arange(7).repeat(4).reshape(4, 7))
    assert fixed.head.weight is fixed.embed.weight
    assert all(bool(torch.isfinite(tensor).all()) for tensor in fixed.state_dict().values())
    assert torch.equal(fixed.embed.weight, average(parents).embed.weight), "a tied weight was rescaled"
    assert not torch.equal(fixed.mix.weight, average(parents).mix.weight)


def plain_vgg(width=12):
    def block(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]

    layers = [*block(1, width), *block(width, width), nn.MaxPool2d(2)]
    layers += [*block(width, 2 * width), *block(2 * width, 2 * width), nn.MaxPool2d(2)]
    layers += [*block(2 * width, 4 * width), nn.Flatten(), nn.Linear(16 * width, 32), nn.ReLU(), nn.Linear(32, 10)]
    return nn.Sequential(*layers)


@pytest.mark.slow
def test_most_of_the_gap_to_the_parents_is_closed():
    """The paper's case: a plain VGG, two trainings, aligned, averaged, repaired ([Jordan23], figure 1)."""
    digits = load_digits()
    images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = ((images[part], labels[part]) for part in order.split(1400))
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = plain_vgg()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(6):
            for index in torch.randperm(1400).split(70):
                optimizer.zero_grad()
                cross_entropy(model(train[0][index]), train[1][index]).backward()
                optimizer.step()
        models.append(model.eval())
    task = Task(models[0], test, "cross_entropy", "accuracy")
    data = Task(models[0], train, "cross_entropy")
    pair = builders.cnn(models[0]).bind(*models)
    aligned = solve(pair, solver="activation_matching", task=data).apply(models[1])
    merged = average([models[0], aligned])
    fixed = repair(merged, [models[0], aligned], train)
    parents = [task.evaluate(model) for model in models]
    before, after = task.evaluate(merged), task.evaluate(fixed)
    best_loss, best_accuracy = (sum(p.loss for p in parents) / 2, sum(p.metric for p in parents) / 2)
    assert best_accuracy > 0.9
    assert (before.loss - after.loss) / (before.loss - best_loss) > 0.6
    assert (after.metric - before.metric) / (best_accuracy - before.metric) > 0.6


# ---------------------------------------------------------------------- BatchNorm


def test_reset_gives_the_statistics_of_the_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    inputs = torch.randn(96, 2, 6, 6, generator=torch.Generator().manual_seed(2)) * 3 + 1
    model[1].running_mean.normal_()
    unequal = [(part, torch.zeros(len(part))) for part in inputs.split([50, 30, 16])]
    fixed = reset_batchnorm(model, unequal)
    values = model[0](inputs).detach().movedim(1, -1).flatten(0, -2)
    assert torch.allclose(fixed[1].running_mean, values.mean(0), atol=1e-5)
    assert torch.allclose(fixed[1].running_var, values.var(0), rtol=1e-5)
    assert not torch.equal(model[1].running_mean, fixed[1].running_mean)


def test_reset_on_one_batch_is_what_training_mode_computes():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout()
    )
    inputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(3))
    fixed = reset_batchnorm(model, inputs)
    expected = copy.deepcopy(model).train()
    for module in expected:
        module.momentum = None
    expected(inputs)
    for name, tensor in expected.state_dict().items():
        if "running" in name:
            assert torch.allclose(fixed.state_dict()[name], tensor, atol=1e-6), name


def test_a_repaired_batchnorm_network_is_a_reset_one():
    """All layers but the head feed a norm, so both change the same."""
    parents = family(lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)), 2)
    inputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(3))
    merged = average(parents)
    fixed, reset = repair(merged, parents, inputs), reset_batchnorm(merged, inputs)
    assert torch.equal(fixed[0].weight, merged[0].weight)
    assert torch.equal(fixed[1].running_mean, reset[1].running_mean)
    assert torch.equal(fixed[1].running_var, reset[1].running_var)


def test_a_network_without_batchnorm_needs_no_reset():
    model = nn.Linear(3, 2)
    assert torch.equal(reset_batchnorm(model, torch.randn(4, 3)).weight, model.weight)


# ---------------------------------------------------------------------- errors


def test_errors_name_what_is_wrong():
    one, other = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(MergeError, match=r"'0.weight' has shape \(5, 3\) in parent 1"):
        repair(one, [one, other], torch.randn(8, 3))
    with pytest.raises(MergeError, match="statistics of '0' are NaN"):
        repair(one, [one, one], torch.full((8, 3), torch.nan))
    with pytest.raises(MergeError, match="no models"):
        repair(one, [], torch.randn(8, 3))
    with pytest.raises(TaskError, match="no batches"):
        repair(one, [one], [])
    norm = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(MergeError, match="'0' cannot take statistics of a batch"):
        reset_batchnorm(norm, torch.randn(1, 3))
