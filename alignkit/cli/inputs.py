"""What several commands read and check: options of solvers, specs, and where outputs go."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.checkpoints.shard import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES
from alignkit.errors import AlignkitError, MissingExtraError, SpecError, TaskError, UsageError
from alignkit.reports import is_report_path, pictures_folder
from alignkit.tasks.task import Task
from alignkit.text import describe_error, list_some


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
        SpecError: The file does not exist, is not JSON, or holds something else.
    """
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"the spec {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise SpecError(f"the spec {path} is not JSON: {error}.") from error
    if not isinstance(spec, dict) or not all(isinstance(value, str) for value in spec.values()):
        raise SpecError(f'the spec {path} has to be one JSON object of strings, such as {{"fc1.weight": "h1 ."}}.')
    return spec


def check_outputs(paths: dict[str, Path | None], force: bool, *, folder: bool = False) -> None:
    """Refuse, before any work is done, outputs that could not be written or would replace a file.

    Args:
        paths: Outputs by their switch; ``--output`` holds weights, all others are safetensors files.
        force: Whether files may be replaced.
        folder: Whether the inputs are folders, so that ``--output`` may be one.

    Raises:
        UsageError: An output exists and ``force`` is False, its folder does not exist, it has a suffix that is not
            that of a weights file, or two outputs are one file.
    """
    for switch, path in paths.items():
        known = (*SAFETENSORS_SUFFIXES, *(PICKLE_SUFFIXES if switch == "--output" else ()))
        if path is None or path.suffix in known:
            continue
        if switch == "--output" and folder:
            _check_folder(switch, path, force)
            continue
        raise UsageError(f"{switch} {path}: end its name in {' or '.join(known)}.")
    check_free({switch: path for switch, path in paths.items() if path is None or path.suffix}, force)


def _check_folder(switch: str, path: Path, force: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"{switch} {path} is a file, and the inputs are folders.")
    if not path.parent.is_dir():
        raise UsageError(f"{switch} {path}: its folder is missing.")
    if path.is_dir() and any(path.iterdir()) and not force:
        raise UsageError(f"{switch} {path} exists. Choose another name, or pass --force to replace it.")


def check_report(path: Path | None, force: bool) -> None:
    """Refuse, before any work is done, a report that could not be written.

    Raises:
        UsageError: Its name does not end as that of a report, or it would replace something and ``force`` is False.
        MissingExtraError: matplotlib is not installed.
    """
    if path is None:
        return
    if not is_report_path(path):
        raise UsageError(f"--report {path}: end its name in .html or .md.")
    pictures = pictures_folder(path) if path.suffix == ".md" else None
    if pictures is not None and pictures.exists() and not (force and pictures.is_dir()):
        raise UsageError(f"--report {path}: its pictures go to {pictures}, which exists. Choose another name.")
    check_free({"--report": path}, force)
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError('reports need matplotlib: pip install "alignkit[plot]"')


def targets_in(networks: Sequence[Path], output: Path, force: bool) -> list[Path]:
    """Where each of several networks is written: in one folder, under its own name.

    Raises:
        UsageError: Two networks have one name, a file exists and ``force`` is False, or the folder cannot be there.
    """
    if output.is_file() or not output.parent.is_dir():
        raise UsageError(f"--output {output}: " + ("it is a file." if output.is_file() else "its folder is missing."))
    targets = [output / path.name for path in networks]
    twice = sorted({path.name for path in targets if sum(path == other for other in targets) > 1})
    if twice:
        raise UsageError(f"several networks are called {', '.join(twice)}, but all are written to one folder.")
    there = [path.name for path in targets if path.exists()]
    if there and not force:
        raise UsageError(
            f"{output} holds {list_some(there, 5)} already. Choose another folder, or pass --force to replace them."
        )
    return targets


def load_task(text: str) -> Task:
    """Call the function that ``package.module:function`` names, and return its task.

    Raises:
        UsageError: There is no such function, or it returns something else.
        TaskError: It failed.
    """
    look_in_this_folder()
    try:
        function = pkgutil.resolve_name(text)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{text!r} names no function: {error}. Write package.module:function.") from error
    try:
        made = function() if callable(function) else function
    except AlignkitError:
        raise
    except Exception as error:  # the caller's own code
        raise TaskError(f"the task {text} failed: {describe_error(error)}") from error
    if not isinstance(made, Task):
        raise UsageError(f"{text} gives a {type(made).__name__}, not an alignkit.Task.")
    return made


def look_in_this_folder() -> None:
    """Let ``module:factory`` name a module in the current folder, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


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
