"""Batches that are dicts with labels, and the loss that a model computes itself."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import alignkit
from alignkit import Task
from alignkit.errors import TaskError


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None

    def __iter__(self) -> Any:
        return iter((self.loss, self.logits))


class Classifier(nn.Module):
    """Returns its loss beside its logits, as a field or as an entry of a dict, where it is given labels."""

    def __init__(self, as_dict: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.as_dict = nn.Linear(4, 8), nn.Linear(8, 3), as_dict

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.down(self.up(features).relu())
        loss = None if labels is None else functional.cross_entropy(logits, labels, label_smoothing=0.1)
        return {"loss": loss, "logits": logits} if self.as_dict else Output(logits, loss)


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draws = (
        (torch.randn(5, 4, generator=generator), torch.randint(3, (5,), generator=generator)) for _ in range(count)
    )
    return [{"features": x, "labels": y} for x, y in draws]


def network(seed: int, as_dict: bool = False) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(as_dict).eval()


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_model_says_its_loss(chunk: int | None, kind: type[Any], as_dict: bool) -> None:
    net = network(0, as_dict)
    task = Task(net, [kind(batch) for batch in batches()], "model", chunk=chunk)
    with torch.no_grad():
        expected = torch.stack([network(0)(**batch).loss for batch in batches()]).mean()
    assert task.evaluate(net).loss == pytest.approx(float(expected), rel=1e-6)


def test_own_losses_get_the_labels() -> None:
    net = network(0)
    task = Task(net, batches(), lambda out, labels: functional.cross_entropy(out.logits, labels))
    pairs = [((b["features"], b["labels"]), b["labels"]) for b in batches()]
    assert task.evaluate(net) == Task(net, pairs, lambda out, y: functional.cross_entropy(out.logits, y)).evaluate(net)


@pytest.mark.parametrize("solver", ["sinkhorn", "straight_through", "activation_matching"])
def test_solvers_work_with_the_loss_of_the_model(solver: str) -> None:
    a, b = network(0), network(1)
    graph = alignkit.trace(a, batches()[0]["features"])
    options = {} if solver == "activation_matching" else {"max_steps": 3}
    solution = alignkit.solve(graph, a, b, solver=solver, task=Task(a, batches(), "model"), **options)
    x = batches()[0]["features"]
    torch.testing.assert_close(solution.alignment.apply(b)(x).logits, b(x).logits)


def test_what_is_missing_is_said() -> None:
    net = network(0)
    with pytest.raises(TaskError, match='batch 0 is a dict without "labels"'):
        Task(net, [{"features": torch.ones(2, 4)}], "model").evaluate(net)
    plain = nn.Linear(4, 3)
    with pytest.raises(TaskError, match="returned a Tensor without a loss"):
        Task(plain, (torch.ones(2, 4), torch.tensor([0, 1])), "model").evaluate(plain)
    with pytest.raises(TaskError, match="returned a Output without a loss"):
        Task(net, (torch.ones(2, 4), torch.tensor([0, 1])), "model").evaluate(net)


def test_a_task_says_what_it_is() -> None:
    assert repr(Task(network(0), batches(), "model")) == "Task(Classifier, model_loss, on cpu)"
    pairs = (torch.ones(2, 4), torch.tensor([0, 1]))
    assert (
        repr(Task(nn.Linear(4, 3), pairs, "cross_entropy", "accuracy"))
        == "Task(Linear, cross_entropy, accuracy, on cpu)"
    )
