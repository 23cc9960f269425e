"""Outputs: those that count keep their order, others may move; the report names the one that holds an axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit.errors import OutputError, VerificationError
from alignkit.graph import SymmetryGraph
from alignkit.tracing import trace
from helpers.trace_checks import layouts

X, Y = torch.linspace(-1, 1, 18).reshape(6, 3), torch.linspace(0, 1, 12).reshape(4, 3).cos()


class Pair(NamedTuple):
    scores: Tensor
    memory: Tensor


@dataclass
class Fields:
    scores: Tensor
    memory: Tensor


class Answer(dict):  # type: ignore[type-arg]
    """A mapping whose items are attributes too, as libraries of models return them."""

    def __init__(self, scores: Tensor, memory: Tensor) -> None:
        super().__init__(scores=scores, memory=memory)
        self.scores, self.memory = scores, memory


class EncoderDecoder(nn.Module):
    """Attention of one sequence to the states of another, which are returned too."""

    def __init__(self, answer: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode, self.score = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 2)
        self.answer = answer

    def forward(self, x: Tensor, y: Tensor) -> object:
        memory = self.encode(x).tanh()
        state = self.decode(y)
        state = state + (state @ memory.mT).softmax(-1) @ memory
        return self.answer(self.score(state), memory)


ANSWERS: dict[str, tuple[Callable[[Tensor, Tensor], object], str, str]] = {
    "a mapping": (Answer, "scores", "memory"),
    "a named tuple": (Pair, "scores", "memory"),
    "a dataclass": (Fields, "scores", "memory"),
    "a tuple": (lambda scores, memory: (scores, (memory, [memory.mT])), "0", "1"),
    "a list": (lambda scores, memory: [scores, {"deep": memory}], "0", "1"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_outputs_that_count_keep_their_order_and_others_may_move(name: str) -> None:
    answer, counts, other = ANSWERS[name]
    model = EncoderDecoder(answer)
    whole = trace(model, X, Y)
    assert not layouts(whole)
    assert f"encode.weight, axis 0: pinned by output {other}" in whole.report()
    graph = trace(model, X, Y, outputs=[counts])
    assert layouts(graph) == {
        "encode.weight": "encode .",
        "encode.bias": "encode",
        "decode.weight": "encode .",
        "decode.bias": "encode",
        "score.weight": ". encode",
    }
    graph.verify(model, X, Y)
    assert SymmetryGraph.from_json(graph.to_json()).provenance.outputs == (counts,)
    assert trace(model, X, Y, outputs=counts).fingerprint == graph.fingerprint
    assert alignkit.check(model, X, Y, outputs=counts).graph.groups
    with pytest.raises(VerificationError):
        SymmetryGraph.from_spec(graph.spec(), model).verify(model, X, Y)


def test_an_output_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(OutputError, match=r"no output .logits.\. Its outputs are: 'scores', 'memory'"):
        trace(EncoderDecoder(Answer), X, Y, outputs=["scores", "logits"])
    with pytest.raises(OutputError, match=r"no output .0.\. Its outputs are: a single one, without a name"):
        trace(nn.Linear(3, 2), X, outputs="0")


def test_an_input_named_outputs_goes_in_a_dict() -> None:
    class Takes(nn.Linear):
        def forward(self, outputs: Tensor) -> Tensor:
            return super().forward(outputs)

    assert trace(Takes(3, 2), {"outputs": X}).tensors
