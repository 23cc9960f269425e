"""`merge`: networks that do not share a basin, aligned and averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints import OnProgress
from alignkit.checkpoints.dtypes import FloatDtype, Rounding
from alignkit.errors import MergeError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource, weights_of
from alignkit.graph.stored import StoredNetwork
from alignkit.jobs.align_many import ManyAlignment, align_many
from alignkit.jobs.average import Averaging, Method
from alignkit.jobs.fold import Folded, folded_like
from alignkit.jobs.kept_solves import solve_kept
from alignkit.jobs.mending import Mending, Statistics
from alignkit.jobs.mergekit_methods import name_arithmetic
from alignkit.jobs.near_phases import with_near_phases
from alignkit.jobs.shares import SharesByPattern
from alignkit.jobs.solve import SolverLike, completed, graph_and_models
from alignkit.jobs.spread import fitted_models
from alignkit.jobs.stretch import Stretched, check_stretchable
from alignkit.jobs.stretch import stretch as stretch_spaces
from alignkit.jobs.task_vectors import TASK_METHODS
from alignkit.reports import Check, Facts, Lines, Losses, MergeLosses, Names, Report
from alignkit.solver.solution import Solution
from alignkit.tasks.task import Task
from alignkit.text import Explained

POINTS = 11
"""Places on the line between two networks where a task is evaluated: every tenth, the middle among them."""


@dataclass(frozen=True, eq=False, repr=False)
class Merged(Explained):
    """Networks brought to one order of units and averaged.

    Attributes:
        network: The average: a module where modules were given, else a state dict; a checkpoint for jobs on disk.
        aligned: The networks in one order of units, the first as it was.
        alignment: How they were aligned: a `Solution` for two, a `ManyAlignment` for more.
        statistics: What became of the running statistics of the average, such as those of BatchNorm.
        pair: The two networks as they were given; None for more, and for networks on disk.
        losses: The task on the networks and on their averages, if there is a task.
        rounding: What the average lost when it was rounded to its dtypes; of a network on disk once it was read.
        arithmetic: Whose functions did the arithmetic, such as ``"mergekit 0.1.5"``; None for a weighted average.
        stretched: What became of scales and matrices, if they were to move.
    """

    network: nn.Module | Mapping[str, Tensor]
    aligned: Sequence[nn.Module | Mapping[str, Tensor]]
    alignment: Solution | ManyAlignment
    statistics: Statistics
    pair: Pair | None = None
    losses: MergeLosses | None = None
    rounding: Rounding = field(default_factory=Rounding)
    arithmetic: str | None = None
    stretched: Stretched | None = None

    def __repr__(self) -> str:
        return f"Merged({self.alignment!r})"

    def explain(self) -> str:
        """Say in a few lines how the networks were aligned, what it was worth, and what is left to do."""
        text = [self.alignment.explain()]
        if isinstance(self.alignment, Solution):
            before, after = self.alignment.objective_before, self.alignment.objective_after
            text.append(f"Squared distance of the two: {before:.6g} unaligned, {after:.6g} aligned.")
        if self.stretched is not None:
            text.append(self.stretched.explain())
        if self.losses is not None:
            text.append(self.losses.explain())
        if self.arithmetic is not None:
            text.append(f"Arithmetic of the merge: {self.arithmetic}.")
        return "\n".join([*text, *self.rounding.explain(), *self.statistics.explain()])

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        task = {} if self.losses is None else {"task": self.losses.facts()}
        how: dict[str, Any] = {} if self.arithmetic is None else {"arithmetic": self.arithmetic}
        how |= {} if self.stretched is None else {"stretched": self.stretched.facts()}
        return {**self.alignment.facts(), **task, **how, **self.rounding.facts(), **self.statistics.facts()}

    @check_arguments
    def report(
        self, title: str = "Merged networks", *, names: Names = None, check: Check = None, facts: Facts = None
    ) -> Report:
        """Say what alignment gained beside no alignment, with pictures."""
        told = " ".join(self.statistics.explain()) or "nothing to do"
        facts, losses = {**(facts or {}), "running statistics": told}, self.losses
        facts |= {"rounding": " ".join(self.rounding.explain()) or f"{self.rounding.relative:.1g} of the length"}
        if isinstance(self.alignment, Solution):
            return self.alignment.report(title, pair=self.pair, check=check, losses=losses, facts=facts)
        return self.alignment.report(title, names=names, check=check, losses=losses, facts=facts)


@check_arguments
def merge(
    pair: Pair | SymmetryGraph,
    *models: WeightsSource | Folded,
    weights: SharesByPattern = None,
    method: Method = "linear",
    dtype: FloatDtype | None = None,
    density: float = 0.5,
    solver: SolverLike = "weight_matching",
    task: Task | None = None,
    reset_batchnorm: bool = True,
    repair: bool = False,
    stretch: int = 0,
    memory: int | str | None = None,
    path: str | PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    **arguments: Any,
) -> Merged:
    """Align networks and average them. `alignkit.average` is the plain average.

    Two networks are aligned by `alignkit.solve`, more by `alignkit.align_many`: each to the mean of the others. With a
    task, running statistics such as those of BatchNorm are recomputed on its inputs. Without one they are averaged and
    do not fit, and the result says so.

    Args:
        pair: Two networks, ``graph.bind(a, b)``; or a graph, with two or more networks behind it.
        models: The networks, if ``pair`` is a graph: modules, state dicts or checkpoint paths; where the graph has
            folds or balances, what `alignkit.fold` made of them. The first keeps its order of units. Fine-tunes of a
            base that was folded are given as they were trained, or folded ``like`` it.
        weights: Share of each network, or factor of each task vector, as in `alignkit.average`, also by patterns of
            names. None: equal ones. Layers of different shares are still aligned as one network: the average computes
            something in between, and nothing is proved about it.
        method: ``"linear"``; for two networks ``"slerp"``; or ``"task_arithmetic"``, ``"ties"`` or ``"dare"``, which
            take the first network for the base. See `alignkit.average`.
        density: Share of the entries of task vectors that TIES and DARE keep.
        dtype: Floating-point dtype of the average. None: those of the first network. Networks may have different ones.
        solver: Solver of the alignment, as in `alignkit.solve`. ``"identity"`` leaves the units where they are.
        task: Data and a loss, for solvers that need them. The losses of the networks, of their plain average and of the
            aligned one are measured as well, for two networks also those on the line between them.
        reset_batchnorm: Whether running statistics of averages are recomputed on the inputs of the task, as
            `alignkit.reset_batchnorm` does.
        repair: Whether averages are repaired on the inputs of the task instead, as `alignkit.repair` does.
        stretch: Steps in which scales and matrices of the second network move, as `alignkit.stretch` does, on inputs of
            the task; for two networks that are averaged or taken together by SLERP.
        memory: With a limit the checkpoints stay on disk, as in `SymmetryGraph.bind`, and so does the average: it is
            computed when it is asked for a tensor, or written in pieces; for SLERP, TIES and DARE a whole tensor at a
            time. There is no task then.
        path: A file to which solves are written, so that a killed run resumes where it was: see `alignkit.align_many`.
        on_progress: Called as in `SymmetryGraph.bind` for two networks, as in `alignkit.align_many` for more.
        arguments: Further arguments of `alignkit.solve` or `alignkit.align_many`: a device, a seed, options.

    Raises:
        MergeError: Shares or method are wrong, the networks cannot be averaged, or statistics cannot be recomputed.
        FoldError: A fine-tune was not folded as its base was.
        AlignmentError: ``path`` holds the solves of another job.
        BindError: A network does not fit the graph.
        SolverError: The solver is unknown, an option is wrong, or it failed.
        TaskError: The networks do not fit the task's model, or it fails on a batch.
    """
    graph, sources = graph_and_models("merge", pair, _networks_of(models, method))
    averaging = Averaging.of(len(sources), weights, method, dtype, density, arguments.get("seed") or 0)
    averaging = averaging.on(graph.first_names)
    mending = Mending(task, reset_batchnorm, repair)
    if memory is not None or any(isinstance(source, StoredNetwork) for source in sources):
        if task is not None or stretch:
            raise MergeError("networks on disk are merged without a task, and not stretched: leave memory= out.")
        return _merge_stored(graph, sources, averaging, memory, on_progress, solver=solver, path=path, **arguments)
    kinds = {isinstance(source, nn.Module) for source in sources}
    if len(kinds) > 1:
        raise MergeError("merge takes modules or state dicts, not both: the average has the form of its parts.")
    networks: list[Any] = [source if isinstance(source, nn.Module) else weights_of(source) for source in sources]
    if stretch:
        _check_stretch(graph, stretch, len(networks), method, task)
    if task is not None:  # before anything is solved
        task.checked(networks[0])
    alignment: Solution | ManyAlignment
    if len(networks) > 2:
        bound = None
        given: dict[str, Any] = {"solver": solver, "task": task, "path": path, "on_progress": on_progress}
        alignment = align_many(graph, *networks, **given, **arguments)
        first, *others = alignment.apply(networks)
    else:
        bound = pair if isinstance(pair, Pair) else graph.bind(*networks, on_progress=on_progress)
        alignment = completed(solve_kept(bound, path, solver=solver, task=task, **arguments))
        first, others = networks[0], [alignment.apply(networks[1])]
    if method not in TASK_METHODS:  # what lies between a fine-tune and its base is what was tuned
        others = [with_near_phases(graph, first, other) for other in others]
    stretched = None
    if stretch and task is not None:
        stretched = stretch_spaces(graph, first, others[0], task=task, steps=stretch, seed=arguments.get("seed") or 0)
        others = [stretched.network]
    aligned = [first, *others]
    shares = averaging.parents()
    network, statistics = mending.mend(averaging.of_networks(aligned), aligned, shares)
    losses = None
    if task is not None:
        unaligned = replace(averaging, rounding=Rounding())
        plain, _ = mending.mend(unaligned.of_networks(networks), networks, shares)
        losses = _losses(task, mending, networks, aligned[-1], {"unaligned": plain, "aligned": network})
    arithmetic = name_arithmetic(method)
    return Merged(network, aligned, alignment, statistics, bound, losses, averaging.rounding, arithmetic, stretched)


def _networks_of(models: Sequence[WeightsSource | Folded], method: Method) -> tuple[WeightsSource, ...]:
    """Return networks, those of fine-tunes folded and balanced as their base was."""
    if models and isinstance(base := models[0], Folded) and method in TASK_METHODS:
        return (base.network, *(folded_like(base, tuned) for tuned in models[1:]))
    return tuple(model.network if isinstance(model, Folded) else model for model in models)


def _check_stretch(graph: SymmetryGraph, steps: int, count: int, method: Method, task: Task | None) -> None:
    """Refuse to stretch what cannot be, before anything is solved."""
    if steps < 0:
        raise MergeError(f"stretch={steps}: give a number of steps, or 0.")
    if task is None:
        raise MergeError("stretch= moves scales until the average does what both networks do: give a task.")
    if count > 2 or method in TASK_METHODS:
        raise MergeError('stretch= is for two networks and method="linear" or "slerp": one goes to the other.')
    check_stretchable(graph)


def _merge_stored(
    graph: SymmetryGraph,
    sources: Sequence[Any],
    averaging: Averaging,
    memory: int | str | None,
    on_progress: OnProgress | None,
    path: str | PathLike[str] | None,
    **arguments: Any,
) -> Merged:
    """Merge networks that stay on disk; nothing of the average is computed yet."""
    networks = fitted_models(graph, sources, memory)
    averaging.check_memory([network for network in networks if isinstance(network, StoredNetwork)])
    alignment: Solution | ManyAlignment
    if len(networks) > 2:
        alignment = align_many(graph, *networks, path=path, on_progress=on_progress, **arguments)
        aligned = alignment.apply(networks)
    else:
        pair = Pair(graph, networks[0], networks[1], on_progress=on_progress)
        alignment = completed(solve_kept(pair, path, **arguments))
        aligned = [networks[0], alignment.apply(networks[1])]
    if averaging.method not in TASK_METHODS:
        aligned = [aligned[0], *(with_near_phases(graph, aligned[0], other) for other in aligned[1:])]
    statistics = Statistics.unmended(() if averaging.keeps_one else graph.tensors)
    average = averaging.of_networks(aligned)
    arithmetic = name_arithmetic(averaging.method)
    return Merged(average, aligned, alignment, statistics, rounding=averaging.rounding, arithmetic=arithmetic)


def _losses(
    task: Task, mending: Mending, networks: Sequence[Any], last: Any, averages: Mapping[str, Any]
) -> MergeLosses:
    """Evaluate the networks and their averages; two also on the line between them, to ``last``, which is aligned B."""
    names = ("A", "B") if len(networks) == 2 else [f"model {at}" for at in range(len(networks))]
    parents = Losses(dict(zip(names, map(task.evaluate, networks), strict=True)), task.metric_name)
    both = Losses({how: task.evaluate(network) for how, network in averages.items()}, task.metric_name)
    if len(networks) > 2:
        return MergeLosses(parents, both)
    ends = {"identity": networks[1], "aligned": last}
    lines = [mending.line(networks[0], end, POINTS, label) for label, end in ends.items()]
    return MergeLosses(parents, both, Lines(*lines))
