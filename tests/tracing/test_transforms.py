"""Complex numbers, Fourier transforms, linear systems and products of three: what stays is what is transformed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignkit.tracing import trace
from helpers.trace_checks import keeps_function, layouts, sizes
from helpers.trace_models import Parts


def sequence(length: int, batch: int = 2) -> Tensor:
    return (torch.arange(batch * length * 3).double() ** 2).sin().reshape(batch, length, 3).float()


LENGTHS = [(sequence(8),), (sequence(12, 1),)]


def turned(x: Tensor, form: str) -> Tensor:
    """Rotate pairs of the last dimension of [batch, tokens, heads, size] by an angle for each token and pair."""
    angle = torch.outer(torch.arange(x.shape[1], dtype=x.dtype), torch.tensor([1.0, 0.3], dtype=x.dtype))
    turns = torch.polar(torch.ones_like(angle), angle)[:, None]
    if form == "halves":
        one, two = x.chunk(2, -1)
        both = torch.complex(one, two) * turns
        return torch.cat([both.real, both.imag], -1)
    both = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turns
    if form == "stacked":
        return torch.stack([both.real, both.imag], -1).flatten(-2)
    return torch.view_as_real(both).flatten(3)


class ComplexRotary(nn.Module):
    """Attention with rotary positions by complex numbers, with fewer heads of keys than of queries."""

    def __init__(self, form: str, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.heads, self.kv_heads = form, heads, kv_heads
        self.enter, self.q = nn.Linear(3, 6), nn.Linear(6, 4 * heads, bias=False)
        self.k, self.v = (nn.Linear(6, 4 * kv_heads, bias=False) for _ in range(2))
        self.back, self.leave = nn.Linear(4 * heads, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (layer(x).unflatten(-1, (-1, 4)) for layer in (self.q, self.k, self.v))
        q, k = turned(q, self.form), turned(k, self.form)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 2) for t in (k, v))
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return self.leave(x + self.back(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("form", ["pairs", "stacked"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_heads_and_values_move_where_positions_turn_complex_numbers(form: str, kv_heads: int) -> None:
    model = ComplexRotary(form, kv_heads=kv_heads)
    graph = trace(model, *LENGTHS[0])
    one = kv_heads == 4
    heads = "(heads 4)" if one else "(kv_heads heads[kv_heads] 4)"
    keys = "heads" if one else "kv_heads"
    values = f"({keys} v[{keys}])"
    assert layouts(graph) == {
        "enter.weight": "enter .",
        "enter.bias": "enter",
        "q.weight": f"{heads} enter",
        "k.weight": f"({keys} 4) enter",
        "v.weight": f"{values} enter",
        "back.weight": f"enter {values if one else '(kv_heads heads[kv_heads] v[kv_heads])'}",
        "leave.weight": ". enter",
    }
    keeps_function(model, graph, *LENGTHS)


def spectral(net: Parts, x: Tensor) -> Tensor:
    """Two Fourier layers with a residual, which keep three and two frequencies."""
    x = net.enter(x).mT
    for weight, skip, modes in ((net.one, net.skip, 3), (net.two, net.last, 2)):
        waves = torch.fft.rfft(x)
        kept = torch.einsum("bik,iok->bok", waves[..., :modes], torch.view_as_complex(weight))
        x = F.gelu(torch.fft.irfft(F.pad(kept, (0, waves.shape[-1] - modes)), n=x.shape[-1]) + skip(x))
    return net.leave(x.mT)


def test_channels_of_fourier_layers_are_units() -> None:
    torch.manual_seed(0)
    model = Parts(
        spectral,
        enter=nn.Linear(3, 4),
        one=nn.Parameter(torch.randn(4, 5, 3, 2)),
        skip=nn.Conv1d(4, 5, 1),
        two=nn.Parameter(torch.randn(5, 6, 2, 2)),
        last=nn.Conv1d(5, 6, 1),
        leave=nn.Linear(6, 2),
    )
    graph = trace(model, *LENGTHS[0])
    assert layouts(graph) == {
        "enter.weight": "enter .",
        "enter.bias": "enter",
        "one": "enter skip . .",
        "skip.weight": "skip enter .",
        "skip.bias": "skip",
        "two": "skip last . .",
        "last.weight": "last skip .",
        "last.bias": "last",
        "leave.weight": ". last",
    }
    assert sizes(graph) == {"enter": 4, "skip": 5, "last": 6}
    keeps_function(model, graph, *LENGTHS)


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "fft": lambda x: torch.fft.fft(x, dim=1).real,
    "fft2 of tokens": lambda x: torch.fft.fft2(x.unflatten(1, (2, -1)), dim=(1, 2)).abs().flatten(1, 2),
    "fftn": lambda x: torch.fft.fftn(x, dim=(0, 1)).imag,
    "shifted": lambda x: torch.fft.fftshift(torch.fft.ifft(x, dim=1), dim=1).angle(),
    "cosine": lambda x: torch.fft.irfft(torch.fft.rfft(x.mT.to(x.dtype)), n=x.shape[1]).mT,
    "hfft": lambda x: torch.fft.hfft(x + 0j, n=x.shape[1], dim=1),
    "convolution": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.fft.rfft(x.flip(1), dim=1), dim=1),
    "a low pass": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1)[:, :3], n=x.shape[1], dim=1),
    "triangular": lambda x: torch.linalg.solve_triangular(_lower(x), x, upper=False),
    "triangular from the right": lambda x: torch.linalg.solve_triangular(_lower(x).mT, x.mT, upper=True, left=False).mT,
    "inverse": lambda x: torch.linalg.inv(_lower(x)) @ x,
    "solve": lambda x: torch.linalg.solve(_lower(x), x),
    "inverse of units": lambda x: x @ torch.linalg.inv(x.mT @ x),
    "solution of units": lambda x: torch.linalg.solve(x.mT @ x, x.mT).mT,
    "solution of units from the right": lambda x: torch.linalg.solve(x.mT @ x, x, left=False),
}


def _lower(x: Tensor) -> Tensor:
    """The lower triangle of [batch, tokens, tokens] products."""
    return (x @ x.mT).tril() + torch.eye(x.shape[1], dtype=x.dtype)


@pytest.mark.parametrize("name", MIXES)
def test_units_pass_through_mixing_of_tokens(name: str) -> None:
    torch.manual_seed(0)
    model = Parts(
        lambda net, x: (lambda h: net.leave(h + net.mix(MIXES[name](h))))(net.enter(x).tanh()),
        enter=nn.Linear(3, 5),
        mix=nn.Linear(5, 5),
        leave=nn.Linear(5, 2),
    )
    graph = trace(model, *LENGTHS[0])
    assert layouts(graph) == {
        "enter.weight": "enter .",
        "enter.bias": "enter",
        "mix.weight": "enter enter",
        "mix.bias": "enter",
        "leave.weight": ". enter",
    }
    keeps_function(model, graph, *LENGTHS)


def test_a_transform_over_units_keeps_them() -> None:
    torch.manual_seed(0)
    model = Parts(
        lambda net, x: net.leave(torch.fft.rfft(net.enter(x)).abs()), enter=nn.Linear(3, 6), leave=nn.Linear(4, 2)
    )
    graph = trace(model, *LENGTHS[0])
    assert layouts(graph) == {"leave.weight": ". leave"} or not layouts(graph)
    keeps_function(model, graph, *LENGTHS)


class DiagonalStateSpace(nn.Module):
    """S4D: each channel has states of its own, with complex poles, and a convolution by Fourier transforms."""

    def __init__(self, channels: int = 5, states: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.mix, self.leave = nn.Linear(3, channels), nn.Linear(channels, 2 * 4), nn.Linear(4, 2)
        self.read = nn.Parameter(torch.randn(channels, states, 2))
        self.decay, self.turn = (nn.Parameter(torch.rand(channels, states)) for _ in range(2))
        self.step, self.skip = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).mT
        size = x.shape[-1]
        poles = torch.complex(-self.decay.exp(), self.turn) * self.step.exp()[:, None]
        powers = (poles.unsqueeze(-1) * torch.arange(size)).exp()
        read = torch.view_as_complex(self.read) * (poles.exp() - 1) / poles
        kernel = 2 * torch.einsum("hn,hnl->hl", read, powers).real
        y = torch.fft.irfft(torch.fft.rfft(x, n=2 * size) * torch.fft.rfft(kernel, n=2 * size), n=2 * size)[..., :size]
        return self.leave(F.glu(self.mix((y + x * self.skip[:, None]).mT.tanh())))


def test_states_of_a_complex_state_space_are_a_family_of_channels() -> None:
    model = DiagonalStateSpace()
    graph = trace(model, *LENGTHS[0])
    channels = next(name for name, group in graph.groups.items() if group.size == 5)
    (states,) = (name for name, group in graph.groups.items() if group.parent == channels)
    assert graph.groups[states].size == 3
    assert layouts(graph) == {
        "enter.weight": f"{channels} .",
        "enter.bias": channels,
        "mix.weight": f"mix+mix {channels}",
        "mix.bias": "mix+mix",
        "leave.weight": ". mix",
        "read": f"{channels} {states}[{channels}] .",
        "decay": f"{channels} {states}[{channels}]",
        "turn": f"{channels} {states}[{channels}]",
        "step": channels,
        "skip": channels,
    }
    keeps_function(model, graph, *LENGTHS)


def test_three_axes_of_bilinear_layers_and_prototypes_are_groups() -> None:
    def run(net: Parts, x: Tensor, y: Tensor) -> Tensor:
        both = net.both(net.left(x).relu(), net.right(y).relu()).tanh()
        return net.leave(torch.cdist(both, net.prototypes).neg().exp())

    torch.manual_seed(0)
    model = Parts(
        run,
        left=nn.Linear(3, 4),
        right=nn.Linear(3, 5),
        both=nn.Bilinear(4, 5, 6),
        prototypes=nn.Parameter(torch.randn(7, 6)),
        leave=nn.Linear(7, 2),
    )
    graph = trace(model, *LENGTHS[0], *LENGTHS[0])
    assert layouts(graph) == {
        "left.weight": "left .",
        "left.bias": "left",
        "right.weight": "right .",
        "right.bias": "right",
        "both.weight": "both left right",
        "both.bias": "both",
        "prototypes": "leave both",
        "leave.weight": ". leave",
    }
    keeps_function(model, graph, *[(*x, *x) for x in LENGTHS])
