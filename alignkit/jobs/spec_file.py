"""Files that say what the architecture is: specs, and graphs that a trace wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignkit.arguments import check_arguments
from alignkit.checkpoints.opening import read_file
from alignkit.errors import SpecError
from alignkit.graph import SymmetryGraph
from alignkit.graph.serial import FORMAT

EXAMPLE = '{"fc1.weight": "h1 ."}'


@check_arguments
def read_spec(path: str | Path) -> dict[str, str]:
    """Read a JSON object that maps names of tensors to their notation; raise `SpecError` where there is none."""
    spec = _read_json(path)
    if _is_graph(spec):
        raise SpecError(f"{path} is a whole graph, and layouts are needed here: write them by alignkit trace --spec.")
    if not isinstance(spec, dict) or not all(isinstance(value, str) for value in spec.values()):
        raise SpecError(
            f"the spec {path} has to be one JSON object from names of tensors to layouts, such as {EXAMPLE}."
        )
    return spec


@check_arguments
def read_spec_or_graph(path: str | Path) -> dict[str, str] | SymmetryGraph:
    """Read a spec, or a graph as ``alignkit trace --json`` writes it; raise `SpecError` where there is neither."""
    return SymmetryGraph.from_json(_read_text(path)) if _is_graph(_read_json(path)) else read_spec(path)


def _is_graph(value: Any) -> bool:
    return isinstance(value, dict) and value.get("format") == FORMAT.name


def _read_text(path: str | Path) -> str:
    try:
        return read_file(path).decode()
    except OSError as error:
        raise SpecError(f"the spec {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise SpecError(f"the spec {path} is not text: {error}.") from error


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"the spec {path} is not JSON: {error}.") from error
