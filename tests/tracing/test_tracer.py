"""How example inputs reach the model, in tracing, proofs and tasks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from alignkit.errors import TraceError
from alignkit.graph.proof.verify import same_function
from alignkit.tasks.task import Task
from alignkit.tracing import trace
from helpers.trace_checks import counts

X = torch.linspace(-1, 1, 10).reshape(2, 5)


class ByName(nn.Module):
    """Takes two inputs, the second by name only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return self.b((self.a(x) * scale).relu())


def test_a_single_dict_holds_inputs_by_name_as_in_a_task() -> None:
    model, inputs = ByName(), {"x": X, "scale": torch.ones(2, 1)}
    graph = trace(model, inputs)
    assert graph == trace(model, **inputs)
    assert [traced.name for traced in graph.provenance.inputs] == ["x", "scale"]
    assert counts(graph) == (1, 0)
    assert graph.verify(model, inputs).error < 1e-12
    assert same_function(model, copy.deepcopy(model), inputs).same
    task = Task(model, [(inputs, torch.zeros(2, 3))], "mse")
    assert task.evaluate(model).samples == 2


def test_a_dict_that_the_model_takes_is_passed_by_the_name_of_its_argument() -> None:
    class TakesDict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.b(self.a(batch["x"]).relu())

    assert counts(trace(TakesDict(), batch={"x": X})) == (1, 0)
    with pytest.raises(TraceError, match=r"unexpected keyword argument 'x'.*by the name of that argument"):
        trace(TakesDict(), {"x": X})
