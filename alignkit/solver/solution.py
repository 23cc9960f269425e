"""What a solve returns: the alignment, how good it is, how it was found, and why it looks as it does."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from alignkit.arguments import check_arguments, check_fields
from alignkit.checkpoints.documents import Content, Format
from alignkit.errors import WeightsError
from alignkit.graph import Pair
from alignkit.graph.bind import LazyWeights
from alignkit.graph.description import group_table, why_fixed
from alignkit.graph.elements.alignment import Alignment, check_same_graph
from alignkit.graph.kinds import moves
from alignkit.graph.owned import Owned
from alignkit.graph.proof.verify import Verification
from alignkit.graph.structure import GraphStructure
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.plotting.pictures import bar_chart, plot_alignment
from alignkit.reports.document import Part, Picture, Report, Section, Table, Text
from alignkit.reports.losses import MergeLosses
from alignkit.reports.sections import (
    facts_section,
    function_section,
    lines_section,
    number,
    side_by_side_section,
    uncovered_section,
)
from alignkit.solver.outcome import Status, Step
from alignkit.text import html_table, plural, shorten_list

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LISTED = 20
"""Longest list of uncovered tensors that an explanation prints in full."""
BARS = 16
"""Maximum number of groups in the picture of gains: more cannot be read. The table has them all."""
MATRICES = 3
"""Number of groups that are drawn as matrices: those that gained most."""
_DISTANCES = ("objective_before", "objective_init", "objective_after")
_PLAIN = ("solver", "options", *_DISTANCES, "gain", "moved", "stats", "seconds", "detail", "notes")
"""Fields that are plain values, and stand in the header of a file as they are."""


class _SolutionValues(Content):
    """The fields of a solution that are not tensors."""

    solver: str
    options: dict[str, Any]
    objective_before: float
    objective_init: float
    objective_after: float
    gain: dict[str, float]
    moved: dict[str, int]
    stats: dict[str, int | float]
    seconds: float
    detail: str
    notes: dict[str, str]
    status: str
    soft: bool
    history: list[tuple[int, float, str]]
    stages: list[_SolutionValues]


class _SolutionRow(_SolutionValues):
    tensors: str


class _SolutionContent(Content):
    graph: str
    solution: _SolutionValues


FORMAT = Format("alignkit.solution", "solution", "Solution.save", WeightsError, _SolutionContent)


@check_fields
@dataclass(frozen=True, eq=False)
class Solution:
    """The order of B's units that a solver found; it holds copies of all that it is made of, and hands out copies.

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

    def __post_init__(self) -> None:
        for name in ("options", "gain", "moved", "stats", "notes"):
            object.__setattr__(self, name, Owned(getattr(self, name)))
        for name in ("history", "stages"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

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
    def apply(self, b: LazyWeights) -> LazyWeights: ...  # type: ignore[overload-overlap]
    @overload
    def apply(self, b: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    @check_arguments
    def apply(self, b: nn.Module | Mapping[str, Tensor]) -> nn.Module | Mapping[str, Tensor]:
        """Return B with its units in the new order, in the form in which it came; see `Alignment.apply`.

        Raises:
            AlignmentError: Names or shapes are not those of the graph.
        """
        return self.alignment.apply(b)

    def inverse(self) -> Alignment:
        """Return the alignment that brings A to B: its squared distance to B is the same."""
        return self.alignment.inverse()

    def explain(self) -> str:
        """Say in a few lines what moved, what it was worth, and what could not move and why."""
        before, after = self.objective_before, self.objective_after
        share = f", {100 * (before - after) / before:.1f} %" if before > 0 else ""
        lines = [
            f"{self.solver}: squared distance {before:.6g} -> {after:.6g} (gain {before - after:.6g}{share}) "
            f"in {plural(len(self.history), 'step')}.",
            self.status.value + (f" {self.detail}" if self.detail else ""),
            *(f"  {name}: {text}" for name, text in self.notes.items()),
        ]
        for i, stage in enumerate(self.stages, 1):
            lines.append(f"  stage {i}, {stage.solver}: {stage.objective_init:.6g} -> {stage.objective_after:.6g}")
        if not any(self.moved.values()):
            lines.append(_why_nothing_moved(self))
        if self.graph.groups:
            lines.append("Groups:")
            width = max(len(name) for name in self.graph.groups)
        for name, moved in self.moved.items():
            units = self.graph.unit_count(name)
            lines.append(f"  {name:<{width}}  {moved:>6} of {units:<6} units moved, gain {self.gain[name]:.6g}")
        uncovered = [f"{name}: {reason}" for name, reason in self.uncovered.items()]
        if not uncovered:
            return "\n".join([*lines, "Every tensor is moved by some group."])
        lines.append(f"Not covered, {len(uncovered)} of {plural(len(self.graph.tensors), 'tensor')} stay as they are:")
        return "\n".join([*lines, *shorten_list(uncovered, LISTED, ", see solution.uncovered")])

    @check_arguments
    def plot(self, pair: Pair, target: str | Path | None = None, *, groups: Sequence[str] | None = None) -> Figure:
        """Draw heat maps of the units of a pair, ``graph.bind(a, b)``, before and after alignment.

        Arguments and errors are those of `alignkit.plotting.pictures.plot_alignment`.
        """
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

    @check_arguments
    def report(
        self,
        title: str = "B aligned to A",
        *,
        pair: Pair | None = None,
        check: Verification | None = None,
        losses: MergeLosses | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> Report:
        """Say what the alignment did, with pictures.

        Args:
            title: Heading.
            pair: The two networks, for heat maps of their units. None leaves these out.
            check: The function check, if there was one.
            losses: Losses of the networks and their averages, if there is a task.
            facts: What else belongs to the summary: files, options, seconds.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        summary = {
            **(facts or {}),
            "solver": self.solver,
            "options": ", ".join(f"{key}={value}" for key, value in self.options.items()) or "none",
            "ended": " ".join((self.status.value, self.detail)).strip(),
            "seconds of the solver": f"{self.seconds:.3g}",
        }
        distances = self.objective_before, self.objective_after
        sections = [facts_section(summary), side_by_side_section(*distances, losses, "squared distance of A and B")]
        if losses is not None and losses.lines is not None:
            sections.append(lines_section(losses.lines))
        ranked = sorted(self.graph.groups, key=lambda name: -self.gain[name])
        sections.append(_gains_section(self, ranked))
        if pair is not None and ranked:
            sections.append(_units_section(self, pair, ranked))
        return Report(title, (*sections, function_section(check), uncovered_section(self.graph)))

    @check_arguments
    def save(self, path: str | Path) -> None:
        """Write everything to one ``.safetensors`` file, in place of one that is there.

        Raises:
            WeightsError: The name ends in something else, or the file cannot be written: then nothing changes.
        """
        values = {"graph": self.graph.fingerprint, "solution": _to_values(self)}
        FORMAT.write_tensors(Path(path), _to_tensors(self, ""), values)

    @classmethod
    @check_arguments
    def load(cls, path: str | Path, graph: GraphStructure) -> Solution:
        """Read a solution that `save` wrote.

        Raises:
            WeightsError: The file cannot be read, or is not a solution.
            AlignmentError: It belongs to another graph.
        """
        path = Path(path)
        content, tensors = FORMAT.read_tensors(path)
        check_same_graph(path, content.graph, graph)
        with FORMAT.rebuilding(path):
            return _from_values(content.solution, tensors, "", graph)

    def to_row(self) -> dict[str, Any]:
        """Return everything as plain values, as JSON takes them, for a line of a file or for another process."""
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in _to_tensors(self, "").items()})
        return {**_to_values(self), "tensors": b64encode(data).decode()}

    @classmethod
    @check_arguments
    def from_row(cls, values: Mapping[str, Any], graph: GraphStructure) -> Solution:
        """Read what `to_row` wrote.

        Raises:
            WeightsError: It is not a solution.
        """
        with FORMAT.rebuilding("this row of a solution"):
            content = _SolutionRow.model_validate_json(json.dumps(dict(values)))
            try:
                tensors = safetensors.torch.load(b64decode(content.tensors, validate=True))
            except SafetensorError as error:
                raise ValueError(f"its tensors cannot be read: {error}") from error
            return _from_values(content, tensors, "", graph)

    def __repr__(self) -> str:
        distances = f"squared distance {self.objective_before:.6g} -> {self.objective_after:.6g}"
        return f"Solution({self.solver}: {self.status.name}, {distances}, {sum(self.moved.values())} units moved)"

    def _repr_html_(self) -> str:
        table = zip(self.graph.parents_first, group_table(self.graph), strict=True)
        rows = [(text, n, f"{self.moved[name]}", f"{self.gain[name]:.6g}") for name, (text, n, _) in table]
        return html_table(("group", "units", "moved", "gain"), rows, repr(self))


def _why_nothing_moved(solution: Solution) -> str:
    if not solution.graph.groups:
        return "Nothing moved: the graph has no groups, so no unit may change its place."
    if not any(moves(group.kind, group.size) for group in solution.graph.groups.values()):
        return "Nothing moved: every group has one unit only."
    if solution.objective_before == 0:
        return "Nothing moved: B equals A."
    if solution.status.failed:
        return "Nothing moved: the solver failed and the units were left in their order."
    if solution.solver == "identity":
        return "Nothing moved: the identity leaves every unit at its place."
    return (
        "Nothing moved: the solver found no order of B's units better than the one they have. Either A and B "
        "are aligned already, as when one was fine-tuned from the other, or another solver may do better."
    )


def _gains_section(solution: Solution, ranked: list[str]) -> Section:
    groups = solution.graph.groups
    if not groups:
        return Section("Groups", (Text("The graph has no groups: no unit may change its place."),))
    total = solution.objective_before - solution.objective_after
    rows = []
    for name, gain in ((name, solution.gain[name]) for name in groups):
        share = f"{100 * gain / total:.1f}%" if total > 0 else "-"
        rows.append((name, f"{solution.graph.unit_count(name)}", f"{solution.moved[name]}", number(gain), share))
    parts: list[Part] = []
    if any(solution.gain.values()):
        more = f" The {BARS} largest of {len(groups)}." if len(groups) > BARS else ""
        figure = bar_chart({name: solution.gain[name] for name in ranked[:BARS]}, "gain")
        parts.append(Picture.of(figure, "gain", f"Gain of each group.{more}"))
    if not any(solution.moved.values()):
        parts.append(Text(_why_nothing_moved(solution)))
    parts.append(Table(("group", "units", "moved", "gain", "share of the gain"), tuple(rows)))
    return Section("Groups: gain and units moved", tuple(parts))


def _units_section(solution: Solution, pair: Pair, ranked: list[str]) -> Section:
    strips = plot_alignment(pair, solution.alignment)
    matrices = plot_alignment(pair, solution.alignment, groups=ranked[:MATRICES])
    parts = (
        Text("Every group is a strip: how alike the units of A and B at the same place are, least alike on the left."),
        Picture.of(strips, "units", "Similarity of units before and after alignment, and units moved."),
        Text(
            "Units of A (rows) against units of B (columns) in the groups that gained most: in B's own order, and in "
            "the order of the alignment, where partners stand on the diagonal."
        ),
        Picture.of(matrices, "matrices", "Similarity of all units of A and B before and after alignment."),
    )
    return Section("Units before and after", parts)


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
    values: _SolutionValues, tensors: Mapping[str, Tensor], prefix: str, graph: GraphStructure
) -> Solution:
    """Rebuild what `_to_values` and `_to_tensors` took apart."""

    def under(part: str) -> dict[str, Tensor]:
        start = f"{prefix}{part}/"
        return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

    for field_name in ("gain", "moved"):
        if getattr(values, field_name).keys() != graph.groups.keys():
            raise WeightsError(f"its {field_name!r} does not have one number for each group")
    return Solution(
        alignment=Alignment(graph, under("elements")),
        status=Status[values.status],
        history=tuple(Step(*step) for step in values.history),
        soft=SoftAlignment(graph, under("soft")) if values.soft else None,
        stages=tuple(
            _from_values(stage, tensors, f"{prefix}stages/{i}/", graph) for i, stage in enumerate(values.stages)
        ),
        **{name: getattr(values, name) for name in _PLAIN},
    )
