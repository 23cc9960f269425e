"""`transport`: a fine-tune carried from one base to another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints.dtypes import FloatDtype, Rounding, length, read_dtype
from alignkit.checkpoints.fit import is_counter, is_number
from alignkit.errors import MergeError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import Weights, WeightsSource, fit_of, weights_of
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.folded import check_folded
from alignkit.graph.hidden_state import check_hidden_state
from alignkit.graph.stored import StoredNetwork
from alignkit.graph.stored.opening import open_stored
from alignkit.jobs.average import widen, with_tensors
from alignkit.jobs.carried_network import CarriedNetwork, TaskVector, carried
from alignkit.jobs.fold import Folded, folded_like
from alignkit.jobs.mending import Mending, Statistics
from alignkit.jobs.passage import alignment_sections
from alignkit.jobs.solve import SolverLike, bound_pair, completed, solve
from alignkit.reports import Check, Facts, Losses, Report, Section, Table
from alignkit.solver.solution import Solution
from alignkit.tasks.task import Task
from alignkit.text import Explained, list_some

TITLE = "A fine-tune carried to another base"


@dataclass(frozen=True, eq=False, repr=False)
class Transported(Explained):
    """A fine-tune on another base: ``network`` is the tuned base B, a module where one was given, else a state dict.

    With a limit of memory it stays on disk, and ``rounding`` is known once it was read.
    ``alignment`` brings base B to base A; there is no ``solution`` where it was given. ``length`` is that of the task
    vector, ``||tuned A - base A||`` in float64, ``scale`` its factor. ``statistics`` says what became of running
    statistics such as those of BatchNorm. ``losses`` are those of a task on base A, tuned A, base B and the network.
    ``whole_numbers_left`` are tensors of whole numbers or truth values, counters left out, that tuning changed: they
    have no difference that could be carried. ``rounding`` is what the network lost when it was rounded to its dtypes.
    """

    network: nn.Module | Mapping[str, Tensor]
    alignment: Alignment
    solution: Solution | None
    length: float
    scale: float
    statistics: Statistics
    losses: Losses | None = None
    whole_numbers_left: tuple[str, ...] = ()
    rounding: Rounding = field(default_factory=Rounding)

    def __repr__(self) -> str:
        return f"Transported(task vector of length {self.length:.6g}, times {self.scale:g})"

    def explain(self) -> str:
        """Say in a few lines what was carried, and how the bases were aligned."""
        how = "The bases were aligned before." if self.solution is None else self.solution.explain()
        lines = [how, f"Task vector of length {self.length:.6g}, times {self.scale:g}."]
        if self.whole_numbers_left:
            names = list_some([repr(name) for name in self.whole_numbers_left])
            lines.append(
                f"Whole numbers have no task vector. Tuning changed some, which stay those of base B: {names}."
            )
        if self.losses is not None:
            lines.append(self.losses.explain())
        return "\n".join([*lines, *self.rounding.explain(), *self.statistics.explain()])

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        solved = {} if self.solution is None else self.solution.facts()
        own = {"scale": self.scale, "task_vector": self.length, "whole_numbers_left": list(self.whole_numbers_left)}
        task = {} if self.losses is None else {"task": self.losses.measures}
        return {**solved, **own, **task, **self.rounding.facts(), **self.statistics.facts()}

    @check_arguments
    def report(
        self, title: str = TITLE, *, pair: Pair | None = None, check: Check = None, facts: Facts = None
    ) -> Report:
        """Say what was carried, with pictures of the alignment where one was solved."""
        own = {**(facts or {}), "length of the task vector": f"{self.length:.6g}", "scale": f"{self.scale:g}"}
        own["running statistics"] = " ".join(self.statistics.explain()) or "nothing to do"
        sections = alignment_sections(title, self.alignment, self.solution, pair, check, own)
        if self.losses is not None:
            table = Table(("", *self.losses.results), tuple(self.losses.rows))
            sections = (*sections[:1], Section("The task", (table,)), *sections[1:])
        return Report(title, sections)


@check_arguments
def transport(
    pair: Pair | SymmetryGraph,
    a: WeightsSource | Folded | None = None,
    b: WeightsSource | Folded | None = None,
    *,
    tuned: WeightsSource | Folded,
    alignment: Alignment | Solution | None = None,
    scale: float = 1.0,
    dtype: FloatDtype | None = None,
    solver: SolverLike = "weight_matching",
    task: Task | None = None,
    reset_batchnorm: bool = True,
    repair: bool = False,
    memory: int | str | None = None,
    **arguments: Any,
) -> Transported:
    """Carry a fine-tune from base A to base B: ``base_b + scale * P^-1 # (tuned_a - base_a)``.

    The alignment is the one that brings B to A. Its inverse brings the task vector of A (Ilharco et al., "Editing
    models with task arithmetic", 2023) to the units of B. Nothing of B is reordered. With a task, running statistics
    such as those of BatchNorm are recomputed on its inputs. Without one they are carried like weights and do not fit,
    and the result says so.

    Args:
        pair: The two bases, ``graph.bind(base_a, base_b)``; or a graph, with them beside it.
        a: The base that was tuned, if ``pair`` is a graph: a module, a state dict or a checkpoint path; where the graph
            has folds or balances, what `alignkit.fold` made of it.
        b: The base that the task vector is added to, if ``pair`` is a graph; as ``a``. It is left as it is.
        tuned: Base A after tuning, its units in the same order. Where base A is what `alignkit.fold` returned, it is
            given as it was trained, and folded ``like`` its base.
        alignment: Aligns base B to base A. None: it is solved.
        scale: Factor of the task vector. -1 takes the task away.
        dtype: Floating-point dtype of the result. None: those of base B. Networks may have different ones.
        solver: Solver of the alignment, as in `alignkit.solve`.
        task: Data and a loss of what was tuned for; for solvers that need them, too. The losses of base A, tuned A,
            base B and the result are measured.
        reset_batchnorm: Whether running statistics of the result are recomputed on the inputs of the task, as
            `alignkit.reset_batchnorm` does.
        repair: Whether the result is repaired on the inputs of the task instead, as `alignkit.repair` does. Its one
            parent is base B.
        memory: With a limit all three networks, which are paths then, stay on disk, as in `SymmetryGraph.bind`, and so
            does the result: it is computed when it is asked for a tensor, or written in pieces. There is no task then.
        arguments: Further arguments of `alignkit.solve`: a device, a seed, options.

    Returns:
        The result, whose ``network`` is a module or a dict, as base B is, in its dtypes and on its devices. Whole
        numbers and truth values are those of B. Running variances stay positive.

    Raises:
        MergeError: ``tuned`` does not fit the graph (every mismatch is named), the scale is not finite, a sum overflows
            the dtype of B, or statistics cannot be recomputed.
        BindError: The bases do not fit the graph.
        SolverError: The solver is unknown or failed.
        FoldError: The fine-tune cannot be folded as its base was.
        TaskError: The networks do not fit the task's model, or it fails on a batch.
    """
    mending, rounding = Mending(task, reset_batchnorm, repair), Rounding()
    wanted = None if dtype is None else read_dtype(dtype)
    if not math.isfinite(scale):
        raise MergeError(f"scale is {scale}: give a finite number.")
    if isinstance(a, Folded):
        tuned = folded_like(a, tuned)
    base_a, base_b = (network.network if isinstance(network, Folded) else network for network in (a, b))
    tuned = tuned.network if isinstance(tuned, Folded) else tuned
    bases = bound_pair("transport", pair, base_a, base_b, memory)
    if bases.is_stored and task is not None:
        raise MergeError("networks on disk are carried without a task: leave memory= out.")
    if task is not None:  # before anything is solved
        task.checked(bases.b)
    solution = completed(solve(bases, solver=solver, task=task, **arguments)) if alignment is None else None
    given = solution if alignment is None else alignment
    assert given is not None
    order = given if isinstance(given, Alignment) else given.alignment
    if order.graph != bases.graph:
        raise MergeError("the alignment belongs to another graph than the networks.")
    if isinstance(bases.a, StoredNetwork) and isinstance(bases.b, StoredNetwork):
        (stored,) = open_stored(bases.graph, {"tuned": tuned}, bases.a.budget)
        change = TaskVector(bases.a, stored)
        result = CarriedNetwork(bases.b, change.under(order.inverse().elements), scale, wanted, rounding)
        left_alone, told = change.whole_numbers, Statistics.unmended(bases.graph.tensors)
        return Transported(result, order, solution, change.length, scale, told, None, left_alone, rounding)
    fit = fit_of(bases.graph)
    after = fit.check_tensors(weights_of(tuned), "tuned")
    fit.check_dtypes({"tuned": {name: tensor.dtype for name, tensor in after.items()}})
    fit.raise_if_any(MergeError, "the models do not fit the graph")
    check_folded(bases.graph, {"tuned": after}, MergeError)
    check_hidden_state({"base A": bases.module_a, "tuned": tuned}, MergeError)
    back, values = order.inverse(), {}
    lengths: list[float] = []
    left: list[str] = []
    with torch.no_grad():
        for name, target in bases.b.items():
            if not is_number(target):
                values[name] = target.detach().clone()
                if not is_counter(name) and not torch.equal(after[name].cpu(), bases.a[name].cpu()):
                    left.append(name)
                continue
            vector = widen(after[name], target.device) - widen(bases.a[name], target.device)
            lengths.append(length(vector))
            moved = back.apply_tensor(name, vector)
            values[name] = carried(name, target, moved, scale, wanted or target.dtype, rounding)
    named = {name: values[first] for name, first in bases.graph.first_names.items()}
    if bases.module_b is not None:
        network: nn.Module | dict[str, Tensor] = with_tensors(bases.module_b, named)
    else:
        network = {name: named[name] for name in (bases.b if base_b is None else weights_of(base_b))}
    base: Weights = bases.b if bases.module_b is None else bases.module_b
    mended, statistics = mending.mend(network, [base], [1.0])
    losses = None
    if task is not None:
        measured = {"base A": bases.a, "tuned A": after, "base B": bases.b, "carried": mended}
        losses = Losses({name: task.evaluate(weights) for name, weights in measured.items()}, task.metric_name)
    size = math.hypot(*lengths)
    return Transported(mended, order, solution, size, scale, statistics, losses, tuple(left), rounding)
