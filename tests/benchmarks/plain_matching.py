"""Weight matching written plainly, for any graph: what the benchmarks hold alignkit against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import alignkit
from alignkit.graph.elements.action import act_on_block


def plain_matching(
    graph: alignkit.SymmetryGraph, a: Mapping[str, Tensor], b: Mapping[str, Tensor], seed: int = 0
) -> alignkit.Alignment:
    """[Ainsworth23], Algorithm 1: groups in random order, every product in full, until none moves.

    From the identity, as published. Units inside others are matched within their parents, and parents with what they
    contain as it is ordered. Products are float32, as in the authors' code; assignment is scipy's.
    """
    elements = dict(alignkit.Alignment.identity(graph).elements)
    names, rng = list(graph.groups), np.random.default_rng(seed)
    progress = True
    while progress:
        progress = False
        for at in rng.permutation(len(names)):
            progress |= improve(graph, names[at], elements, a, b)
    return alignkit.Alignment(graph, elements)


def improve(
    graph: alignkit.SymmetryGraph,
    group: str,
    elements: dict[str, Tensor],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
) -> bool:
    """Match one group, all others fixed; tell whether that gained."""
    similarity = torch.zeros(())
    for use in graph.uses[group]:
        if a[use.tensor].is_floating_point():
            left, right = (use.block.view(side[use.tensor]) for side in (a, b))
            right = act_on_block(use.block, right, elements, skip=frozenset({use.at}))
            similarity = similarity + use.unfold(left) @ use.unfold(right).mT
    gained = False
    rows = np.arange(similarity.shape[-1])
    element = elements[group].reshape(-1, len(rows)).clone()
    for parent, matrix in enumerate(similarity.numpy()):
        assigned = linear_sum_assignment(matrix, maximize=True)[1]
        gain = matrix[rows, assigned].sum() - matrix[rows, element[parent].numpy()].sum()
        if gain > 1e-6 * abs(matrix[rows, assigned]).sum():
            element[parent], gained = torch.from_numpy(assigned), True
    elements[group] = element.reshape(elements[group].shape)
    return gained
