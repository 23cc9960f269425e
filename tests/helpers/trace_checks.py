"""Running a trace in tests and proving it on perturbed weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from alignkit.graph import SymmetryGraph
from alignkit.graph.proof.perturb import perturbed
from alignkit.tracing import trace


def proved(model: nn.Module, *args: Any, draws: int = 3, **kwargs: Any) -> SymmetryGraph:
    """Trace a model and prove the graph on perturbed weights; return the graph."""
    model = perturbed(model.eval())
    graph = trace(model, *args, **kwargs)
    graph.verify(model, *args, draws=draws, **kwargs)
    return graph


def counts(graph: SymmetryGraph) -> tuple[int, int]:
    """Return how many groups without and with a parent a graph has."""
    families = sum(group.parent is not None for group in graph.groups.values())
    return len(graph.groups) - families, families
