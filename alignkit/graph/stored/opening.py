"""Checkpoints held against a graph by the facts of their tensors; values are read only where names are tied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from alignkit.checkpoints import Checkpoint, open_checkpoint
from alignkit.errors import BindError
from alignkit.graph.bind import fit_of
from alignkit.graph.folded import check_folded
from alignkit.graph.rewrites import under_both_names
from alignkit.graph.stored.budget import Budget
from alignkit.graph.stored.network import CheckpointNetwork, StoredNetwork
from alignkit.graph.structure import GraphStructure
from alignkit.text import list_some


def open_stored(
    graph: GraphStructure, sources: Mapping[str, object], budget: Budget, note: str = ""
) -> list[StoredNetwork]:
    """Open checkpoints as networks of a graph that stay on disk, each by what messages call it; see `open_as_given`.

    Raises:
        BindError: A checkpoint is not folded as the graph needs it, or does not fit it.
        WeightsError: A file cannot be read.
    """
    networks = open_as_given(graph, sources, budget, note)
    opened = zip(sources.items(), networks, strict=True)
    fresh = {label: network for (label, source), network in opened if not isinstance(source, StoredNetwork)}
    check_folded(graph, fresh, BindError)
    return networks


def open_as_given(
    graph: GraphStructure, sources: Mapping[str, object], budget: Budget, note: str = ""
) -> list[StoredNetwork]:
    """Open checkpoints as networks of a graph that stay on disk, folded or not.

    Raises:
        BindError: Names, shapes, dtypes or ties do not fit; the message lists every mismatch of all. Or a source is in
            memory already.
        WeightsError: A file cannot be read.
    """
    fit, first = fit_of(graph), graph.first_names
    networks: dict[str, StoredNetwork] = {}
    dtypes: dict[str, dict[str, torch.dtype]] = {}
    for label, source in sources.items():
        if isinstance(source, StoredNetwork) and source.graph == graph:
            networks[label] = source.within(budget)
            dtypes[label] = {name: source.dtype(name) for name in source}
            continue
        checkpoint = open_checkpoint(source) if isinstance(source, str | Path) else source
        if not isinstance(checkpoint, Checkpoint):
            raise BindError(
                f"memory= is for networks on disk, and {label} is {type(source).__name__}: give the path of a "
                "checkpoint, or leave memory= out."
            )
        if whole := sorted(checkpoint.whole_only):
            raise BindError(
                f"{checkpoint.path} stores {list_some(whole, 3)} in other pieces than the model holds, such as each "
                "expert on its own. They cannot be read a few rows at a time: leave the limit of memory out."
            )
        fit.check_shapes(under_both_names(checkpoint.shapes, graph.folds), label)
        own = under_both_names(checkpoint.dtypes, graph.folds)
        dtypes[label] = {first.get(name, name): dtype for name, dtype in own.items()}
        if not fit.problems:
            networks[label] = CheckpointNetwork(graph, checkpoint, budget)
    fit.check_dtypes(dtypes)
    if not fit.problems:
        fit.problems += [problem for label, network in networks.items() for problem in _differing_ties(network, label)]
    fit.raise_if_any(BindError, "the weights do not fit the graph", note)
    return list(networks.values())


def _differing_ties(network: StoredNetwork, label: str) -> list[str]:
    """Say which names of one tensor of the graph hold different values."""
    if not isinstance(network, CheckpointNetwork):
        return []
    problems = []
    for node in network.graph.tensors.values():
        kept = network.names[node.name]
        for other in (name for name in node.names if name in network.checkpoint and name != kept):
            both = ([network.read(name, span) for name in (kept, other)] for span in network.spans(node.name))
            if any(one.dtype != two.dtype or not torch.equal(one, two) for one, two in both):
                problems.append(f"{other!r} and {kept!r} are tied in the graph but differ in {label}")
    return problems
