"""Heads that are tied to an embedding, and the graph of a model in which they are not."""

from __future__ import annotations

from torch import nn

from alignkit.graph import SymmetryGraph


def tied_heads(graph: SymmetryGraph, model: nn.Module) -> dict[str, str]:
    """Return the heads that keep a gain from being folded because they are tied, each with the name of its embedding.

    Of the names of one tensor those are heads whose module is not an embedding.
    """
    heads: dict[str, str] = {}
    for tied in {blocked.where for blocked in graph.blocked if blocked.reason == "tied"}:
        names = graph.tensors[tied].names if tied in graph.tensors else ()
        embeddings = [name for name in names if _owner_is_embedding(model, name)]
        heads |= {name: embeddings[0] for name in names if embeddings and name not in embeddings}
    return heads


def _owner_is_embedding(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
