"""Solutions as files: one safetensors file, with everything that is not a tensor as JSON in its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from alignkit.checkpoints.documents import Format
from alignkit.errors import WeightsError
from alignkit.graph.elements.alignment import Alignment, check_same_graph
from alignkit.graph.structure import GraphStructure
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.solver.outcome import Status, Step
from alignkit.solver.solution import Solution

FORMAT = Format("alignkit.solution", "solution", "Solution.save", WeightsError)
_PLAIN = ("solver", "options", "objective_before", "objective_init", "objective_after", "gain", "moved")
_PLAIN_WITH_DEFAULT = ("stats", "seconds", "detail", "notes")


def write_solution(solution: Solution, path: Path) -> None:
    """Write a solution; see `Solution.save`."""
    values = {"graph": solution.graph.fingerprint, "solution": _facts(solution)}
    FORMAT.write_tensors(path, _tensors(solution, ""), values)


def read_solution(path: Path, graph: GraphStructure) -> Solution:
    """Read a solution; see `Solution.load`."""
    values, tensors = FORMAT.read_tensors(path)
    check_same_graph(path, values.get("graph"), graph)
    with FORMAT.rebuilding(path):
        return _solution(values["solution"], tensors, "", graph)


def _facts(solution: Solution) -> dict[str, Any]:
    facts = {name: _plain(getattr(solution, name)) for name in (*_PLAIN, *_PLAIN_WITH_DEFAULT)}
    facts["status"] = solution.status.name
    facts["soft"] = solution.soft is not None
    facts["history"] = [[step.iteration, step.objective, step.note] for step in solution.history]
    facts["stages"] = [_facts(stage) for stage in solution.stages]
    return facts


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _tensors(solution: Solution, prefix: str) -> dict[str, Tensor]:
    tensors = {f"{prefix}elements/{group}": element for group, element in solution.alignment.elements.items()}
    if solution.soft is not None:
        tensors |= {f"{prefix}soft/{group}": matrix for group, matrix in solution.soft.matrices.items()}
    for i, stage in enumerate(solution.stages):
        tensors |= _tensors(stage, f"{prefix}stages/{i}/")
    return tensors


def _solution(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str, graph: GraphStructure) -> Solution:
    def under(part: str) -> dict[str, Tensor]:
        start = f"{prefix}{part}/"
        return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

    stages = (_solution(stage, tensors, f"{prefix}stages/{i}/", graph) for i, stage in enumerate(facts["stages"]))
    return Solution(
        alignment=Alignment(graph, under("elements")),
        status=Status[facts["status"]],
        history=tuple(Step(*step) for step in facts["history"]),
        soft=SoftAlignment(graph, under("soft")) if facts["soft"] else None,
        stages=tuple(stages),
        **{name: facts[name] for name in (*_PLAIN, *_PLAIN_WITH_DEFAULT)},
    )
