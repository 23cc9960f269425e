"""Copies of a folded network that compute the same, with all that folds and balances take out of a network planted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignkit import Alignment, SymmetryGraph
from alignkit.graph import Balance, Phase
from alignkit.graph.phases import move_phases
from alignkit.graph.rewrites import Fold, Gain, Mean, OutputScale, Shift, Through, Untie, Zero, uses_at
from alignkit.rewriting import WideWeights, unfold_weights

State = dict[str, Tensor]


def sides(graph: SymmetryGraph, balance: Balance, weights: State) -> list[list[Tensor]]:
    """Views into weights, ``[*instances, *rest, units]``, of what writes a space, and of what reads it."""
    views: list[list[Tensor]] = []
    for places in (balance.writes, balance.reads):
        views.append([])
        for place in places:
            for use in uses_at(graph.tensors[place.tensor], balance.group, place):
                *ancestors, at = use.chain
                views[-1].append(use.block.view(weights[place.tensor]).permute(*ancestors, *use.rest, at))
    return views


def act(side: list[Tensor], instances: tuple[int, ...], matrices: Tensor) -> None:
    """Multiply the units of each instance by its matrix, in place."""
    for view in side:
        rest = [1] * (view.ndim - len(instances) - 1)
        view.copy_((matrices.reshape(*instances, *rest, *matrices.shape[-2:]) @ view[..., None])[..., 0])


def drawn(balance: Balance, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw elements of the group of a balance: factors of 0.1 to 10, matrices of condition 10."""

    def factors(*shape: int) -> Tensor:
        return 10 ** (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)

    def turned() -> Tensor:
        return torch.linalg.qr(torch.randn(count, size, size, generator=generator, dtype=torch.float64))[0]

    if balance.kind == "invertible":
        return turned() @ torch.diag(torch.logspace(-0.5, 0.5, size, dtype=torch.float64)) @ turned()
    if balance.kind == "complex_planes":
        half = size // 2
        planes = torch.polar(factors(count, half), 2 * math.pi * torch.rand(count, half, generator=generator).double())
        real, imaginary = torch.diag_embed(planes.real), torch.diag_embed(planes.imag)
        return torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)
    scales = factors(count, size)
    if balance.kind == "monomial":
        scales *= torch.randint(2, scales.shape, generator=generator) * 2 - 1
    return torch.diag_embed(scales)


def planted(graph: SymmetryGraph, weights: State, seed: int) -> State:
    """Move a random scale, matrix or factor of planes from one side of every space to the other."""
    moved = {name: tensor.clone() for name, tensor in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    for balance in graph.balances:
        if isinstance(balance, Phase):
            move_phases(graph, [balance], moved, generator)
            continue
        writes, reads = sides(graph, balance, moved)
        *instances, size = graph.unit_shape(balance.group)
        matrices = drawn(balance, math.prod(instances), size, generator)
        inverse = torch.linalg.inv(torch.linalg.matrix_power(matrices, balance.degree)).mT
        act(writes, tuple(instances), matrices)
        act(reads, tuple(instances), inverse)
    return moved


def copied(graph: SymmetryGraph, weights: State, seed: int) -> tuple[State, Alignment]:
    """Return a copy of folded weights under a random element, with factors, phases, gains and shifts of its own.

    Beside it comes the element.
    """
    element = Alignment.random(graph, seed)
    wide = WideWeights(planted(graph, element.apply(weights), seed))
    generator = torch.Generator().manual_seed(seed)
    unfold_weights(wide, tuple((fold, _vectors(fold, wide, generator)) for fold in graph.folds))
    return wide.rounded(), element


def _vectors(fold: Fold, weights: WideWeights, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw what a fold takes out: gains and scales of either sign, shifts, biases and means."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    def gains(like: Tensor) -> Tensor:
        return (0.4 * normal(like)).exp() * normal(like).sign()

    match fold:
        case Untie():
            return ()
        case OutputScale(scale):
            return (gains(weights[scale]),)
        case Gain(gain, _, offset):
            return (gains(weights[gain]) - offset,)
        case Shift(shift):
            return (normal(weights[shift]),)
        case Zero(bias) | Through(bias):
            return (normal(weights.take(bias)),)
        case Mean(writers, readers):
            return tuple(normal(weights.take(place)[..., :1]) for place in (*writers, *readers))
