"""Solutions as files: one safetensors file, with everything that is no tensor as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from alignkit.checkpoints.weights import atomic_path
from alignkit.errors import AlignmentError, WeightsError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.structure import GraphStructure
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.solver.outcome import Status, Step
from alignkit.solver.solution import Solution
from alignkit.text import describe_error

_FORMAT = "alignkit.solution"
_VERSION = "1"
_PLAIN = ("solver", "options", "objective_before", "objective_init", "objective_after", "gain", "moved")
_PLAIN_WITH_DEFAULT = ("stats", "seconds", "detail", "notes")


def write_solution(solution: Solution, path: Path) -> None:
    """Write a solution; see `Solution.save`."""
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "graph": solution.graph.fingerprint,
        "solution": _facts(solution),
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(solution, "").items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {"alignkit": json.dumps(header)})


def read_solution(path: Path, graph: GraphStructure) -> Solution:
    """Read a solution; see `Solution.load`."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("alignkit", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as a solution: {error}.") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        found = f", it is {header['format']!r}" if "format" in header else ""
        raise WeightsError(f"{path} is no solution file{found}; one is written by Solution.save.")
    if header.get("version") != _VERSION:
        raise WeightsError(
            f"{path} has version {header.get('version')!r}; this release reads {_VERSION!r}. "
            "Use the release that wrote it."
        )
    if header.get("graph") != graph.fingerprint:
        raise AlignmentError(
            f"{path} belongs to another graph (fingerprint {header.get('graph')}, not {graph.fingerprint}). "
            "Load it with the graph that it was made for."
        )
    try:
        return _solution(header["solution"], tensors, "", graph)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: {describe_error(error)}.") from error


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
