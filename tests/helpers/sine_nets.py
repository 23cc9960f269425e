"""Networks of sines and cosines: where their biases move by half periods, and where something keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HIDDEN = 3, 6


class Net(nn.Module):
    """A first layer, a function of what it computes, and a last one; ``held`` are further modules and tensors."""

    def __init__(self, act: Callable[[Net, Tensor], Tensor], first: nn.Module, last: nn.Module, **held: object) -> None:
        super().__init__()
        self.act, self.first, self.last = act, first, last
        for name, value in held.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value.clone())
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self, self.first(x)))


@dataclass(frozen=True)
class SineCase:
    """A network.

    Attributes:
        act: What happens between its first and last layer.
        phases: For each bias that moves, the number and the tensors that its frequency is made of.
        reason: A part of what the report says of a bias that stays.
        held: Further modules and tensors.
        readers: How many times as wide as the hidden layer is what the last layer reads.
        bias: Whether the first layer has one.
    """

    act: Callable[[Net, Tensor], Tensor]
    phases: Mapping[str, tuple[float, tuple[str, ...]]]
    reason: str = ""
    held: Mapping[str, Callable[[], object]] | None = None
    readers: int = 1
    bias: bool = True

    def build(self) -> Net:
        """Make the network."""
        held = {name: make() for name, make in (self.held or {}).items()}
        last = nn.Linear(self.readers * HIDDEN, 2)
        return Net(self.act, nn.Linear(WIDTH, HIDDEN, bias=self.bias), last, **held)

    def example(self) -> Tensor:
        """Make inputs."""
        return torch.randn(5, WIDTH)


def _number(value: float) -> Callable[[], Tensor]:
    return lambda: torch.tensor(value)


def _parameter(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(0.5 + 2 * torch.rand(shape))


def _layer() -> nn.Module:
    return nn.Linear(HIDDEN, HIDDEN)


ONE = {"first.bias": (1.0, ())}
MOVES: Mapping[str, SineCase] = {
    "sine": SineCase(lambda m, u: u.sin(), ONE),
    "cosine": SineCase(lambda m, u: u.cos(), ONE),
    "a number": SineCase(lambda m, u: torch.sin(30 * u), {"first.bias": (30.0, ())}),
    "a negative number": SineCase(lambda m, u: torch.sin(-2.5 * u), {"first.bias": (-2.5, ())}),
    "a quotient": SineCase(lambda m, u: torch.sin(u / 4), {"first.bias": (0.25, ())}),
    "two numbers": SineCase(lambda m, u: torch.sin(3 * (2 * u)), {"first.bias": (6.0, ())}),
    "minus": SineCase(lambda m, u: torch.cos(-u), {"first.bias": (-1.0, ())}),
    "a constant beside": SineCase(lambda m, u: torch.sin(2 * (u + 0.3)), {"first.bias": (2.0, ())}),
    "a buffer": SineCase(lambda m, u: torch.sin(m.w0 * u), {"first.bias": (1.0, ("w0",))}, held={"w0": _number(7.5)}),
    "a buffer of whole numbers": SineCase(
        lambda m, u: torch.sin(m.w0 * u), {"first.bias": (1.0, ("w0",))}, held={"w0": lambda: torch.tensor(3)}
    ),
    "a learned number": SineCase(
        lambda m, u: torch.sin(2 * (m.w0 * u)), {"first.bias": (2.0, ("w0",))}, held={"w0": _parameter(1)}
    ),
    "learned frequencies": SineCase(
        lambda m, u: torch.sin(3 * (m.w0 * u)), {"first.bias": (3.0, ("w0",))}, held={"w0": _parameter(HIDDEN)}
    ),
    "an amplitude": SineCase(lambda m, u: m.gain * torch.sin(u), ONE, held={"gain": _parameter(HIDDEN)}),
    "sine and cosine": SineCase(lambda m, u: torch.cat([u.sin(), u.cos()], -1), ONE, readers=2),
    "overtones": SineCase(
        lambda m, u: m.two((2 * u).sin()) + u.sin() + m.three((3 * u).cos()), ONE, held={"two": _layer, "three": _layer}
    ),
    "squares": SineCase(lambda m, u: u.sin() ** 2, ONE),
    "a double angle": SineCase(lambda m, u: u.sin() * u.cos(), ONE),
    "laid otherwise": SineCase(
        lambda m, u: torch.sin(2 * u.unsqueeze(1).transpose(1, 2)).squeeze(-1), {"first.bias": (2.0, ())}
    ),
    "two biases": SineCase(
        lambda m, u: torch.sin(u + m.shift), {**ONE, "shift": (1.0, ())}, held={"shift": _parameter(HIDDEN)}
    ),
    "a bias that is scaled before": SineCase(
        lambda m, u: torch.sin(u + 5 * m.shift), {**ONE, "shift": (5.0, ())}, held={"shift": _parameter(HIDDEN)}
    ),
    "in a row": SineCase(
        lambda m, u: torch.sin(4 * m.next(torch.sin(u))), {**ONE, "next.bias": (4.0, ())}, held={"next": _layer}
    ),
    "a stream": SineCase(
        lambda m, u: torch.sin(u) + torch.sin(2 * m.next(torch.sin(u))),
        {**ONE, "next.bias": (2.0, ())},
        held={"next": _layer},
    ),
    "one layer twice": SineCase(
        lambda m, u: torch.sin(m.next(torch.sin(m.next(torch.sin(u))))),
        {**ONE, "next.bias": (1.0, ())},
        held={"next": _layer},
    ),
    "a batch norm": SineCase(lambda m, u: m.norm(torch.sin(u)), ONE, held={"norm": lambda: nn.BatchNorm1d(HIDDEN)}),
    "written in place": SineCase(lambda m, u: u.mul_(3).sin_(), {"first.bias": (3.0, ())}),
    "a layer norm before": SineCase(
        lambda m, u: torch.sin(m.norm(u)), {"norm.bias": (1.0, ())}, held={"norm": lambda: nn.LayerNorm(HIDDEN)}
    ),
    "a batch norm before": SineCase(
        lambda m, u: torch.sin(2 * m.norm(u)), {"norm.bias": (2.0, ())}, held={"norm": lambda: nn.BatchNorm1d(HIDDEN)}
    ),
    "relu behind a layer": SineCase(lambda m, u: torch.relu(m.next(torch.sin(u))), ONE, held={"next": _layer}),
}
"""Networks whose biases move."""


class Attended(nn.Module):
    """Sines in heads that look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.sin(3 * self.up(x)).view(*x.shape[:2], 2, 4).transpose(1, 2)
        return self.down(((heads @ heads.mT / 2).softmax(-1) @ heads).transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    """A recurrent network of sines."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.keep = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.last = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), HIDDEN, dtype=x.dtype, device=x.device)
        for step in x.unbind(1):
            state = torch.sin(self.read(step) + self.keep(state))
        return self.last(state)


class Modulated(nn.Module):
    """Sines whose frequencies and phases come out of another network."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.up, self.down = nn.Linear(WIDTH, 2 * HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        frequency, phase = self.map(x.mean(0)).chunk(2, -1)
        return self.down(torch.sin((15 * frequency + 30) * self.up(x) + phase))


class Wavelets(nn.Module):
    """Cosines within windows."""

    def __init__(self) -> None:
        super().__init__()
        self.wave, self.window, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.cos(9 * self.wave(x)) * torch.exp(-(self.window(x) ** 2)))


class Gated(nn.Module):
    """One half of a layer goes through a sine, the other through a tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        wave, gate = self.up(x).chunk(2, -1)
        return self.down(torch.sin(4 * wave) * torch.tanh(gate))


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(7 * x)


def _images() -> nn.Module:
    layers = [nn.Conv2d(2, 5, 3, padding=1), Sine(), nn.ConvTranspose2d(5, 4, 3, 2), Sine(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 81, 2))


FAMILIES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "attention": (Attended, (2, 4, WIDTH), 1),
    "recurrent": (Recurrent, (2, 4, WIDTH), 1),
    "modulated": (Modulated, (5, WIDTH), 1),
    "wavelets": (Wavelets, (5, WIDTH), 1),
    "gated": (Gated, (5, WIDTH), 1),
    "images": (_images, (3, 2, 4, 4), 2),
}
"""Networks of other shapes, with the shapes of their inputs and the number of biases that move."""
STAYS: Mapping[str, SineCase] = {
    "no bias": SineCase(lambda m, u: u.sin(), {}, bias=False),
    "tanh": SineCase(lambda m, u: u.tanh(), {}),
    "read beside": SineCase(lambda m, u: u.sin() + u, {}, "aten.add"),
    "snake": SineCase(lambda m, u: u + u.sin() ** 2, {}, "aten.add"),
    "damped": SineCase(lambda m, u: torch.exp(-(u**2)) * u.sin(), {}, "aten.pow"),
    "finer": SineCase(lambda m, u: torch.sin(30 * (u.abs() + 1) * u), {}, "aten.abs"),
    "another angle": SineCase(lambda m, u: torch.cat([u.sin(), (1.5 * u).sin()], -1), {}, "no signs", readers=2),
    "a rectified sine": SineCase(lambda m, u: u.sin().relu(), {}, "no signs"),
    "a shifted sine": SineCase(lambda m, u: u.sin() + 1, {}, "no signs"),
    "a sine that is activated": SineCase(lambda m, u: functional.gelu(u.sin()), {}, "no signs"),
    "a computed frequency": SineCase(
        lambda m, u: torch.sin(m.log.exp() * u), {}, "no number of the code", held={"log": _parameter(1)}
    ),
    "a frequency that the input says": SineCase(lambda m, u: torch.sin(u.mean() * u), {}, "aten."),
    "a mean over the batch": SineCase(lambda m, u: torch.sin(u - u.mean(0)), {}, "aten.mean"),
    "centred": SineCase(lambda m, u: torch.sin(u - u.mean(-1, keepdim=True)), {}, "aten.mean"),
    "padded": SineCase(lambda m, u: torch.sin(functional.pad(u, (0, 0, 0, 1)))[:5], {}, "aten."),
    "a view that is written": SineCase(lambda m, u: (u.view(-1).mul_(3), u.sin())[1], {}, "unknown"),
    "a number that is computed of one": SineCase(
        lambda m, u: torch.sin(2 * m.w0 * u), {}, "aten.mul", held={"w0": _parameter(1)}
    ),
    "a number beyond all": SineCase(lambda m, u: torch.sin(1e200 * (1e200 * u)).nan_to_num() + u, {}),
    "a tangent": SineCase(lambda m, u: torch.tan(u), {}),
    "cut off": SineCase(lambda m, u: torch.sin(u.clamp(-1, 1)), {}),
    "a mixed product": SineCase(lambda m, u: u.sin() * u.tanh(), {}, "aten.tanh"),
}
"""Networks in which something keeps a bias."""
