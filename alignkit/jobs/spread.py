"""How far several networks are apart, and how much the maps between them disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from alignkit.errors import AlignmentError, BindError
from alignkit.graph.bind import WeightsSource, fit_models
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.symmetry_graph import SymmetryGraph


def cycle_error(alignments: Mapping[tuple[int, int], Alignment]) -> float:
    """Return the share of units that three maps around a circle do not bring back to their place.

    Args:
        alignments: For each pair of models ``(i, j)`` with ``i < j`` the alignment that brings model j to model i.

    Returns:
        The mean over all circles of three models; 0 when there are only two models.
    """
    models = sorted({i for pair in alignments for i in pair})
    shares = []
    for i, j, k in combinations(models, 3):
        circle = alignments[i, j] @ alignments[j, k] @ alignments[i, k].inverse()
        units = sum(circle.flat(name).numel() for name in circle.graph.groups)
        shares.append(sum(circle.moved().values()) / max(units, 1))
    return sum(shares) / len(shares) if shares else 0.0


def fitted_models(graph: SymmetryGraph, models: Sequence[WeightsSource]) -> list[dict[str, Tensor]]:
    """Return the weights of every model by the first name of each tensor.

    Raises:
        AlignmentError: There are fewer than two models.
        BindError: Models do not fit the graph; the message lists every mismatch with the number of its model.
    """
    if isinstance(models, nn.Module | Mapping | str) or len(models) < 2:
        raise AlignmentError("aligning many takes a sequence of at least two models.")
    labelled = {f"model {i}": model for i, model in enumerate(models)}
    return fit_models(graph, labelled, BindError, "the models do not fit the graph", "models count from 0")


def spread(weights: Sequence[Mapping[str, Tensor]], alignments: Sequence[Alignment]) -> float:
    """Return the mean squared distance over all pairs of aligned models, in float64."""
    count = len(weights)
    total = 0.0
    for name in weights[0]:
        moved = [a.apply_tensor(name, w[name]).double() for a, w in zip(alignments, weights, strict=True)]
        mean = torch.stack(moved).mean(0)
        total += sum(float((tensor - mean).square().sum()) for tensor in moved)
    # The sum over pairs is `count` times the sum of squared distances to the mean.
    return total * count / (count * (count - 1) / 2)
