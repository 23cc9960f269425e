"""Checkpoints that are larger than memory: matched, aligned and averaged from files to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.arguments import check_arguments
from alignkit.checkpoints import Checkpoint, OnProgress, write_checkpoint
from alignkit.errors import MergeError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.stored.budget import Budget, parse_memory
from alignkit.graph.stored.opening import open_stored
from alignkit.graph.symmetry_graph import SymmetryGraph
from alignkit.jobs.average import AverageNetwork
from alignkit.jobs.solve import solve
from alignkit.solver.solution import Solution

DEFAULT_MEMORY = 1 << 30
"""Memory for streaming where none is given, 1 GiB."""


@check_arguments
def match_checkpoints(
    graph: SymmetryGraph,
    a: Checkpoint | str | Path,
    b: Checkpoint | str | Path,
    memory: int | str,
    *,
    on_progress: OnProgress | None = None,
    **arguments: Any,
) -> Solution:
    """Solve a pair of checkpoints that stay on disk: ``solve(graph.bind(a, b, memory=memory), ...)``.

    Args:
        graph: The graph of their architecture; traced on fake tensors it needs no weights.
        a: Reference checkpoint.
        b: Checkpoint to be aligned.
        memory: What may be used; see `SymmetryGraph.bind`, as for ``on_progress``.
        on_progress: Called with the bytes read in each sweep.
        arguments: Further arguments of `alignkit.solve`: a solver, a start, a seed, options.

    Raises:
        SolverError: The memory does not suffice, or an option is wrong.
        BindError: A checkpoint does not fit the graph, or holds NaN or infinity.
        AlignmentError: ``init`` belongs to another graph.
        WeightsError: A checkpoint cannot be read.
    """
    return solve(graph.bind(a, b, memory=memory, on_progress=on_progress), **arguments)


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
    (network,) = open_stored(order.graph, {"B": b}, Budget(parse_memory(memory)))
    write_checkpoint(output, b, network.under(order.elements).pieces, on_progress, overwrite=overwrite)


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
    orders = [order.alignment if isinstance(order, Solution) else order for order in alignments]
    graphs = list({id(order.graph): order.graph for order in orders if order is not None}.values())
    if len(orders) != len(checkpoints) or not graphs:
        raise MergeError("give one alignment, or None, for each checkpoint, and one alignment at least.")
    if any(other != graphs[0] for other in graphs):
        raise MergeError("the alignments belong to different graphs.")
    labelled = {f"checkpoint {at}": checkpoint for at, checkpoint in enumerate(checkpoints)}
    networks = open_stored(graphs[0], labelled, Budget(parse_memory(memory)))
    moved = [n if order is None else n.under(order.elements) for n, order in zip(networks, orders, strict=True)]
    average = AverageNetwork.of(moved, weights)
    write_checkpoint(output, checkpoints[0], average.pieces, on_progress, overwrite=overwrite)
