"""A long list of mismatches begins with its cause."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit.errors import BindError, SpecError

State = dict[str, Tensor]


def network(width: int = 32, depth: int = 3) -> nn.Sequential:
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), *hidden, nn.Linear(width, 3))


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


CASES: dict[str, tuple[Callable[[State], State], str]] = {
    **{
        prefix: (lambda state, p=prefix: prefixed(p, state), f"all names of B start with '{prefix}'. Remove it")
        for prefix in ("module.", "_orig_mod.", "model.net.")
    },
    "another width": (lambda _: network(24).state_dict(), "B has other sizes than the graph: 24 in place of 32."),
    "another dtype": (lambda s: {n: t.long() for n, t in s.items()}, "B is int64, A is float32. Convert one"),
    "another architecture": (
        lambda s: {name.replace(".", "_"): tensor for name, tensor in s.items()},
        "B is another architecture: it shares no name with the graph, '0_weight' and the like in place of '0.weight'.",
    ),
    "nothing": (lambda _: {}, "B has no tensors."),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_sentence_says_the_cause(case: str) -> None:
    change, cause = CASES[case]
    a = network().state_dict()
    with pytest.raises(BindError) as caught:
        alignkit.builders.mlp(network()).bind(a, change(dict(a)))
    first, count, *examples = str(caught.value).splitlines()
    assert first.startswith(f"the weights do not fit the graph: {cause}")
    assert count.endswith("problems:") and len(examples) <= 6


def test_a_prefix_that_a_side_lacks_is_named() -> None:
    wrapped = nn.ModuleDict({"net": network()})
    with pytest.raises(BindError, match=r"all names of the graph start with 'net\.', those of A do not"):
        alignkit.builders.mlp(wrapped).bind(network(), wrapped)


def test_mixed_mismatches_have_no_cause() -> None:
    a = network().state_dict()
    b = {**a, "0.bias": torch.zeros(5)}
    del b["2.bias"]
    with pytest.raises(BindError, match="the weights do not fit the graph, 2 problems:"):
        alignkit.builders.mlp(network()).bind(a, b)


def test_a_spec_for_names_with_another_prefix_says_so_once() -> None:
    spec = alignkit.builders.mlp(network(depth=40)).spec()
    with pytest.raises(SpecError, match=r"In short: all names of the model start with 'net\.'") as caught:
        alignkit.SymmetryGraph.from_spec(spec, like=nn.ModuleDict({"net": network(depth=40)}))
    assert len(str(caught.value)) < 300
