"""Tasks: means over any kind of batches, with any weights, in chunks that fit memory."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from alignkit.errors import TaskError
from alignkit.tasks.task import Task


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def data(n: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=generator)


def expected(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    with torch.no_grad():
        out = model.eval()(x)
    return functional.cross_entropy(out, y).item(), (out.argmax(1) == y).double().mean().item()


def sources() -> dict[str, object]:
    x, y = data()
    pairs = [(x[:7], y[:7]), (x[7:30], y[7:30]), (x[30:], y[30:])]
    return {
        "two tensors": (x, y),
        "list of two tensors": [x, y],
        "list of pairs": pairs,
        "two pairs": [(x[:20], y[:20]), (x[20:], y[20:])],
        "loader": DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True),
        "generator": (pair for pair in pairs),
    }


@pytest.mark.parametrize("kind", sorted(sources()))
@pytest.mark.parametrize("chunk", [None, 1, 8, 1000])
def test_uneven_batches_of_every_kind_give_the_mean_over_samples_again_and_again(kind: str, chunk: int | None) -> None:
    model = mlp()
    task = Task(mlp(1), sources()[kind], "cross_entropy", "accuracy", chunk=chunk)
    loss, metric = expected(model, *data())
    for _ in range(2):
        result = task.evaluate(model)
        assert result.samples == 50
        assert result.loss == pytest.approx(loss, rel=1e-12)
        assert result.metric == pytest.approx(metric, rel=1e-12)


def test_regression_with_a_callable_loss_and_metric() -> None:
    x, _ = data()
    y = x @ torch.ones(6, 3, dtype=torch.float64)
    model = mlp()

    def largest_error(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return float((outputs - targets).abs().mean())

    named = Task(model, (x, y), "mse").evaluate(model)
    own = Task(model, (x, y), lambda out, target: ((out - target) ** 2).mean(), largest_error).evaluate(model)
    assert named.loss == pytest.approx(functional.mse_loss(model(x), y).item())
    assert own.loss == pytest.approx(named.loss)
    assert named.metric is None
    assert own.metric == pytest.approx((model(x) - y).abs().mean().item())


def test_the_model_stays_untouched_and_batch_norm_uses_the_running_statistics_given() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double().train()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].running_mean.normal_()
        other[1].running_var.uniform_(0.5, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = data()
    result = Task(model, (x, y), "cross_entropy").evaluate(other.state_dict())
    assert model.training
    assert other.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert result.loss == pytest.approx(expected(other, x, y)[0])


def test_training_the_model_afterwards_does_not_change_the_task() -> None:
    model, (x, y) = mlp(), data()
    task, state = Task(model, (x, y), "cross_entropy"), copy.deepcopy(mlp(1).state_dict())
    before = task.evaluate(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert task.evaluate(state) == before


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3).double()

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * scale[:, None]


@pytest.mark.parametrize("wrap", [lambda x, s: (x, s), lambda x, s: {"scale": s, "x": x}], ids=["tuple", "dict"])
def test_several_inputs_by_position_or_by_name(wrap: object) -> None:
    model, (x, y) = TwoInputs(), data()
    scale = torch.linspace(0, 1, len(x), dtype=torch.float64)
    result = Task(model, [(wrap(x, scale), y)], "cross_entropy", chunk=9).evaluate(model)  # type: ignore[operator]
    assert result.loss == pytest.approx(functional.cross_entropy(model(x, scale), y).item())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6, bias=False).double()
        self.two = nn.Linear(6, 6, bias=False).double()
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x)))


def test_weights_that_are_no_longer_tied_stay_apart_in_a_network() -> None:
    (x, y), generator = data(), torch.Generator().manual_seed(0)
    task = Task(Tied(), (x, y), "cross_entropy")
    weights = {name: torch.randn(6, 6, generator=generator).double() for name in ("one.weight", "two.weight")}
    network = task.network(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(network(x), torch.relu(x @ weights["one.weight"].T) @ weights["two.weight"].T)
    assert task.evaluate(network).loss == task.evaluate(weights).loss
    kept = task.network({"one.weight": weights["one.weight"]})
    assert kept.get_parameter("one.weight") is kept.get_parameter("two.weight")


@pytest.mark.parametrize("dropped", ["one.weight", "two.weight", None])
def test_tied_weights_may_be_given_under_one_name(dropped: str | None) -> None:
    model, (x, y) = Tied(), data()
    state = {name: value.clone() for name, value in model.state_dict().items() if name != dropped}
    assert Task(model, (x, y), "cross_entropy").evaluate(state).loss == pytest.approx(expected(model, x, y)[0])


@pytest.mark.parametrize("kind", ["lstm", "attention", "buffer"])
def test_modules_with_their_own_ways_of_holding_weights(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 6, batch_first=True)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.register_buffer("mask", torch.rand(6), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if kind == "lstm":
                return self.lstm(x)[0]
            return self.attention(x, x, x, need_weights=False)[0] if kind == "attention" else x * self.mask

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(10, 4, 6)
    y = torch.randn(10, 4, 6)
    with torch.no_grad():
        loss = functional.mse_loss(model(x), y).item()
    assert Task(model, (x, y), "mse", chunk=3).evaluate(model).loss == pytest.approx(loss, rel=1e-5)


def test_a_task_can_be_sent_to_another_process() -> None:
    model = mlp()
    task = Task(model, data(), "cross_entropy", "accuracy", chunk=16)
    assert pickle.loads(pickle.dumps(task)).evaluate(model) == task.evaluate(model)


def test_the_loss_is_differentiable_with_respect_to_the_weights() -> None:
    task = Task(mlp(), data(), "cross_entropy")
    weights = {name: value.requires_grad_() for name, value in task.checked(mlp(1)).items()}
    batch = next(iter(task.batches))
    task.loss(task.outputs(weights, batch.inputs), batch.targets).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in weights.values())


class Hungry(nn.Module):
    """Runs out of memory on more samples than it has room for."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.inner, self.room = mlp(), room
        self.seen: list[int] = []

    def __deepcopy__(self, memo: dict[int, object]) -> Hungry:
        clone = Hungry(self.room)
        clone.seen = self.seen
        return clone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return self.inner(x)


@pytest.mark.parametrize("room", [1, 7, 49])
def test_a_chunk_that_runs_out_of_memory_is_halved_and_nothing_is_lost(room: int) -> None:
    model = Hungry(room)
    task = Task(model, data(), "cross_entropy", "accuracy")
    loss, metric = expected(model.inner, *data())
    result = task.evaluate(model)
    assert result.samples == 50
    assert result.loss == pytest.approx(loss, rel=1e-12)
    assert result.metric == pytest.approx(metric, rel=1e-12)
    model.seen.clear()
    task.evaluate(model)
    assert max(model.seen) <= room  # what did not fit is not tried again


def test_memory_that_does_not_even_hold_one_sample_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"out of memory on the data .* which is one sample"):
        Task(Hungry(0), data(), "cross_entropy").evaluate(Hungry(0))


def test_a_loader_is_read_once_and_only_when_needed() -> None:
    reads = []

    class Source:
        def __iter__(self) -> object:
            reads.append(1)
            return iter([data()])

    task = Task(mlp(), Source(), "cross_entropy")
    assert reads == []
    task.evaluate(mlp())
    task.evaluate(mlp(1))
    assert reads == [1]


def with_nan() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = data()
    broken = x.clone()
    broken[3, 2] = float("nan")
    return [(x, y), (broken, y)]


X, Y = data()
BAD_TASKS = {
    "no batches": ([], "cross_entropy", "there are no batches"),
    "empty batch": ([(X, Y), (X[:0], Y[:0])], "cross_entropy", "batch 1 is empty"),
    "no pair": ([X, X, X], "cross_entropy", r"batch 0 is not a pair \(inputs, targets\) but a Tensor"),
    "lengths differ": ([(X, Y[:9])], "cross_entropy", "batch 0 has 50 inputs but 9 targets"),
    "nan": (with_nan(), "cross_entropy", "the loss of batch 1 is nan"),
    "other width": ([(X[:, :5], Y)], "cross_entropy", r"the model fails on batch 0 \(float64\[50, 5\], int64\[50\]\)"),
    "not averaged": (
        [(X, Y)],
        lambda out, target: functional.cross_entropy(out, target, reduction="none"),
        r"the loss of batch 0 has shape \[50\]",
    ),
    "mse broadcasts": ([(X, X[:, :1])], "mse", r"mse: outputs have shape \[50, 3\], targets \[50, 1\]"),
}


@pytest.mark.parametrize("case", sorted(BAD_TASKS))
def test_bad_data_is_an_error_that_names_the_batch(case: str) -> None:
    batches, loss, message = BAD_TASKS[case]
    with pytest.raises(TaskError, match=message):
        Task(mlp(), batches, loss).evaluate(mlp())


BAD_ARGUMENTS = {
    "unknown loss": ({"loss": "crossentropy"}, "no loss is named 'crossentropy'. Known: 'cross_entropy', 'mse'"),
    "unknown metric": ({"metric": "f1"}, "no metric is named 'f1'"),
    "chunk": ({"chunk": 0}, "chunk is 0"),
    "one tensor": ({"batches": X}, "batches is a Tensor"),
    "data set": ({"batches": TensorDataset(X, Y)}, "wrap it in a torch.utils.data.DataLoader"),
}


@pytest.mark.parametrize("case", sorted(BAD_ARGUMENTS))
def test_bad_arguments_are_errors_when_the_task_is_made(case: str) -> None:
    changed, message = BAD_ARGUMENTS[case]
    arguments = {"model": mlp(), "batches": data(), "loss": "cross_entropy"} | changed
    with pytest.raises(TaskError, match=message):
        Task(**arguments)


def test_weights_of_another_model_are_refused_with_every_mismatch() -> None:
    state = mlp().state_dict()
    state["9.weight"] = state.pop("2.bias")
    state["0.weight"] = state["0.weight"][:, :4]
    with pytest.raises(TaskError) as caught:
        Task(mlp(), data(), "cross_entropy").evaluate(state)
    for part in ("'2.bias' is missing", "'9.weight' of the weights is not in the model", "'0.weight' has shape (8, 4)"):
        assert part in str(caught.value)


class TiedWithNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("scale", torch.full((6,), 3.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.second(self.first(x))) * self.scale


@pytest.mark.parametrize("form", ["module", "mapping", "mapping without the twin"])
def test_a_network_of_a_task_is_the_model_with_these_weights_and_its_own_tensors(form: str) -> None:
    model, x = TiedWithNorm().double().train(), data()[0]
    model(x)
    task = Task(TiedWithNorm().double(), (x, data()[1]), "cross_entropy")
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {
        name: tensor for name, tensor in model.state_dict().items() if name != "second.weight" or form == "mapping"
    }
    network = task.network(model if form == "module" else given)
    assert not network.training
    assert torch.allclose(network(x), model.eval()(x))
    assert network.first.weight is network.second.weight
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert torch.allclose(task.network(model)(x), model(x)), "the task's own model was changed"


def test_a_network_of_a_task_refuses_weights_that_do_not_fit() -> None:
    with pytest.raises(TaskError, match="do not fit the task's model"):
        Task(mlp(), data(), "cross_entropy").network(nn.Linear(6, 3))


def test_sets_of_weights_are_counted_by_tensors() -> None:
    task = Task(nn.Linear(3, 2), [(torch.ones(4, 3), torch.ones(4, 2))], "mse")
    for stacked in ({}, {"weight": True}, {"weight": torch.tensor(1.0)}):
        with pytest.raises(TaskError, match="stacked= has to hold tensors"):
            task.evaluate_stack(stacked, {})


@pytest.mark.parametrize("name", [None, 3, ("a", 1), "\ud800"])
def test_names_of_weights_are_text(name) -> None:
    net = nn.Linear(3, 2)
    task = Task(net, [(torch.ones(4, 3), torch.ones(4, 2))], "mse")
    with pytest.raises(TaskError, match=r"strings|not Unicode"):
        task.evaluate({**net.state_dict(), name: torch.ones(2)})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_data_is_refused() -> None:
    task = Task(nn.Linear(3, 2), [(torch.ones(1, 3), torch.nested.nested_tensor([torch.zeros(3)]))], "mse")
    with pytest.raises(TaskError, match="batch 0 holds a nested tensor"):
        task.evaluate(nn.Linear(3, 2))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_data_is_refused(sparse) -> None:
    for pair in ((sparse(torch.eye(3)), torch.ones(3, 2)), (torch.ones(3, 3), sparse(torch.ones(3, 2)))):
        with pytest.raises(TaskError, match="batch 0 holds a tensor of layout sparse"):
            Task(nn.Linear(3, 2), [pair], "mse").evaluate(nn.Linear(3, 2))
