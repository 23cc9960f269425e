"""Data as loaders give it: endless, failing half-way, of the wrong kind; read once and only as far as needed."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import alignkit
from alignkit import SymmetryGraph, Task
from alignkit.errors import AlignkitError, TaskError
from alignkit.tasks import batches as batches_module
from alignkit.tasks.batches import Batches

SPEC = {"0.weight": "h .", "0.bias": "h", "2.weight": ". h", "2.bias": "."}


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def pair(index: int, rows: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(rows, 6, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


class Counting(IterableDataset):
    """An endless stream that counts what is read of it."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for index in itertools.count():
            self.count += 1
            yield pair(index)


class Long:
    """A loader that says it has three batches, and gives more and more."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(pair(0))


ENDLESS: dict[str, Callable[[], Any]] = {
    "generator": lambda: iter(Counting()),
    "loader": lambda: DataLoader(Counting(), batch_size=None),
    "loader with a length": Long,
    "one batch repeated": lambda: itertools.repeat(pair(0)),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_loader_is_read_as_far_as_it_is_asked_for(kind: str) -> None:
    graph = SymmetryGraph.from_spec(SPEC, like=mlp())
    task = Task(mlp(), ENDLESS[kind](), "cross_entropy")
    solution = alignkit.solve(graph, mlp(1), mlp(2), solver="activation_matching", task=task, max_batches=4)
    assert solution.stats["samples"] == 20


def test_no_batch_is_read_that_nobody_asked_for() -> None:
    stream = Counting()
    batches = Batches(DataLoader(stream, batch_size=None))
    first = [batch.inputs for batch in itertools.islice(batches, 3)]
    assert stream.count <= 4
    again = [batch.inputs for batch in itertools.islice(batches, 5)]
    assert all(map(torch.equal, first, again))
    assert stream.count <= 6


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("limit", ["batches", "bytes"])
def test_an_endless_loader_that_is_read_to_its_end_is_refused(
    kind: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit == "batches":
        monkeypatch.setattr(batches_module, "MAX_UNCOUNTED", 20)
    else:
        monkeypatch.setattr(batches_module, "usable_memory", lambda: 50_000)
    task = Task(mlp(), ENDLESS[kind](), "cross_entropy")
    for _ in range(2):
        with pytest.raises(TaskError, match=r"gave \d+ batches .* no end.*islice"):
            task.evaluate(mlp())


def test_a_long_loader_that_says_its_length_is_not_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "MAX_UNCOUNTED", 3)
    monkeypatch.setattr(batches_module, "usable_memory", lambda: 1)
    loader = DataLoader([pair(i) for i in range(9)], batch_size=None)
    assert Task(mlp(), loader, "cross_entropy").evaluate(mlp()).samples == 45


def failing(error: BaseException) -> Iterator[Any]:
    yield pair(0)
    yield pair(1)
    raise error


class FailingSequence:
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            raise OSError("the disk is gone")
        return pair(index)


FAILING: dict[str, Callable[[], Any]] = {
    "generator": lambda: failing(OSError("the disk is gone")),
    "loader": lambda: DataLoader(FailingSequence(), batch_size=None),  # type: ignore[arg-type]
    "sequence": FailingSequence,
    "other width": lambda: [pair(0), pair(1), (torch.zeros(5, 7), torch.zeros(5, dtype=torch.int64))],
    "meta": lambda: [pair(0), pair(1), tuple(t.to("meta") for t in pair(2))],
    "no pair": lambda: iter([pair(0), pair(1), 3]),
    "words": lambda: [pair(0), pair(1), ("words", pair(2)[1])],
}


@pytest.mark.parametrize("again", ["first time", "second time"])
@pytest.mark.parametrize("kind", FAILING)
@pytest.mark.parametrize(
    "job", ["evaluate", "interpolate", "activation_matching", "reset_batchnorm", "repair", "straight_through"]
)
def test_data_that_fails_is_an_error_that_names_the_batch(kind: str, job: str, again: str) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    graph = SymmetryGraph.from_spec(SPEC, like=mlp())
    source = FAILING[kind]()
    task = Task(mlp(), source, "cross_entropy")
    data = Task(net, source, "cross_entropy")
    jobs: dict[str, Callable[[], object]] = {
        "evaluate": lambda: task.evaluate(mlp()),
        "interpolate": lambda: alignkit.interpolate(task, mlp(1), mlp(2), points=3),
        "activation_matching": lambda: alignkit.solve(graph, mlp(1), mlp(2), solver="activation_matching", task=task),
        "reset_batchnorm": lambda: alignkit.reset_batchnorm(net, data),
        "repair": lambda: alignkit.repair(net, [net, net], data),
        "straight_through": lambda: alignkit.solve(graph, mlp(1), mlp(2), solver="straight_through", task=task),
    }
    for _ in range(1 if again == "first time" else 2):
        with pytest.raises(AlignkitError, match="batch 2"):
            jobs[job]()


def test_a_generator_that_was_stopped_half_way_does_not_seem_to_end_there() -> None:
    task = Task(mlp(), failing(KeyboardInterrupt()), "cross_entropy")
    with pytest.raises(KeyboardInterrupt):
        task.evaluate(mlp())
    with pytest.raises(TaskError, match="batch 2"):
        task.evaluate(mlp())


def test_a_loader_that_was_stopped_half_way_is_read_anew() -> None:
    class Moody:
        calls = 0

        def __iter__(self) -> Iterator[Any]:
            self.calls += 1
            yield pair(0)
            if self.calls == 1:
                raise KeyboardInterrupt
            yield pair(1)

    task = Task(mlp(), Moody(), "cross_entropy")
    with pytest.raises(KeyboardInterrupt):
        task.evaluate(mlp())
    assert task.evaluate(mlp()).samples == 10


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_loader_of_which_a_part_was_read_can_be_copied(copied: Callable[[Any], Any]) -> None:
    batches = Batches(pair(i) for i in range(6))
    next(iter(batches))
    twin = copied(batches)
    for one, other in zip(batches, twin, strict=True):
        assert torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize(
    ("inputs", "targets"), [(torch.tensor(1.0), torch.zeros(3)), (torch.zeros(3, 2), torch.tensor(1.0))]
)
def test_a_side_of_one_number_has_no_samples(inputs: torch.Tensor, targets: torch.Tensor) -> None:
    with pytest.raises(TaskError, match=r"batch 0 has [03] inputs but [03] targets"):
        list(Batches([(inputs, targets)]))
