"""Jobs on network files whose tensors pass through a given amount of memory in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints import Checkpoint, OnProgress
from alignkit.errors import UsageError
from alignkit.jobs.average import shares_of
from alignkit.jobs.from_disk.applying import align_checkpoint, merge_checkpoints
from alignkit.jobs.from_disk.budget import parse_memory
from alignkit.jobs.from_disk.matching import match_checkpoints
from alignkit.jobs.mending import Statistics
from alignkit.jobs.merge import Merged
from alignkit.jobs.network_files import NetworkFiles
from alignkit.jobs.solve import completed
from alignkit.solver.solution import Solution


@check_arguments
def memory_limit(memory: str, *, solver: str, device: str | None, count: int, others: Sequence[str] = ()) -> int:
    """Return the bytes that a limit allows, once it is clear that the job can keep it.

    Args:
        memory: The limit, such as ``"2GB"``.
        solver: The solver that is asked for.
        device: The device that is asked for.
        count: Number of checkpoints.
        others: What else is asked for that needs whole networks.

    Raises:
        UsageError: It is not an amount, or something else is asked for that needs whole networks in memory.
    """
    limit = parse_memory(memory)
    if solver != "weight_matching":
        raise UsageError("--memory is for --solver weight_matching: other solvers hold both networks in memory.")
    if device not in (None, "cpu"):
        raise UsageError("--memory works on the CPU: leave --device out.")
    if count != 2:
        raise UsageError(f"--memory is for two checkpoints, not {count}.")
    if others:
        raise UsageError(f"--memory does not go with {', '.join(others)}, which needs whole networks in memory.")
    return limit


@check_arguments
def solve_files(
    files: NetworkFiles,
    output: Path,
    memory: int,
    *,
    on_progress: OnProgress | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> Solution:
    """Align the second checkpoint to the first and write it.

    Args:
        files: The two checkpoints.
        output: Folder or file to write.
        memory: Bytes that may be used beside what the process takes anyway.
        on_progress: Called with the bytes processed so far.
        overwrite: Replace an output that exists.
        arguments: Seed and options of weight matching.

    Raises:
        SolverError: The memory does not suffice.
        BindError: A checkpoint does not fit the graph.
        WeightsError: The output cannot be written.
    """
    a, b = files.checkpoints
    solution = match_checkpoints(files.graph, a, b, memory, on_progress=on_progress, **arguments)
    align_checkpoint(output, b, solution, memory=memory, on_progress=on_progress, overwrite=overwrite)
    return solution


@check_arguments
def merge_files(
    files: NetworkFiles,
    output: Path,
    memory: int,
    *,
    weights: Sequence[float] | None = None,
    on_progress: OnProgress | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> Merged:
    """Align the second checkpoint to the first and write their average.

    Args and errors are those of `solve_files`; ``weights`` are the shares of the networks, equal if None. The network
    of the result is read from the output when it is asked for.
    """
    a, b = files.checkpoints
    solution = completed(match_checkpoints(files.graph, a, b, memory, on_progress=on_progress, **arguments))
    order = [None, solution]
    merge_checkpoints(output, [a, b], order, weights, memory=memory, on_progress=on_progress, overwrite=overwrite)
    is_parent = max(shares_of(weights, 2)) == 1
    return Merged(_Written(output, a), (), solution, Statistics.unmended(() if is_parent else a))


class _Written(Mapping[str, Tensor]):
    """A network that is read from an output when a tensor is asked for; its names are those of an input."""

    def __init__(self, output: Path, like: Checkpoint) -> None:
        self._output, self._like = output, like

    @cached_property
    def _opened(self) -> Checkpoint:
        return self._like.open_alike(self._output)

    def __getitem__(self, name: str) -> Tensor:
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._like)

    def __len__(self) -> int:
        return len(self._like)
