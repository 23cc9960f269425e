"""The one rule of all jobs on networks: they take ``(pair)``, or ``(graph, a, b)``."""

from __future__ import annotations

from alignkit.errors import BindError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource


def bound_pair(call: str, pair: Pair | SymmetryGraph, a: WeightsSource | None, b: WeightsSource | None) -> Pair:
    """Return the pair that a job works on: ``pair``, or a graph bound to ``a`` and ``b``; ``call`` is for messages.

    Raises:
        BindError: The arguments are neither a pair nor a graph with two networks, or these do not fit the graph.
    """
    if isinstance(pair, Pair):
        if a is not None or b is not None:
            raise BindError(f"the graph is bound to its networks already: call {call}(pair) without a and b.")
        return pair
    if isinstance(pair, SymmetryGraph):
        if a is None or b is None:
            raise BindError(f"a graph alone says nothing about weights: call {call}(graph, a, b).")
        return pair.bind(a, b)
    raise BindError(
        f"{call}() takes a pair or a SymmetryGraph first, not {type(pair).__name__}. Make a graph with "
        "alignkit.trace(model, example), or with SymmetryGraph.from_spec(spec, like=model)."
    )


def graph_and_models(
    call: str, pair: Pair | SymmetryGraph, models: tuple[WeightsSource, ...]
) -> tuple[SymmetryGraph, list[WeightsSource]]:
    """Return the graph and the networks of a job that takes two or more: ``(pair)``, or ``(graph, a, b, c)``.

    Raises:
        BindError: The arguments are neither a pair nor a graph with at least two networks.
    """
    if isinstance(pair, Pair):
        if models:
            raise BindError(f"the graph is bound to its networks already: call {call}(pair) without more of them.")
        a = pair.a if pair.module_a is None else pair.module_a
        b = pair.b if pair.module_b is None else pair.module_b
        return pair.graph, [a, b]
    if not isinstance(pair, SymmetryGraph):
        raise BindError(f"{call}() takes a pair or a SymmetryGraph first, not {type(pair).__name__}.")
    if len(models) < 2:
        raise BindError(f"{call}() needs at least two networks: call {call}(graph, a, b), with more behind them.")
    return pair, list(models)
