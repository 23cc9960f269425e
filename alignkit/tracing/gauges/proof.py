"""Proof of what the second pass found: folds, balances and random elements are tried on perturbed weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from alignkit.graph import SymmetryGraph
from alignkit.graph.bind import weights_of
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.module_copy import copy_module
from alignkit.graph.phases import move_phases, phases_in
from alignkit.graph.proof.model_run import ModelRun, run_in_widest
from alignkit.graph.proof.perturb import perturbed
from alignkit.graph.proof.verify import TOLERANCE, relative_difference
from alignkit.graph.rewrites import (
    AnyBalance,
    Balance,
    Fold,
    Gain,
    Mean,
    OutputScale,
    Phase,
    Shift,
    Through,
    Untie,
    Zero,
    uses_at,
)
from alignkit.rewriting import WideWeights, balance_weights, fold_weights
from alignkit.tracing.gauges.verdicts import PHASES, SIGNS

DRAWS = 2
"""Random elements that are tried; a wrong kind changes outputs by more than a percent in each."""
FOLDS, BALANCES = "folds", "balances"
"""What else is tried of a group beside its kind."""
_Weights: TypeAlias = Mapping[str, Tensor]


def refute(
    graph: SymmetryGraph, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, frozenset[str]]:
    """Return what was tried of each group and changes what a model computes: its kind, its folds, its balances.

    The model's weights are copied, perturbed and folded; it runs in float64 where it can. Permutations are not tried:
    see `SymmetryGraph.verify`.
    """
    run = run_in_widest(partial(ModelRun, perturbed(model), args, kwargs, chosen=graph.provenance.outputs))
    given = {name: tensor for name, tensor in weights_of(run.model).items() if name in graph.tensors}

    def changes(weights: _Weights) -> bool:
        return (
            not relative_difference(run.call(_with_weights(graph, run.model, weights)), run.outputs)
            <= TOLERANCE[run.dtype]
        )

    failed: dict[str, frozenset[str]] = {}
    folded = _fold(given, graph.folds)
    if changes(folded):
        folded = given
        for fold in graph.folds:  # some need others before them
            further = _fold(folded, [fold])
            if changes(further):
                failed |= dict.fromkeys(_groups_of(fold, graph), frozenset((FOLDS,)))
            else:
                folded = further
        return failed
    identity = Alignment.identity(graph).elements
    for seed in range(DRAWS):
        drawn = Alignment.random(graph, seed).elements
        moved = {name: drawn[name] for name, group in graph.groups.items() if group.kind != "permutation"}
        if moved and changes(Alignment(graph, {**identity, **moved}).apply(folded)):
            for name, element in moved.items():
                if changes(Alignment(graph, {**identity, name: element}).apply(folded)):
                    space = _space_of(name, graph)
                    what = graph.groups[name].kind if space == name else SIGNS
                    failed[space] = failed.get(space, frozenset()) | {what}
    if graph.balances and changes(_balance(folded, graph, graph.balances)):
        for balance in graph.balances:
            if isinstance(balance, Balance) and changes(_balance(folded, graph, [balance])):
                failed[balance.group] = failed.get(balance.group, frozenset()) | {BALANCES}
    phases = phases_in(graph)
    if phases and changes(_turn(folded, graph, phases)):
        for phase in phases:
            if changes(_turn(folded, graph, [phase])):
                failed[phase.group] = failed.get(phase.group, frozenset()) | {PHASES}
    return failed


def _turn(weights: _Weights, graph: SymmetryGraph, phases: Iterable[Phase]) -> dict[str, Tensor]:
    moved = {name: tensor.clone() for name, tensor in weights.items()}
    move_phases(graph, phases, moved, torch.Generator().manual_seed(0))
    return moved


def _fold(weights: _Weights, folds: Iterable[Fold]) -> dict[str, Tensor]:
    wide = WideWeights(weights)
    fold_weights(wide, folds)
    return wide.rounded()


def _balance(weights: _Weights, graph: SymmetryGraph, balances: Iterable[AnyBalance]) -> dict[str, Tensor]:
    wide = WideWeights(weights)
    balance_weights(wide, graph, balances)
    return wide.rounded()


def _groups_of(fold: Fold, graph: SymmetryGraph) -> set[str]:
    """Return the groups that act where a fold takes something."""
    match fold:
        case Zero(place) | Through(place):
            places = [place]
        case Mean(writers, readers):
            places = [*writers, *readers]
        case Gain(_, readers):
            places = list(readers)
        case Shift(_, pairs):
            places = [reader for reader, _ in pairs]
        case OutputScale(_, writers):
            places = list(writers)
        case Untie():
            places = []
    groups = {group: units for group in graph.groups if (units := graph.unit_count(group))}
    acting = ({g for g in groups if uses_at(graph.tensors[place.tensor], g, place)} for place in places)
    members = set().union(*acting)
    members = {_space_of(group, graph) for group in members}
    return {group for group in members if not any(graph.groups[other].parent == group for other in members)}


def _space_of(group: str, graph: SymmetryGraph) -> str:
    """Return the space that a group is found for: the units, for the signs that each of them owns."""
    parent = graph.groups[group].parent
    return parent if parent is not None and graph.groups[group].size == 1 else group


def _with_weights(graph: SymmetryGraph, model: nn.Module, weights: _Weights) -> nn.Module:
    """Return a copy of a model with other weights, given by first names."""
    copied = copy_module(model)
    with torch.no_grad():
        for name, tensor in copied.state_dict(keep_vars=True).items():
            if name in graph.first_names:
                tensor.data.copy_(weights[graph.first_names[name]])
    return copied
