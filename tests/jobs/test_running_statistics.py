"""Running statistics of every kind of norm are measured as training would, or refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from alignkit.errors import MergeError, TaskError
from alignkit.jobs.repair import repair, reset_batchnorm


class Frozen(nn.Module):
    """A norm of somebody's own, which uses its statistics always, as torchvision's FrozenBatchNorm2d."""

    def __init__(self, channels, axis=1):
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.register_buffer("running_mean", torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x):
        shape = [1] * x.ndim
        shape[self.axis] = -1
        mean, variance, weight = (t.reshape(shape) for t in (self.running_mean, self.running_var, self.weight))
        return (x - mean) / (variance + 1e-5).sqrt() * weight


class WithActivation(nn.BatchNorm2d):
    """A norm that goes on after it has normalised, as timm's BatchNormAct2d."""

    def forward(self, x):
        return relu(super().forward(x))


class ByKeyword(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(input=x)


NORMS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (50, 6)),
    "BatchNorm1d of sequences": (lambda: nn.BatchNorm1d(6), (20, 6, 6)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), (20, 6, 5, 6)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(6), (10, 6, 3, 4, 5)),
    "BatchNorm without affine": (lambda: nn.BatchNorm1d(6, affine=False, momentum=None), (50, 6)),
    "BatchNorm by keyword": (lambda: ByKeyword(nn.BatchNorm1d(6)), (50, 6)),
    "BatchNorm with activation": (lambda: WithActivation(6), (20, 6, 5, 6)),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(6), (20, 6, 5, 6)),
    "LazyBatchNorm": (lambda: nn.LazyBatchNorm2d(), (20, 6, 5, 6)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(6, track_running_stats=True), (20, 6, 7)),
    "InstanceNorm1d without batch axis": (lambda: nn.InstanceNorm1d(6, track_running_stats=True), (6, 7)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (20, 6, 5, 6)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(6, track_running_stats=True), (10, 6, 3, 4, 5)),
    "LazyInstanceNorm": (lambda: nn.LazyInstanceNorm2d(track_running_stats=True), (20, 6, 5, 6)),
}


def build(name):
    torch.manual_seed(0)
    make, shape = NORMS[name]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + torch.arange(6).reshape(
        [6 if at == (0 if "without batch" in name else 1) else 1 for at in range(len(shape))]
    )
    model = nn.Sequential(make(), nn.Tanh())
    model(inputs)  # a lazy norm has its form now
    return model, inputs


@pytest.mark.parametrize("name", NORMS)
def test_one_batch_gives_what_training_on_it_leaves(name):
    model, inputs = build(name)
    fixed = reset_batchnorm(model, [(inputs, torch.zeros(len(inputs)))])
    trained = copy.deepcopy(model).train()
    for module in trained.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    trained(inputs)
    expected = trained.state_dict()
    statistics = [key for key in expected if "running" in key]
    assert len(statistics) == 2
    for key in statistics:
        assert torch.allclose(fixed.state_dict()[key], expected[key], atol=1e-4), key


@pytest.mark.parametrize("name", NORMS)
def test_layers_behind_a_norm_see_what_it_gives(name):
    """Statistics of the second norm are those behind the first, with all that the first does."""
    first, inputs = build(name)
    model = nn.Sequential(first, build(name)[0][0])
    fixed = reset_batchnorm(model, [(inputs, torch.zeros(len(inputs)))])
    with torch.no_grad():
        behind = fixed[0].eval()(inputs)
    alone = reset_batchnorm(model[1], [(behind, torch.zeros(len(behind)))])
    for key, tensor in alone.state_dict().items():
        if "running" in key:
            assert torch.allclose(fixed[1].state_dict()[key], tensor, rtol=2e-2, atol=1e-3), key


@pytest.mark.parametrize(("axis", "shape"), [(1, (30, 6, 4)), (2, (30, 5, 6)), (3, (8, 5, 4, 6))])
def test_a_norm_of_somebodys_own_normalises_the_data(axis, shape):
    torch.manual_seed(0)
    model = nn.Sequential(Frozen(6, axis))
    inputs = torch.randn(shape) * 4 + 2
    fixed = reset_batchnorm(model, inputs)
    others = [at for at in range(len(shape)) if at != axis]
    normal = fixed(inputs) / fixed[0].weight.reshape([-1 if at == axis else 1 for at in range(len(shape))])
    assert torch.allclose(normal.mean(others), torch.zeros(6), atol=1e-4)
    assert torch.allclose(normal.var(others), torch.ones(6), atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 6, 6), (8, 5, 5)])
def test_an_axis_that_is_not_clear_is_refused_with_the_module(shape):
    with pytest.raises(MergeError, match=r"'0' \(Frozen\) keeps statistics of 6 channels, but \d axes"):
        reset_batchnorm(nn.Sequential(Frozen(6)), torch.randn(shape))


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d(3), (1, 3)), (nn.InstanceNorm1d(3, track_running_stats=True), (4, 3, 1)), (Frozen(3), (1, 3))],
    ids=["batch", "instance", "own"],
)
def test_too_few_values_are_refused_with_the_module(norm, shape):
    with pytest.raises(MergeError, match="'0' cannot take statistics of a batch"):
        reset_batchnorm(nn.Sequential(norm), torch.randn(shape))


@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d"])
def test_statistics_that_do_not_fit_their_type_are_refused(name):
    model, inputs = build(name)
    with pytest.raises(MergeError, match=r"'0\.0\.running_(mean|var)' overflows.*float16"):
        reset_batchnorm(nn.Sequential(model.half()), inputs.half() * 3000)


@pytest.mark.parametrize("call", ["reset", "repair"])
@pytest.mark.parametrize(
    ("batches", "error", "named"),
    [
        ([(torch.randn(4, 3), torch.zeros(4)), (torch.randn(4, 5), torch.zeros(4))], TaskError, "batch 1"),
        ([(torch.randn(4, 3, device="meta"), torch.zeros(4))], TaskError, "batch 0 is on the meta device"),
        ([(torch.randn(4, 3), torch.zeros(4)), 7], TaskError, "batch 1 is an int: give tensors"),
        (7, TaskError, "batches is an int"),
    ],
    ids=["width", "meta", "no pair", "no batches"],
)
def test_data_that_fails_is_named(call, batches, error, named):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(error, match=named):
        reset_batchnorm(model, batches) if call == "reset" else repair(model, [model, model], batches)


def test_a_model_that_cannot_be_copied_is_refused():
    with pytest.raises(MergeError, match=r"the model Sequential cannot be copied.*uninitialized"):
        reset_batchnorm(nn.Sequential(nn.LazyBatchNorm1d()), torch.randn(4, 3))


def test_a_model_without_values_is_refused():
    with pytest.raises(MergeError, match="on the meta device"):
        reset_batchnorm(nn.Sequential(nn.BatchNorm1d(3)).to("meta"), torch.randn(4, 3))


@pytest.mark.parametrize("name", NORMS)
def test_what_was_passed_stays_as_it_is(name):
    model, inputs = build(name)
    model.train()
    before = copy.deepcopy(model.state_dict())
    fixed = reset_batchnorm(model, [(inputs, torch.zeros(len(inputs)))])
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(module.training for module in (*model.modules(), *fixed.modules()))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in fixed.modules())
    assert all(torch.equal(fixed.state_dict()[key], before[key]) for key in before if "running" not in key)


class TakesTwo(nn.Module):
    """Adds what it is given, as a model with two inputs does, and normalises it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, first, second):
        return self.norm(first + second)


class TakesNames(TakesTwo):
    """The same with a second input that may be left out."""

    def forward(self, first, second=0.0):
        return super().forward(first, second)


X, Y = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0)).unbind()
LABELS = torch.zeros(12).long()
HALVES = (X[:6], X[6:]), (Y[:6], Y[6:])
ONE_INPUT = {
    "tensor": X,
    "tensors": [X[:6], X[6:]],
    "two tensors of a generator": (half for half in HALVES[0]),
    "pair": (X, LABELS),
    "pairs": [(X[:6], LABELS[:6]), (X[6:], LABELS[6:])],
    "tuples of one": [(X[:6],), (X[6:],)],
    "loader without labels": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), 6),
    "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, LABELS), 6),
    "dict": {"first": X},
    "dicts": [{"first": X[:6]}, {"first": X[6:]}],
    "dicts with labels": [{"first": X[:6], "labels": LABELS[:6]}, {"first": X[6:], "labels": LABELS[6:]}],
    "pairs of a dict": [({"first": X}, LABELS)],
}
TWO_INPUTS = {
    "tuple": (X, Y),
    "tuples": [(X[:6], Y[:6]), (X[6:], Y[6:])],
    "tuples with targets": [(X[:6], Y[:6], LABELS[:6]), (X[6:], Y[6:], LABELS[6:])],
    "pairs": [((X[:6], Y[:6]), LABELS[:6]), ((X[6:], Y[6:]), LABELS[6:])],
    "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y, LABELS), 6),
    "dict": {"first": X, "second": Y},
    "dicts with labels": [{"first": X, "second": Y, "labels": LABELS}],
}


@pytest.mark.parametrize(
    ("model", "seen", "batches"),
    [
        *((TakesNames, X, batches) for batches in ONE_INPUT.values()),
        *((TakesTwo, X + Y, batches) for batches in TWO_INPUTS.values()),
    ],
    ids=[*ONE_INPUT, *(f"two inputs, {name}" for name in TWO_INPUTS)],
)
def test_batches_are_inputs_with_what_goes_with_them_or_without(model, seen, batches):
    fixed = reset_batchnorm(model(), batches)
    assert torch.allclose(fixed.norm.running_mean, seen.mean(0), atol=1e-6)
    assert torch.allclose(fixed.norm.running_var, seen.var(0), atol=1e-6)


@pytest.mark.parametrize("batch", [(X, Y, LABELS, LABELS), (), "words", None, [(X, Y, LABELS), LABELS, X, X]])
def test_what_is_no_batch_of_inputs_is_refused(batch):
    with pytest.raises(TaskError, match="batch 0"):
        reset_batchnorm(TakesTwo(), [batch])
