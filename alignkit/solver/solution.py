"""What a solve returns: the alignment, how good it is, how it was found, and why it looks as it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from torch import Tensor, nn

from alignkit.checkpoints.documents import Format
from alignkit.errors import WeightsError
from alignkit.graph import Pair
from alignkit.graph.description import group_table, why_fixed
from alignkit.graph.elements.alignment import Alignment, check_same_graph
from alignkit.graph.proof.verify import Verification
from alignkit.graph.structure import GraphStructure
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.reports import Lines, Report
from alignkit.solver.outcome import Status, Step
from alignkit.solver.solution_report import report_solution
from alignkit.text import html_table, shorten_list

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LISTED = 20
"""Longest list of uncovered tensors that an explanation prints in full."""
FORMAT = Format("alignkit.solution", "solution", "Solution.save", WeightsError)
_DISTANCES = ("objective_before", "objective_init", "objective_after")
_PLAIN = ("solver", "options", *_DISTANCES, "gain", "moved", "stats", "seconds", "detail", "notes")
"""Fields that are plain values, and stand in the header of a file as they are."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The order of B's units that a solver found.

    Attributes:
        alignment: Place i of aligned B holds unit ``element[i]`` of B.
        solver: Name of the solver, or of a chain: ``"deepalign > sinkhorn"``.
        options: Its options, seed included, as plain values. For a chain one mapping for each stage.
        status: How it ended, as a sentence.
        objective_before: ``||A - B||^2`` of the weights as they were given, in float64.
        objective_init: ``||A - P # B||^2`` at the start; without ``init`` that is ``objective_before``.
        objective_after: ``||A - P # B||^2`` at the end.
        gain: How much of ``objective_before - objective_after`` each group accounts for. The gain of a tensor
            is shared equally among the groups that act on it and moved; all gains add up to the whole.
        moved: Number of units of each group that changed their place.
        history: The steps that the solver reported, in its own objective; for a chain those of all stages.
        stats: Numbers that the solver kept, such as restarts.
        notes: Facts that the solver kept, such as the fingerprint of the trained weights that it used.
        seconds: Wall-clock time of the solver, without the accounting around it.
        soft: Soft alignment, where the solver makes one.
        detail: What went wrong, when the status is a failure.
        stages: The solutions of the stages of a chain; empty for one solver.
    """

    alignment: Alignment
    solver: str
    options: Mapping[str, Any]
    status: Status
    objective_before: float
    objective_init: float
    objective_after: float
    gain: Mapping[str, float]
    moved: Mapping[str, int]
    history: tuple[Step, ...] = ()
    stats: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    soft: SoftAlignment | None = None
    detail: str = ""
    stages: tuple[Solution, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def graph(self) -> GraphStructure:
        """The graph whose groups were aligned."""
        return self.alignment.graph

    @property
    def uncovered(self) -> dict[str, str]:
        """Tensors, scalars left out, that no group acts on, each with the reason why it stays as it is."""
        return {name: why_fixed(self.graph, name) for name in self.graph.uncovered}

    @overload
    def apply(self, b: ModuleT) -> ModuleT: ...
    @overload
    def apply(self, b: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def apply(self, b: nn.Module | Mapping[str, Tensor]) -> nn.Module | dict[str, Tensor]:
        """Return B with its units in the new order: a module for a module, a dict for a mapping.

        Raises:
            AlignmentError: Names or shapes are not those of the graph.
        """
        return self.alignment.apply(b)

    def inverse(self) -> Alignment:
        """Return the alignment that brings A to B: its squared distance to B is the same."""
        return self.alignment.inverse()

    def explain(self) -> str:
        """Say in a few lines what moved, what it was worth, and what could not move and why."""
        return "\n".join((*_headline(self), *_group_lines(self), *_uncovered_lines(self)))

    def plot(self, pair: Pair, target: str | Path | None = None, *, groups: Sequence[str] | None = None) -> Figure:
        """Draw heat maps of the units before and after alignment; see `alignkit.plotting.pictures.plot_alignment`.

        Args:
            pair: The two networks, ``graph.bind(a, b)``.
            target: A file to write, or None for a new figure.
            groups: Groups to draw as matrices of units; None draws every group as a strip.

        Raises:
            MissingExtraError: matplotlib is not installed.
            TaskError: There is no group to draw.
        """
        from alignkit.plotting.pictures import plot_alignment

        return plot_alignment(pair, self.alignment, target, groups=groups)

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        return {
            "solver": self.solver,
            "status": self.status.name,
            "before": self.objective_before,
            "after": self.objective_after,
            "gain": dict(self.gain),
            "moved": dict(self.moved),
            "uncovered": self.uncovered,
            "seconds": self.seconds,
        }

    def report(
        self,
        title: str = "B aligned to A",
        *,
        pair: Pair | None = None,
        check: Verification | None = None,
        lines: Lines | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> Report:
        """Say what the alignment did, with pictures.

        Args:
            title: Heading of the report.
            pair: The two networks, for heat maps of their units. None leaves these out.
            check: The function check, if there was one.
            lines: Losses between the networks, if there is a task.
            facts: What else belongs to the summary: files, options, seconds.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return report_solution(self, title, pair=pair, check=check, lines=lines, facts=facts or {})

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file with a versioned header; the whole file appears, or none.

        Raises:
            WeightsError: The file cannot be written.
        """
        values = {"graph": self.graph.fingerprint, "solution": _to_values(self)}
        FORMAT.write_tensors(Path(path), _to_tensors(self, ""), values)

    @classmethod
    def load(cls, path: str | Path, graph: GraphStructure) -> Solution:
        """Read a solution that `save` wrote.

        Raises:
            WeightsError: The file cannot be read, or is not a solution.
            AlignmentError: It belongs to another graph.
        """
        path = Path(path)
        values, tensors = FORMAT.read_tensors(path)
        check_same_graph(path, values.get("graph"), graph)
        with FORMAT.rebuilding(path):
            return _from_values(values["solution"], tensors, "", graph)

    def __repr__(self) -> str:
        return (
            f"Solution({self.solver}: {self.status.name}, squared distance {self.objective_before:.6g} -> "
            f"{self.objective_after:.6g}, {sum(self.moved.values())} units moved)"
        )

    def _repr_html_(self) -> str:
        units = [(name, count) for name, count, _ in group_table(self.graph)]
        rows = [(name, n, f"{self.moved[name.strip()]}", f"{self.gain[name.strip()]:.6g}") for name, n in units]
        return html_table(("group", "units", "moved", "gain"), rows, repr(self))


def _headline(solution: Solution) -> list[str]:
    before, after = solution.objective_before, solution.objective_after
    share = f", {100 * (before - after) / before:.1f} %" if before > 0 else ""
    lines = [
        f"{solution.solver}: squared distance {before:.6g} -> {after:.6g} (gain {before - after:.6g}{share}) "
        f"in {solution.seconds:.3g} s and {len(solution.history)} steps.",
        solution.status.value + (f" {solution.detail}" if solution.detail else ""),
    ]
    lines += [f"  {name}: {text}" for name, text in solution.notes.items()]
    for i, stage in enumerate(solution.stages, 1):
        lines.append(f"  stage {i}, {stage.solver}: {stage.objective_init:.6g} -> {stage.objective_after:.6g}")
    if not any(solution.moved.values()):
        lines.append(_why_nothing_moved(solution))
    return lines


def _why_nothing_moved(solution: Solution) -> str:
    if not solution.graph.groups:
        return "Nothing moved: the graph has no groups, so no unit may change its place."
    if all(group.size == 1 for group in solution.graph.groups.values()):
        return "Nothing moved: every group has one unit only."
    if solution.objective_before == 0:
        return "Nothing moved: B equals A."
    if solution.status.failed:
        return "Nothing moved: the solver failed and the units were left in their order."
    return (
        "Nothing moved: the solver found no order of B's units better than the one they have. Either A and B "
        "are aligned already, as when one was fine-tuned from the other, or another solver may do better."
    )


def _group_lines(solution: Solution) -> list[str]:
    groups = solution.graph.groups
    if not groups:
        return []
    units = {name: solution.graph.unit_count(name) for name in groups}
    width = max(len(name) for name in groups)
    rows = [
        f"  {name:<{width}}  {moved:>6} of {units[name]:<6} units moved, gain {solution.gain[name]:.6g}"
        for name, moved in solution.moved.items()
    ]
    return ["Groups:", *rows]


def _uncovered_lines(solution: Solution) -> list[str]:
    uncovered = solution.uncovered
    if not uncovered:
        return ["Every tensor is moved by some group."]
    return [
        f"Not covered, {len(uncovered)} of {len(solution.graph.tensors)} tensors stay as they are:",
        *shorten_list([f"{name}: {reason}" for name, reason in uncovered.items()], LISTED, ", see solution.uncovered"),
    ]


# ---------------------------------------------------------------------- files


def _to_values(solution: Solution) -> dict[str, Any]:
    """Return everything that is not a tensor as values for JSON."""
    fields = {name: getattr(solution, name) for name in _PLAIN}
    return {
        **{name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()},
        "status": solution.status.name,
        "soft": solution.soft is not None,
        "history": [[step.iteration, step.objective, step.note] for step in solution.history],
        "stages": [_to_values(stage) for stage in solution.stages],
    }


def _to_tensors(solution: Solution, prefix: str) -> dict[str, Tensor]:
    """Return indices and soft matrices by their names in a file; those of stage 0 begin with ``"stages/0/"``."""
    tensors = {f"{prefix}elements/{group}": element for group, element in solution.alignment.elements.items()}
    if solution.soft is not None:
        tensors |= {f"{prefix}soft/{group}": matrix for group, matrix in solution.soft.matrices.items()}
    for i, stage in enumerate(solution.stages):
        tensors |= _to_tensors(stage, f"{prefix}stages/{i}/")
    return tensors


def _from_values(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str, graph: GraphStructure
) -> Solution:
    """Rebuild what `_to_values` and `_to_tensors` took apart."""

    def under(part: str) -> dict[str, Tensor]:
        start = f"{prefix}{part}/"
        return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

    return Solution(
        alignment=Alignment(graph, under("elements")),
        status=Status[values["status"]],
        history=tuple(Step(*step) for step in values["history"]),
        soft=SoftAlignment(graph, under("soft")) if values["soft"] else None,
        stages=tuple(
            _from_values(stage, tensors, f"{prefix}stages/{i}/", graph) for i, stage in enumerate(values["stages"])
        ),
        **{name: values[name] for name in _PLAIN},
    )
