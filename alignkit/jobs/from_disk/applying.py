"""Checkpoints under an alignment, and averages of aligned checkpoints, streamed from files to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkit.checkpoints import Checkpoint, OnProgress, write_checkpoint
from alignkit.checkpoints.shard import Values, ValuesOf
from alignkit.errors import MergeError
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.average import average, shares_of
from alignkit.jobs.from_disk.budget import Budget, parse_memory
from alignkit.jobs.from_disk.matching import fit_on_disk
from alignkit.jobs.from_disk.weights import Reordered
from alignkit.solver.solution import Solution

DEFAULT_MEMORY = 1 << 30
"""Memory for streaming where none is given, 1 GiB."""


def align_checkpoint(
    output: str | Path,
    b: Checkpoint,
    alignment: Alignment | Solution,
    *,
    memory: int | str = DEFAULT_MEMORY,
    on_progress: OnProgress | None = None,
    overwrite: bool = False,
) -> None:
    """Write B with its units in the new order, in the form of B; see `alignkit.checkpoints.write_checkpoint`.

    Args:
        output: Folder or file to write.
        b: The checkpoint.
        alignment: Brings B to A.
        memory: What may be used; large tensors pass through it in pieces.
        on_progress: Called with the bytes written so far.
        overwrite: Replace an output that exists.

    Raises:
        BindError: The checkpoint does not fit the alignment's graph.
        WeightsError: The output cannot be written.
    """
    order = alignment if isinstance(alignment, Alignment) else alignment.alignment
    write_checkpoint(output, b, aligned_values(b, order, memory), on_progress, overwrite=overwrite)


def merge_checkpoints(
    output: str | Path,
    checkpoints: Sequence[Checkpoint],
    alignments: Sequence[Alignment | Solution | None],
    weights: Sequence[float] | None = None,
    *,
    memory: int | str = DEFAULT_MEMORY,
    on_progress: OnProgress | None = None,
    overwrite: bool = False,
) -> None:
    """Write the weighted average of aligned checkpoints, in the form of the first; see `alignkit.average`.

    Args:
        output: Folder or file to write.
        checkpoints: Two or more checkpoints of one architecture.
        alignments: What brings each of them to the basis of the average; None for one that is there already.
        weights: Share of each, divided by their sum. None: equal shares.
        memory: What may be used; large tensors pass through it in pieces.
        on_progress: Called with the bytes written so far.
        overwrite: Replace an output that exists.

    Raises:
        MergeError: Shares are wrong, no alignment is given, or whole numbers differ.
        BindError: A checkpoint does not fit the graph, or dtypes differ.
        WeightsError: The output cannot be written.
    """
    shares = shares_of(weights, len(checkpoints))
    orders = [order.alignment if isinstance(order, Solution) else order for order in alignments]
    graphs = list({id(order.graph): order.graph for order in orders if order is not None}.values())
    if len(orders) != len(checkpoints) or not graphs:
        raise MergeError("give one alignment, or None, for each checkpoint, and one alignment at least.")
    graph = graphs[0]
    if any(other != graph for other in graphs):
        raise MergeError("the alignments belong to different graphs.")
    budget = Budget(parse_memory(memory))
    sources = [fit_on_disk(graph, checkpoints[0], checkpoint, budget)[1] for checkpoint in checkpoints]
    elements = [(Alignment.identity(graph) if order is None else order).elements for order in orders]
    nodes = graph.first_names

    def values(name: str) -> Values:
        moved = [Reordered(graph.tensors[nodes[name]], element) for element in elements]
        spans = moved[0].pieces(budget.piece)
        rows = ([each.at(side, span) for each, side in zip(moved, sources, strict=True)] for span in spans)
        pieces = (average([{name: part} for part in parts], shares)[name] for parts in rows)
        return pieces if moved[0].splits else next(pieces)

    write_checkpoint(output, checkpoints[0], values, on_progress, overwrite=overwrite)


def aligned_values(b: Checkpoint, alignment: Alignment, memory: int | str = DEFAULT_MEMORY) -> ValuesOf:
    """Return what `alignkit.checkpoints.write_checkpoint` takes to write B under an alignment."""
    budget = Budget(parse_memory(memory))
    source, _ = fit_on_disk(alignment.graph, b, b, budget)
    nodes = alignment.graph.first_names

    def values(name: str) -> Values:
        moved = Reordered(alignment.graph.tensors[nodes[name]], alignment.elements)
        pieces = (moved.at(source, span) for span in moved.pieces(budget.piece))
        return pieces if moved.splits else next(pieces)

    return values
