"""Buffers that a checkpoint keeps and that are used as a whole move with units; tables and other constants stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune

from alignkit.graph.proof.perturb import perturbed
from alignkit.tracing import trace
from helpers.trace_checks import keeps_function, layouts
from helpers.trace_models import Parts

ROWS = [(torch.arange(3.0 * n).square().sin().reshape(n, 3),) for n in (4, 6)]
IMAGES = [(torch.arange(3.0 * n * 49).square().sin().reshape(n, 3, 7, 7),) for n in (1, 2)]
FREE = {"a.weight": "a .", "a.bias": "a", "o.weight": ". a"}


def mixed(*sizes: int) -> Tensor:
    """Values in no order."""
    count = torch.Size(sizes).numel()
    return 1.5 + torch.arange(float(count)).square().cos().reshape(sizes)


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_vectors_of_spectral_norms_move_with_rows_and_columns(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        wrap(nn.Conv2d(3, 5, 3)), nn.ReLU(), wrap(nn.Conv2d(5, 4, 3)), nn.Flatten(), wrap(nn.Linear(36, 2))
    )
    graph = trace(model, *IMAGES[0])
    first, second = (name for name in graph.groups)
    old = wrap is nn.utils.spectral_norm
    weight, u, v = ("weight_orig", "weight_u", "weight_v") if old else (
        f"parametrizations.weight.{name}" for name in ("original", "0._u", "0._v")
    )  # fmt: skip
    assert layouts(graph) == {
        f"0.{weight}": f"{first} . . .",
        "0.bias": first,
        f"0.{u}": first,
        f"2.{weight}": f"{second} {first} . .",
        "2.bias": second,
        f"2.{u}": second,
        f"2.{v}": f"({first} 9)",
        f"4.{weight}": f". ({second} 9)",
        f"4.{v}": f"({second} 9)",
    }
    keeps_function(model, graph, *IMAGES)


def hidden(read: Callable[[Parts, Tensor], Tensor], **tensors: Tensor) -> Parts:
    """A hidden layer of six units, between which and the output a function of buffers stands."""
    torch.manual_seed(0)
    return Parts(lambda net, x: net.o(read(net, net.a(x).tanh())), a=nn.Linear(3, 6), o=nn.Linear(6, 2), **tensors)


def whitened(net: Parts, h: Tensor) -> Tensor:
    return (h - net.moving_mean) @ torch.linalg.inv(net.moving_covariance)


def splines(net: Parts, h: Tensor) -> Tensor:
    return torch.einsum("bug,ug->bu", (net.grid - h[..., None]).square().neg().exp(), net.height)


MOVING: dict[str, tuple[Parts, dict[str, str]]] = {
    "an average and its square": (
        hidden(lambda net, h: (h - net.mean) / net.second.sqrt(), mean=mixed(6), second=mixed(1, 6)),
        {"mean": "a", "second": ". a"},
    ),
    "a covariance": (
        hidden(whitened, moving_mean=mixed(6), moving_covariance=mixed(6, 6) + 9 * torch.eye(6)),
        {"moving_mean": "a", "moving_covariance": "o a", "o.weight": ". o"},
    ),
    "a pruning mask": (
        hidden(lambda net, h: h @ (net.weight * net.mask), weight=nn.Parameter(mixed(6, 6)), mask=mixed(6, 6).round()),
        {"weight": "a o", "mask": "a o", "o.weight": ". o"},
    ),
    "a grid for each unit": (
        hidden(splines, grid=torch.linspace(-1, 1, 5).expand(6, 5).clone(), height=nn.Parameter(mixed(6, 5))),
        {"grid": "a .", "height": "a ."},
    ),
    "values that are still equal": (hidden(lambda net, h: h * net.scale, scale=torch.ones(6)), {"scale": "a"}),
}


@pytest.mark.parametrize("name", MOVING)
def test_saved_buffers_move_with_the_units_of_their_uses(name: str) -> None:
    model, expected = MOVING[name]
    graph = trace(model, *ROWS[0])
    assert layouts(graph) == FREE | expected
    keeps_function(model, graph, *ROWS)


def test_magnitude_pruning_moves_its_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", 0.4)
    graph = trace(model, *ROWS[0])
    one, two = graph.groups
    assert {name: text for name, text in layouts(graph).items() if "weight" in name} == {
        "0.weight_orig": f"{one} .",
        "0.weight_mask": f"{one} .",
        "2.weight_orig": f"{two} {one}",
        "2.weight_mask": f"{two} {one}",
        "4.weight": f". {two}",
    }


class Staying(nn.Module):
    """A hidden layer whose units a buffer tells apart, saved or not."""

    def __init__(self, table: Tensor, read: Callable[[Tensor, Tensor], Tensor], saved: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o, self.read = nn.Linear(3, 6), nn.Linear(6, 2), read
        self.register_buffer("table", table, persistent=saved)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.read(self.a(x).tanh(), self.table))


STAYING = {
    "a buffer that no checkpoint keeps": Staying(mixed(6), torch.mul, saved=False),
    "frequencies": Staying(10 ** -torch.arange(6.0), lambda h, t: (h * t).sin()),
    "numbers of units": Staying(torch.tensor([4, 2, 0, 1, 5, 3]), lambda h, t: h[:, t] * 2 + h),
    "whole numbers as weights": Staying(torch.tensor([4, 2, 0, 1, 5, 3]), lambda h, t: h * t),
    "one that the run writes": Staying(mixed(6), lambda h, t: h * t.add_(1)),
    "a matrix of which parts are taken": Staying(mixed(9, 6), lambda h, t: h + t[: len(h)]),
    "one that is looked up": Staying(mixed(9, 6), lambda h, t: h + F.embedding(torch.arange(len(h)), t)),
}


@pytest.mark.parametrize("name", STAYING)
def test_tables_and_constants_stay(name: str) -> None:
    graph = trace(STAYING[name], *ROWS[0])
    assert not layouts(graph)


def test_a_table_that_the_model_makes_anew_for_longer_inputs_stays() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.o = nn.Linear(3, 6), nn.Linear(6, 2)
            self.register_buffer("waves", self.make(5))

        def make(self, length: int) -> Tensor:
            return torch.outer(torch.arange(float(length)), 10 ** -torch.arange(6.0)).sin()

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > len(self.waves):
                self.waves = self.make(len(x)).to(x.dtype)
            return self.o(torch.relu(self.a(x) + self.waves[: len(x)]))

    assert not layouts(trace(Grows(), *ROWS[0]))


def test_two_buffers_in_one_memory_stay() -> None:
    both = mixed(12)
    model = hidden(lambda net, h: h * net.left + net.right, left=both[:6], right=both[6:])
    assert not layouts(trace(model, *ROWS[0]))


class Chain(nn.Module):
    """A linear chain of tags: scores of words, and of transitions between neighbours."""

    def __init__(self, tags: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Linear(3, tags)
        self.step = nn.Parameter(torch.randn(tags, tags))
        self.start, self.end = (nn.Parameter(torch.randn(tags)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x)
        total = score[0] + self.start
        for word in score[1:]:
            total = torch.logsumexp(total[:, None] + self.step + word, 0)
        return torch.logsumexp(total + self.end, 0)


def test_both_axes_of_a_matrix_between_the_units_of_one_group_move() -> None:
    model = perturbed(Chain())
    graph = trace(model, *ROWS[0])
    assert layouts(graph) == {
        "score.weight": "score .",
        "score.bias": "score",
        "step": "score score",
        "start": "score",
        "end": "score",
    }
    keeps_function(model, graph, *ROWS)
    mixing = hidden(lambda net, h: h + (h[:, :, None] * net.table * h[:, None]).sum(1), table=nn.Parameter(mixed(6, 6)))
    graph = trace(mixing, *ROWS[0])
    assert layouts(graph) == FREE | {"table": "a a"}
    keeps_function(mixing, graph, *ROWS)
