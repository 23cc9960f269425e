"""Running a trace in tests and proving it on perturbed weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.graph import SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.proof.outputs import output_tensors
from alignkit.graph.proof.perturb import perturbed
from alignkit.graph.proof.verify import relative_difference
from alignkit.tracing import trace


def proved(model: nn.Module, *args: Any, draws: int = 3, **kwargs: Any) -> SymmetryGraph:
    """Trace a model and prove the graph on perturbed weights; return the graph."""
    model = perturbed(model.eval())
    graph = trace(model, *args, **kwargs)
    graph.verify(model, *args, draws=draws, **kwargs)
    return graph


def keeps_function(model: nn.Module, graph: SymmetryGraph, *calls: tuple[Any, ...], draws: int = 3) -> None:
    """Assert that random symmetries keep the outputs of calls of a model, whatever shapes these have."""
    model = perturbed(model.double().eval())
    for draw in range(draws):
        moved = Alignment.random(graph, draw).apply(model)
        for args in calls:
            inputs = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
            with torch.no_grad():
                left, right = (output_tensors(network(*inputs)) for network in (model, moved))
            assert relative_difference(left, right) < 1e-9, args


def counts(graph: SymmetryGraph) -> tuple[int, int]:
    """Return how many groups without and with a parent a graph has."""
    families = sum(group.parent is not None for group in graph.groups.values())
    return len(graph.groups) - families, families


def layouts(graph: SymmetryGraph) -> dict[str, str]:
    """Return the layout of each tensor that moves, sizes of groups left out."""
    moving = {name: re.sub(r":\d+", "", text) for name, text in graph.spec().items()}
    return {name: text for name, text in moving.items() if set(text) - set(". ")}


def sizes(graph: SymmetryGraph) -> dict[str, int]:
    """Return the number of units of each group; those of a family in one unit of its parent."""
    return {name: group.size for name, group in graph.groups.items()}
