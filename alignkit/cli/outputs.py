"""Where outputs go: refused before any work is done if they could not be written or would replace something."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import alignkit
from alignkit.errors import MissingExtraError, UsageError

WEIGHTS, SAFETENSORS = (".safetensors", ".pt", ".pth", ".bin"), (".safetensors",)


def check_free(paths: dict[str, Path | None], force: bool) -> None:
    """Refuse outputs of any kind that could not be written or would replace a file.

    Args:
        paths: Outputs by their switch.
        force: Whether files may be replaced.

    Raises:
        UsageError: An output exists and ``force`` is False, its folder does not exist, or two outputs are one file.
    """
    switches: dict[Path, str] = {}
    for switch, path in paths.items():
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"{switch} {path}: " + ("it is a folder." if path.is_dir() else "its folder is missing."))
        if path.exists() and not force:
            raise UsageError(f"{switch} {path} exists. Choose another name, or pass --force to replace it.")
        if path.resolve() in switches:
            raise UsageError(f"{switch} and {switches[path.resolve()]} name the same file {path}.")
        switches[path.resolve()] = switch


def check_weights(paths: dict[str, Path | None], force: bool, *, folder: bool = False) -> None:
    """Refuse outputs of weights and alignments that could not be written or would replace a file.

    Args:
        paths: Outputs by their switch; ``--output`` holds weights, all others are safetensors files.
        force: Whether files may be replaced.
        folder: Whether the inputs are folders, so that ``--output`` may be one.

    Raises:
        UsageError: As `check_free`, or the suffix is not that of a weights file.
    """
    files: dict[str, Path | None] = {}
    for switch, path in paths.items():
        suffixes = WEIGHTS if switch == "--output" else SAFETENSORS
        if path is None or path.suffix in suffixes:
            files[switch] = path
            continue
        if switch != "--output" or not folder:
            raise UsageError(f"{switch} {path}: end its name in {' or '.join(suffixes)}.")
        if path.exists() and not path.is_dir():
            raise UsageError(f"{switch} {path} is a file, and the inputs are folders.")
        if not path.parent.is_dir():
            raise UsageError(f"{switch} {path}: its folder is missing.")
        if path.is_dir() and any(path.iterdir()) and not force:
            raise UsageError(f"{switch} {path} exists. Choose another name, or pass --force to replace it.")
    check_free(files, force)


def check_report(path: Path | None, force: bool) -> None:
    """Refuse a report that could not be written.

    Raises:
        UsageError: Its name does not end as that of a report, or it would replace something and ``force`` is False.
        MissingExtraError: matplotlib is not installed.
    """
    if path is None:
        return
    if path.suffix not in (".html", ".htm", ".md"):
        raise UsageError(f"--report {path}: end its name in .html or .md.")
    if path.suffix == ".md":
        pictures = alignkit.reports.pictures_folder(path)
        if pictures.exists() and not (force and pictures.is_dir()):
            raise UsageError(f"--report {path}: its pictures go to {pictures}, which exists. Choose another name.")
    check_free({"--report": path}, force)
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError('reports need matplotlib: pip install "alignkit[plot]"')


def targets_in(networks: Sequence[Path], output: Path, force: bool) -> list[Path]:
    """Return where each of several networks is written: in one folder, under its own name.

    Raises:
        UsageError: Two networks have one name, a file exists and ``force`` is False, or the folder cannot be there.
    """
    if output.is_file() or not output.parent.is_dir():
        raise UsageError(f"--output {output}: " + ("it is a file." if output.is_file() else "its folder is missing."))
    names = [path.name for path in networks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"several networks are called {', '.join(twice)}, but all are written to one folder.")
    existing = [name for name in names if (output / name).exists()]
    if existing and not force:
        more = f" and {len(existing) - 5} more" if len(existing) > 5 else ""
        raise UsageError(
            f"{output} holds {', '.join(existing[:5])}{more} already. Choose another folder, or pass --force to "
            "replace them."
        )
    return [output / name for name in names]
