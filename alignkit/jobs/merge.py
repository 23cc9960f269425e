"""`merge`: networks that do not share a basin, aligned and averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.errors import MergeError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource, weights_of
from alignkit.jobs.align_many import ManyAlignment, align_many
from alignkit.jobs.average import Method, average, check_method, shares_of
from alignkit.jobs.solve import SolverLike, graph_and_models, solve
from alignkit.reports import Check, Facts, Lines, Names, Report
from alignkit.solver.solution import Solution
from alignkit.tasks.interpolation import interpolate
from alignkit.tasks.task import Task

POINTS = 11
"""Places on the line between two networks where a task is evaluated: every tenth, the middle among them."""


@dataclass(frozen=True, eq=False, repr=False)
class Merged:
    """Networks brought to one order of units and averaged.

    Attributes:
        network: The average: a module where modules were given, else a state dict; a checkpoint for jobs on disk.
        aligned: The networks in one order of units, the first as it was.
        alignment: How they were aligned: a `Solution` for two, a `ManyAlignment` for more.
        pair: The two networks as they were given; None for more.
        lines: The task on the line between two networks, if there is a task.
    """

    network: nn.Module | Mapping[str, Tensor]
    aligned: Sequence[nn.Module | Mapping[str, Tensor]]
    alignment: Solution | ManyAlignment
    pair: Pair | None = None
    lines: Lines | None = None

    def __repr__(self) -> str:
        return f"Merged({self.alignment!r})"

    def explain(self) -> str:
        """Say in a few lines how the networks were aligned, what it was worth, and what is left to do."""
        text = [self.alignment.explain()]
        if isinstance(self.alignment, Solution):
            before, after = self.alignment.objective_before, self.alignment.objective_after
            text.append(f"Squared distance of the two: {before:.6g} unaligned, {after:.6g} aligned.")
        if self.lines is not None:
            text.append(self.lines.explain())
        names = self.network.state_dict() if isinstance(self.network, nn.Module) else self.network
        if any(name.endswith("running_mean") for name in names):
            text.append(
                "BatchNorm statistics were averaged and do not fit the merged network. Recompute them with data "
                "before you use it: model = alignkit.reset_batchnorm(model, batches)."
            )
        return "\n".join(text)

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        return {**self.alignment.facts(), **({} if self.lines is None else {"task": self.lines.facts()})}

    @check_arguments
    def report(
        self, title: str = "Merged networks", *, names: Names = None, check: Check = None, facts: Facts = None
    ) -> Report:
        """Say what alignment gained beside no alignment, with pictures."""
        if isinstance(self.alignment, Solution):
            return self.alignment.report(title, pair=self.pair, check=check, lines=self.lines, facts=facts)
        return self.alignment.report(title, names=names, check=check, facts=facts)


@check_arguments
def merge(
    pair: Pair | SymmetryGraph,
    *models: WeightsSource,
    weights: Sequence[float] | None = None,
    method: Method = "linear",
    solver: SolverLike = "weight_matching",
    task: Task | None = None,
    **arguments: Any,
) -> Merged:
    """Align networks and average them. `alignkit.average` is the plain average.

    Two networks are aligned by `alignkit.solve`, more by `alignkit.align_many`: each to the mean of the others.

    Args:
        pair: Two networks, ``graph.bind(a, b)``; or a graph, with two or more networks behind it.
        models: The networks, if ``pair`` is a graph: modules, state dicts or checkpoint paths. The first keeps its
            order of units.
        weights: Share of each network: not negative, divided by their sum. None: equal shares.
        method: ``"linear"`` or, for two networks, ``"slerp"``; see `alignkit.average`.
        solver: Solver of the alignment, as in `alignkit.solve`. ``"identity"`` leaves the units where they are.
        task: Data and a loss, for solvers that need them. For two networks the loss on the line between them is
            measured as well, aligned and as they were given.
        arguments: Further arguments of `alignkit.solve` or `alignkit.align_many`: a device, a seed, options.

    Raises:
        MergeError: Shares or method are wrong, or the networks cannot be averaged.
        BindError: A network does not fit the graph.
        SolverError: The solver is unknown, an option is wrong, or it failed.
    """
    graph, sources = graph_and_models("merge", pair, models)
    shares_of(weights, len(sources))
    check_method(method, len(sources))
    kinds = {isinstance(source, nn.Module) for source in sources}
    if len(kinds) > 1:
        raise MergeError("merge takes modules or state dicts, not both: the average has the form of its parts.")
    networks: list[Any] = [source if isinstance(source, nn.Module) else weights_of(source) for source in sources]
    if len(networks) > 2:
        many = align_many(graph, *networks, solver=solver, task=task, **arguments)
        aligned = many.apply(networks)
        return Merged(average(aligned, weights, method), aligned, many)
    bound = pair if isinstance(pair, Pair) else graph.bind(*networks)
    solution = solve(bound, solver=solver, task=task, **arguments)
    aligned = [networks[0], solution.apply(networks[1])]
    lines = None
    if task is not None:
        ends = {"identity": networks[1], "aligned": aligned[1]}
        lines = Lines(*(interpolate(task, networks[0], end, POINTS, label) for label, end in ends.items()))
    return Merged(average(aligned, weights, method), aligned, solution, bound, lines)
