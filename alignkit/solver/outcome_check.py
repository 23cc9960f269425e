"""What a solver hands back is checked before it is believed: solvers may be third-party code."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor, nn

from alignkit.errors import AlignmentError, SolverError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.owned import ReadOnly
from alignkit.graph.structure import GraphStructure
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.solver.outcome import Outcome, Status, Step
from alignkit.solver.problem import Problem
from alignkit.text import list_some, show_value


def checked_outcome(outcome: object, graph: GraphStructure) -> Outcome:
    """Return what a solver returned for a graph, with memory of its own and in plain values that can be saved.

    Raises:
        SolverError: It is something else; the message says what, in a sentence.
    """
    if not isinstance(outcome, Outcome) or not isinstance(outcome.alignment, Alignment):
        wrong = outcome.alignment if isinstance(outcome, Outcome) else outcome
        raise SolverError(f"Expected an Outcome that holds an Alignment, found {type(wrong).__name__}.")
    soft, status, stats, notes = outcome.soft, outcome.status, outcome.stats, outcome.notes
    if outcome.alignment.graph != graph:
        raise SolverError("The alignment belongs to another graph.")
    try:  # Classes of their own may check nothing.
        alignment = Alignment(graph, outcome.alignment.elements)
    except AlignmentError as error:
        raise SolverError(f"The alignment is not an element of the symmetry group: {error}") from error
    if not isinstance(status, Status):
        raise SolverError(f"The status is {show_value(status)}, not a Status.")
    if soft is not None:
        if not isinstance(soft, SoftAlignment):
            raise SolverError(f"The soft alignment is {show_value(soft)}, not a SoftAlignment.")
        if soft.graph != graph:
            raise SolverError("The soft alignment belongs to another graph.")
        try:
            soft = SoftAlignment(graph, soft.matrices)
        except AlignmentError as error:
            raise SolverError(f"The soft alignment is not one: {error}") from error
    for what, mapping, values in (("stats", stats, "numbers"), ("notes", notes, "texts")):
        if not isinstance(mapping, Mapping):
            raise SolverError(f"The {what} are {show_value(mapping)}, not a mapping from names to {values}.")
    for name, value in stats.items():
        if not _is_text(name) or not _is_finite(value):
            raise SolverError(
                f"The stats map {show_value(name)} to {show_value(value)}, not a name to a finite number."
            )
    for name, text in notes.items():
        if not _is_text(name) or not _is_text(text):
            raise SolverError(f"The notes map {show_value(name)} to {show_value(text)}, not a name to a text.")
    plain_stats = {str(name): int(x) if isinstance(x, Integral) else float(x) for name, x in stats.items()}
    return Outcome(alignment, status, plain_stats, soft, {str(name): str(text) for name, text in notes.items()})


def checked_step(step: object, who: str) -> Step:
    """Return what a solver reported, in plain values and without an alignment; ``who`` names it in messages.

    Raises:
        SolverError: It is not a `Step`, has fields of other types, or its objective is not finite. The solver ends.
    """
    if not isinstance(step, Step):
        raise SolverError(f"{who} reported {show_value(step)}: report(Step(iteration, objective, note)).")
    iteration, objective, note = step.iteration, step.objective, step.note
    if not isinstance(step.alignment, Alignment | None):
        raise SolverError(f"{who} reported {show_value(step.alignment)} as the alignment of a step.")
    if not (isinstance(iteration, Integral) and _is_finite(iteration) and _is_finite(objective) and _is_text(note)):
        needed = "a whole number, a finite number and a text are needed"
        raise SolverError(f"{who} reported {show_value(step)}: {needed}.")
    if step.share is not None and not (_is_finite(step.share) and 0 <= step.share <= 1):
        raise SolverError(f"{who} reported {show_value(step.share)} as the share of a step: 0 to 1, or None.")
    share = None if step.share is None else float(step.share)
    return Step(int(iteration), float(objective), str(note), share=share)


def _is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value is a text that a file can hold; half a surrogate pair cannot be written."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode() == value


def _is_finite(value: object) -> TypeGuard[Real]:
    try:
        return isinstance(value, Real) and math.isfinite(float(value))
    except OverflowError:  # a whole number or a fraction beyond float64
        return False


class WriteGuard:
    """Notices writes to the tensors of a problem, and changes of the modules that they came from.

    In-place writes are counted by torch for autograd. Writes that it does not count, through ``tensor.data`` or numpy,
    change the checksum of the bytes (the CRC-32, 7 GB/s on a laptop; their sum on other devices than the CPU). A side
    on disk gives a new tensor at every look: there is nothing to write to.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tensors = dict(_tensors(problem))
        self._before = {label: _state(tensor) for label, tensor in self._tensors.items()}
        self._modules = _modules(problem)

    def fault(self) -> str:
        """Say in a sentence what was written to; "" if nothing was."""
        if written := [label for label, tensor in self._tensors.items() if _state(tensor) != self._before[label]]:
            return f"While it ran, tensors that are the caller's own were written to: {list_some(written, 3)}."
        if changed := [label for label, state in _modules(self._problem).items() if state != self._modules[label]]:
            what = "tensors were replaced, or the mode was switched"
            return f"While it ran, the caller's own {' and '.join(changed)} changed: {what}."
        return ""


def _tensors(problem: Problem) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in memory that a solver can write to, each with what to call it."""
    objective = problem.objective
    for label, own, copied in (("A", problem.a, objective.a), ("B", problem.b, objective.b)):
        for name, tensor in own.items() if isinstance(own, ReadOnly) else ():
            yield f"{name!r} of {label}", tensor
            # The objective holds copies only of tensors on another device.
            if isinstance(copied, ReadOnly) and copied[name].data_ptr() != tensor.data_ptr():
                yield f"{name!r} of {label} in problem.objective", copied[name]


_READ_AS_THEY_ARE = (torch.float32, torch.float64)
"""Types that numpy has: their bytes are read in half the time."""


def _state(tensor: Tensor) -> tuple[int, int]:
    """Return the count of writes to a tensor, and a checksum of its bytes."""
    count = 0 if tensor.is_inference() else tensor._version
    if tensor.dtype in _READ_AS_THEY_ARE and tensor.is_cpu and tensor.is_contiguous() and not tensor.is_neg():
        return count, zlib.crc32(tensor.detach().numpy().data)
    whole = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return count, zlib.crc32(whole.numpy().data) if whole.device.type == "cpu" else int(whole.sum())


def _modules(problem: Problem) -> dict[str, object]:
    """Return where the tensors of both modules are, and which of their parts are in training mode."""
    modules: dict[str, nn.Module | None] = {"model A": problem.bound.module_a, "model B": problem.bound.module_b}
    return {
        label: (
            {name: tensor.data_ptr() for name, tensor in module.state_dict(keep_vars=True).items()},
            [part.training for part in module.modules()],
        )
        for label, module in modules.items()
        if module is not None
    }
