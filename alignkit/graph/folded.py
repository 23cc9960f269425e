"""Are weights folded? The claims of a graph with folds hold for weights that went through `alignkit.fold`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.graph.rewrites import AxisOf, Fold, Gain, Mean, OutputScale, Shift, Through, Untie, Zero
from alignkit.graph.structure import GraphStructure
from alignkit.text import list_some

ROUNDED = 1 / 8
"""Largest mean of rounded numbers that counts as 0, in units of their size over the square root of their count. Where a
mean was not subtracted it is about 1, and rounding to 8 bits leaves 1/30."""


def check_folded(graph: GraphStructure, models: Mapping[str, Mapping[str, Tensor]], error: type[AlignkitError]) -> None:
    """Check that the weights of models, by what messages call them and by first names, went through all folds.

    Raises:
        AlignkitError: A parameter is not what its fold leaves; in the given class.
    """
    unfolded = {label: list(what_is_unfolded(graph.folds, tensors)) for label, tensors in models.items()}
    problems = [f"{problem} in {label}" for label, listed in unfolded.items() for problem in listed]
    if problems:
        first = "fold both models first" if len(models) == 2 else "fold the weights first"
        raise error(f"{first}: alignkit.fold(model, graph). Still to be folded: {list_some(problems, 4, '; ')}.")


def what_is_unfolded(folds: Iterable[Fold], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Say of each parameter that still has to be folded what it is not, such as ``"'ln.weight' is not 1"``.

    Args:
        folds: The folds of a graph.
        tensors: Tensors by first name.
    """
    for fold in folds:
        for name, place, wanted in constants_after(fold):
            if not bool((positions_of(tensors[name], place) == wanted).all()):
                segment = f" ({place.segment})" if place is not None and place.segment else ""
                yield f"{name!r}{segment} is not {wanted:g}"
        if isinstance(fold, Mean):
            for place in (*fold.writers, *fold.readers):
                if not _has_no_mean(positions_of(tensors[place.tensor], place)):
                    yield f"{place.tensor!r} has a mean along axis {place.axis}"


def constants_after(fold: Fold) -> Iterator[tuple[str, AxisOf | None, float]]:
    """Yield what is constant after a fold: a tensor, its positions, the number."""
    match fold:
        case Gain(gain, _, offset):
            yield gain, None, 1.0 - offset
        case OutputScale(scale):
            yield scale, None, 1.0
        case Shift(shift):
            yield shift, None, 0.0
        case Zero(bias) | Through(bias):
            yield bias.tensor, bias, 0.0
        case Mean() | Untie():
            pass


def _has_no_mean(values: Tensor) -> bool:
    values = values.float() if values.dtype.itemsize == 1 else values  # torch adds up no floats of 8 bits
    means = values.mean(-1, dtype=torch.float64).square().mean()
    squares = torch.linalg.vector_norm(values, dtype=torch.float64).square() / max(1, values.numel())
    return not bool(means > ROUNDED**2 / max(1, values.shape[-1]) * squares)


def positions_of(tensor: Tensor, place: AxisOf | None) -> Tensor:
    """Return the positions of a place with their axis last, a view where they are a whole axis."""
    if place is None:
        return tensor
    if place.segment:
        positions = list(place.positions({place.tensor: tuple(tensor.shape)}))
        tensor = tensor.index_select(place.axis, torch.tensor(positions, device=tensor.device))
    return tensor.movedim(place.axis, -1)
