"""Folds carried out and undone, each by itself an exact rewrite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from alignkit.errors import FoldError
from alignkit.graph.rewrites import AxisOf, Fold, Gain, Mean, OutputScale, Shift, Through, Untie, Zero
from alignkit.rewriting.wide import WideWeights

Taken: TypeAlias = tuple[tuple[Fold, tuple[Tensor, ...]], ...]
"""What each fold took out of a network: the vectors that it set to a constant, or the means."""


def fold_weights(weights: WideWeights, folds: Iterable[Fold]) -> Taken:
    """Carry out folds in place, in the order of ``graph.folds``; `unfold_weights` takes what they return.

    Raises:
        FoldError: A gain of 0 would have to divide a shift, or a tensor holds whole numbers.
    """
    return tuple((fold, _apply(fold, weights)) for fold in folds)


def _apply(fold: Fold, weights: WideWeights) -> tuple[Tensor, ...]:
    """Carry out one fold in place, and return what it took out."""
    match fold:
        case Untie(tensor, source):
            if tensor not in weights:
                weights.weights[tensor] = weights.weights[source]
            return ()
        case OutputScale(scale, writers):
            old = weights[scale].clone()
            _multiply(weights, writers, old)
            weights[scale].fill_(1.0)
            return (old,)
        case Shift(shift, readers):
            old = weights[shift].clone()
            for reader, bias in readers:
                weights.add(bias, _contract(weights, reader, old))
            weights[shift].zero_()
            return (old,)
        case Gain(gain, readers, offset, shift):
            old = weights[gain].clone()
            factor = old + offset
            if shift is not None:
                _divide_shift(weights, fold, factor)
            _multiply(weights, readers, factor)
            weights[gain].fill_(1.0 - offset)
            return (old,)
        case Zero(bias):
            old = weights.take(bias).clone()
            weights.put(bias, torch.zeros_like(old))
            return (old,)
        case Through(bias, _, into):
            old = weights.take(bias).clone()
            weights.add(into, _through(fold, old, weights))
            weights.put(bias, torch.zeros_like(old))
            return (old,)
        case Mean(writers, readers):
            means = []
            for place in (*writers, *readers):
                values = weights.take(place)
                means.append(values.mean(-1, keepdim=True))
                weights.put(place, values - means[-1])
            return tuple(means)


def unfold_weights(weights: WideWeights, taken: Taken) -> None:
    """Undo folds in place: put back what they took out of a network, or what they took out of another one.

    Raises:
        FoldError: A gain or a scale is 0, which nothing can be divided by.
    """
    for fold, old in reversed(taken):
        _undo(fold, old, weights)


def _undo(fold: Fold, old: Sequence[Tensor], weights: WideWeights) -> None:
    match fold:
        case Untie():
            pass
        case OutputScale(scale, writers):
            _multiply(weights, writers, _reciprocal(old[0], scale))
            weights[scale].copy_(old[0])
        case Shift(shift, readers):
            for reader, bias in readers:
                weights.add(bias, -_contract(weights, reader, old[0]))
            weights[shift].add_(old[0])
        case Gain(gain, readers, offset, shift):
            factor = old[0] + offset
            _multiply(weights, readers, _reciprocal(factor, gain))
            if shift is not None:
                weights[shift].mul_(factor.reshape(weights[shift].shape))
            weights[gain].copy_(old[0])
        case Zero(bias):
            weights.put(bias, weights.take(bias) + old[0])
        case Through(bias, _, into):
            weights.add(into, -_through(fold, old[0], weights))
            weights.put(bias, weights.take(bias) + old[0])
        case Mean(writers, readers):
            for place, mean in zip((*writers, *readers), old, strict=True):
                weights.put(place, weights.take(place) + mean)


def _multiply(weights: WideWeights, places: Iterable[AxisOf], factor: Tensor) -> None:
    for place in places:
        values = weights.take(place)
        weights.put(place, values * factor.flatten().to(values.device))


def _contract(weights: WideWeights, reader: AxisOf, vector: Tensor) -> Tensor:
    values = weights.take(reader)
    return values @ vector.flatten().to(values.device)


def repeated(bias: Tensor, heads: int, length: int) -> Tensor:
    """Repeat the bias of each of some key/value heads as often as queries read it, ``length`` numbers in all."""
    by_head = bias.reshape(heads, 1, -1)
    return by_head.expand(-1, length // bias.numel(), -1).reshape(-1)


def _through(fold: Through, bias: Tensor, weights: WideWeights) -> Tensor:
    """Return what the reader of a bias makes of it."""
    return _contract(weights, fold.reader, repeated(bias, fold.heads, weights.take(fold.reader).shape[-1]))


def _divide_shift(weights: WideWeights, fold: Gain, factor: Tensor) -> None:
    """Divide the shift that stays by the gain; where both are 0, it stays 0."""
    assert fold.shift is not None
    shift = weights[fold.shift]
    factor = factor.reshape(shift.shape).to(shift.device)
    stuck = (factor == 0) & (shift != 0)
    if bool(stuck.any()):
        at = int(stuck.flatten().nonzero()[0])
        clash = f"{fold.gain!r} is 0 at position {at}, where {fold.shift!r} is not"
        raise FoldError(f"{clash}: no reader has a bias for the shift, and it cannot be divided by 0.")
    shift /= torch.where(factor == 0, 1.0, factor)


def _reciprocal(factor: Tensor, name: str) -> Tensor:
    if bool((factor == 0).any()):
        at = int((factor == 0).flatten().nonzero()[0])
        raise FoldError(f"{name!r} was 0 at position {at}: this fold has no inverse.")
    return 1 / factor
