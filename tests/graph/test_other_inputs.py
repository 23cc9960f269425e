"""`verify` also tries inputs of other sizes: a graph that is right for the example alone does not pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignkit import SymmetryGraph
from alignkit.errors import VerificationError
from alignkit.graph.proof.other_inputs import sizes

VECTORS = torch.linspace(-1, 1, 60).reshape(1, 12, 5)
IMAGE = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8).sin()


class Table(nn.Module):
    """Two layers, and a table of which the input says how much is used, and how."""

    def __init__(self, use: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o, self.use = nn.Linear(5, 4), nn.Linear(4, 2), use
        self.table = nn.Parameter(torch.randn(*shape))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return self.o(torch.relu(self.use(self.a(x), self.table, *args)))


def by_length(h: Tensor, table: Tensor) -> Tensor:
    return h + table[: h.shape[1], None].mean(0)


def by_batch(h: Tensor, table: Tensor) -> Tensor:
    return h + table[: len(h), None].mean(0)


def by_number(h: Tensor, table: Tensor, count: int | Tensor) -> Tensor:
    return h + table[: int(count), None].mean(0)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...], str]] = {
    "length": (by_length, (VECTORS,), "6 in place of 12 along axis 1"),
    "batch": (by_batch, (VECTORS.mT.reshape(12, 1, 5),), "6 in place of 12 in the batch"),
    "number": (by_number, (VECTORS, 12), "6 in place of 12 as argument 1"),
    "number in a tensor": (by_number, (VECTORS, torch.tensor(12)), "6 in place of 12 as argument 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_that_only_this_example_does_not_tell_apart_are_no_group(name: str) -> None:
    use, inputs, change = CASES[name]
    spec = {"a.weight": "h .", "a.bias": "h", "o.weight": ". h", "o.bias": ".", "table": "rows h"}
    model = Table(use, 12, 4)
    with pytest.raises(VerificationError, match=change) as caught:
        SymmetryGraph.from_spec(spec, model).verify(model, *inputs)
    assert "- 'rows', which acts on table" in str(caught.value)
    assert "'h'" not in str(caught.value)
    proof = SymmetryGraph.from_spec({**spec, "table": ". h"}, model).verify(model, *inputs)
    assert change in proof.others
    assert change in proof.explain()


def test_a_table_of_both_sides_of_an_image_is_seen_at_other_resolutions() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.o = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.rows = nn.Parameter(torch.randn(16))

        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.relu(self.a(x) + self.rows[: x.shape[2]].sum() * self.rows[: x.shape[3]].sum()))

    model, spec = Positions(), {"a.weight": ". . . .", "a.bias": ".", "o.weight": ". . . .", "o.bias": "."}
    with pytest.raises(VerificationError, match="in place of 8 along axes 2, 3"):
        SymmetryGraph.from_spec({**spec, "rows": "g+8"}, model).verify(model, IMAGE)


def test_what_the_model_refuses_is_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = SymmetryGraph.from_spec({"1.weight": "h .", "1.bias": "h", "3.weight": ". h", "3.bias": "."}, model)
    proof = graph.verify(model, VECTORS)
    assert proof.others == ("2 in place of 1 in the batch",)
    assert proof.refused == ("12 along axis 1", "5 along axis 2")
    assert "takes no other of: 12 along axis 1, 5 along axis 2" in proof.explain()


def test_a_sequence_as_long_as_its_features_has_other_lengths() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = SymmetryGraph.from_spec({"0.weight": "h .", "0.bias": "h", "2.weight": ". h", "2.bias": "."}, model)
    proof = graph.verify(model, VECTORS[:, :5])
    assert proof.others[1:] == ("2 in place of 5 along axis 1", "7 in place of 5 along axis 1")
    assert proof.refused == ("5 along axis 2",)


def test_inputs_of_one_length_change_together() -> None:
    ids = torch.ones(2, 7, dtype=torch.long)
    together = sizes(((ids,), {"mask": torch.ones(2, 1, 7, 7), "use": True}))
    assert [(size.value, size.places) for size in together] == [
        (2, ((0, 0), (1, 0))),
        (7, ((0, 1), (1, 2), (1, 3))),
        (1, ((1, 1),)),
    ]
