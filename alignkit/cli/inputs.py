"""What several commands read and check: options of solvers, specs, and where outputs go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignkit.errors import SpecError, UsageError
from alignkit.weights import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES


def parse_options(given: list[str]) -> dict[str, Any]:
    """Turn ``["restarts=8", "order=random"]`` into keyword arguments; values are read as JSON where they are JSON.

    Raises:
        UsageError: There is no ``=``, or a key comes twice or is an argument that has its own switch.
    """
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"--option {text!r}: write KEY=VALUE, for example --option max_steps=100.")
        if key in options:
            raise UsageError(f"--option {key} is given twice.")
        if key in ("seed", "init", "device"):
            raise UsageError(f"--option {key}=...: use --{key} instead.")
        if key in ("pair", "a", "b", "solver", "task", "throw", "registry"):
            raise UsageError(f"--option {key}=...: {key!r} is not an option of a solver.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def read_spec(path: Path) -> dict[str, str]:
    """Read a JSON object that maps names of tensors to their notation.

    Raises:
        SpecError: The file does not exist, is no JSON, or holds something else.
    """
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"the spec {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise SpecError(f"the spec {path} is no JSON: {error}.") from error
    if not isinstance(spec, dict) or not all(isinstance(value, str) for value in spec.values()):
        raise SpecError(f'the spec {path} has to be one JSON object of strings, such as {{"fc1.weight": "h1 ."}}.')
    return spec


def check_outputs(paths: dict[str, Path | None], force: bool) -> None:
    """Refuse, before any work is done, outputs that could not be written or would replace a file.

    Raises:
        UsageError: An output exists and ``force`` is False, its folder does not exist, it has a suffix that is not
            that of a weights file, or two outputs are one file.
    """
    for switch, path in paths.items():
        known = (*SAFETENSORS_SUFFIXES, *(PICKLE_SUFFIXES if switch == "--output" else ()))
        if path is not None and path.suffix not in known:
            raise UsageError(f"{switch} {path}: end its name in {' or '.join(known)}.")
    check_free(paths, force)


def check_free(paths: dict[str, Path | None], force: bool) -> None:
    """Refuse, before any work is done, outputs of any kind that could not be written or would replace a file.

    Raises:
        UsageError: An output exists and ``force`` is False, its folder does not exist, or two outputs are one file.
    """
    seen: dict[Path, str] = {}
    for switch, path in paths.items():
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"{switch} {path}: " + ("it is a folder." if path.is_dir() else "its folder is missing."))
        if path.exists() and not force:
            raise UsageError(f"{switch} {path} exists. Choose another name, or pass --force to replace it.")
        if path.resolve() in seen:
            raise UsageError(f"{switch} and {seen[path.resolve()]} name the same file {path}.")
        seen[path.resolve()] = switch
