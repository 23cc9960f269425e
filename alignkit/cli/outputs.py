"""Where outputs go: refused before any work is done if they could not be written or would replace something."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import alignkit
from alignkit.errors import MissingExtraError, UsageError
from alignkit.text import install_extra, list_some

REPLACE = "Choose another name, or pass --force to replace"


def check_free(paths: Mapping[str, Path | None], force: bool) -> None:
    """Refuse outputs, given by their switch, that could not be written, would replace a file, or are one file."""
    switches: dict[tuple[Path, str], str] = {}
    for switch, path in ((switch, path) for switch, path in paths.items() if path is not None):
        alignkit.checkpoints.prepare_output(path)
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"{switch} {path}: " + ("it is a folder." if path.is_dir() else "its folder is missing."))
        if path.exists() and not force:
            raise UsageError(f"{switch} {path} exists. {REPLACE} it.")
        key = path.resolve().parent, path.resolve().name.casefold()  # names may differ by case alone on some disks
        if key in switches:
            raise UsageError(f"{switch} and {switches[key]} name the same file {path}.")
        switches[key] = switch
        alignkit.checkpoints.check_writable(path)


def check_weights(paths: Mapping[str, Path | None], force: bool, *, folder: bool = False) -> None:
    """Refuse outputs of weights and alignments as `check_free` does, and those with another suffix.

    ``--output`` holds weights, and may be a folder where the inputs are; all others are safetensors files.
    """
    files = dict(paths)
    for switch, path in paths.items():
        is_weights = switch == "--output"
        kind = None if path is None else alignkit.checkpoints.file_kind(path)
        if path is None or kind == "safetensors" or (is_weights and kind is not None):
            continue
        if not is_weights or not folder:
            ending = f"one of {alignkit.checkpoints.KNOWN_SUFFIXES}" if is_weights else ".safetensors"
            raise UsageError(f"{switch} {path}: end its name in {ending}.")
        alignkit.checkpoints.prepare_output(path)
        if path.is_file() or not path.parent.is_dir():
            wrong = "it is a file, and the inputs are folders." if path.is_file() else "its folder is missing."
            raise UsageError(f"{switch} {path}: {wrong}")
        if path.is_dir() and any(path.iterdir()) and not force:
            raise UsageError(f"{switch} {path} exists. {REPLACE} it.")
        alignkit.checkpoints.check_writable(path)
        del files[switch]
    records = {
        f"the record of {switch}": alignkit.jobs.sidecar(path)
        for switch, path in files.items()
        if path is not None and alignkit.checkpoints.file_kind(path) == "pickle"
    }
    check_free({**files, **records}, force)


def check_picture(path: Path | None, force: bool) -> None:
    """Refuse a picture with a suffix that is not one of a picture, and one that would replace something."""
    if path is not None:
        alignkit.plotting.check_picture(path)
    check_free({"--picture": path}, force)


def check_report(path: Path | None, force: bool) -> None:
    """Refuse a report with another suffix, one that would replace something, and any where matplotlib is missing."""
    if path is None:
        return
    if not alignkit.reports.is_report_path(path):
        raise UsageError(f"--report {path}: end its name in .html or .md.")
    if path.suffix == ".md":
        pictures = alignkit.reports.pictures_folder(path)
        alignkit.checkpoints.prepare_output(pictures)
        if pictures.exists() and not (force and pictures.is_dir()):
            raise UsageError(f"--report {path}: its pictures go to {pictures}, which exists. Choose another name.")
    check_free({"--report": path}, force)
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(f"reports need matplotlib: {install_extra('plot')}.")


def targets_in(networks: Sequence[Path], output: Path, force: bool) -> list[Path]:
    """Return where each of several networks is written: in one folder, under its own name.

    Raises:
        UsageError: Two networks have one name, a file exists and ``force`` is False, or the folder cannot be there.
    """
    alignkit.checkpoints.prepare_output(output)
    if output.is_file() or not output.parent.is_dir():
        raise UsageError(f"--output {output}: " + ("it is a file." if output.is_file() else "its folder is missing."))
    names = [path.name for path in networks]
    if nameless := [str(path) for path in networks if path.name in ("", "..")]:
        raise UsageError(f"{nameless[0]} has no name to be written under. Name its folder from the one above.")
    folded = [name.casefold() for name in names]  # names may differ by case alone on some disks
    if twice := sorted({name for name in names if folded.count(name.casefold()) > 1}):
        raise UsageError(f"several networks are called {', '.join(twice)}, but all are written to one folder.")
    for name in names:
        alignkit.checkpoints.prepare_output(output / name)
    existing = [name for name in names if (output / name).exists()]
    if existing and not force:
        raise UsageError(f"{output} holds {list_some(existing, 5)} already. {REPLACE} them.")
    alignkit.checkpoints.check_writable(output)
    return [output / name for name in names]
