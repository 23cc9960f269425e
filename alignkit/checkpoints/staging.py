"""Outputs that appear whole or not at all: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from alignkit.checkpoints.file_set import (
    EXISTS,
    FileSet,
    apart,
    clear_leftovers,
    current_set,
    failing_to_write,
    identity_of,
    is_free,
    refuse_strangers,
)
from alignkit.checkpoints.unfinished import flush, strangers
from alignkit.errors import WeightsError
from alignkit.text import readable_bytes

SPARE = 1 << 20
"""Bytes that have to be free beyond the size of an output: folders and block sizes."""
KINDS = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}


@contextmanager
def staged(
    output: Path, *, folder: bool = False, overwrite: bool = True, replaces: Collection[Path] = ()
) -> Iterator[Path]:
    """Give a temporary path beside ``output`` that takes its place when the block ends well, and disappears otherwise.

    Inside `alignkit.checkpoints.written_together` it takes its place together with the others.

    Args:
        output: Where the result belongs. Links are followed.
        folder: Whether it is a folder. The temporary folder or the empty temporary file exists already.
        overwrite: Whether an output that exists is replaced. A folder is exchanged in one step where the system can.
        replaces: Paths, relative to it, of the files that a folder to be replaced may hold.

    Raises:
        WeightsError: The output's folder is missing or cannot be written to, the disk is full, something else would
            be lost, or the output exists and ``overwrite`` is False.
    """
    output = prepare_output(output)
    check_output(output, folder, overwrite, replaces)
    together = current_set()
    with FileSet() as alone:
        files = alone if together is None else together
        with failing_to_write(output):
            member = files.add(output, folder=folder, overwrite=overwrite, replaces=replaces)
        try:
            with failing_to_write(output), apart():
                mode = member.hidden.stat().st_mode & 0o666
                yield member.hidden
                flush(member.hidden, mode)  # safetensors makes files that only their owner can read
                member.identity = identity_of(member.hidden)
        except WeightsError as error:
            files.drop(member)
            raise WeightsError(str(error).replace(str(member.hidden), str(output))) from error
        except BaseException:
            files.drop(member)
            raise
        alone.publish()


def check_writable(output: Path) -> None:
    """Raise the `WeightsError` of `staged` where no file can be made for an output; what is tried is removed.

    Folders that are missing are taken for ones that will be made.
    """
    output = place = prepare_output(output)
    while not place.absolute().parent.is_dir():
        place = place.absolute().parent
        if place.exists():
            raise WeightsError(f"cannot write {output}: {place} is a file.")
    place = place / "output" if place.is_dir() else place
    with FileSet() as tried, failing_to_write(output):
        tried.add(place, folder=False, overwrite=True)


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside an output, which disappears with the block.

    What a killed run left is removed by the next one.

    Raises:
        WeightsError: It cannot be made.
    """
    place = prepare_output(output.absolute().with_name(f"{output.name}.scratch"))
    with FileSet() as files:
        with failing_to_write(place):
            folder = files.add(place, folder=True, overwrite=True).hidden
        yield folder


def check_room(output: Path, needed: int) -> None:
    """Raise `WeightsError` unless the disk of an output has so many bytes left, and some to spare."""
    needed += SPARE
    place = place_of(output).parent
    if (free := shutil.disk_usage(place).free) < needed:
        room = f"it takes {readable_bytes(needed)}, its disk has {readable_bytes(free)} left"
        raise WeightsError(f"cannot write {output}: {room}.")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; either the whole file appears, or nothing changes and `WeightsError` is raised."""
    with staged(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, flushed to the disk; raise `WeightsError` where that cannot be."""
    missing = [place for place in (folder, *folder.parents) if not place_of(place).is_dir()]
    with failing_to_write(folder):
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            flush(place.parent)


def fills_folder(folder: Path, files: Collection[Path]) -> bool:
    """Whether a folder can be exchanged for one that holds these files: it is not there, or holds nothing else.

    Nobody may be working in it, and it may not be a disk of its own.
    """
    if not folder.is_dir():
        return True
    return not (folder.samefile(Path.cwd()) or folder.is_mount() or strangers(folder, files))


def prepare_output(output: Path) -> Path:
    """Put back or remove what a killed run to an output left; return its place, links followed.

    Raises:
        WeightsError: There can be no such place, or a pipe, a socket or a device is there.
    """
    place = place_of(output)
    clear_leftovers(place)
    return place


def place_of(output: Path) -> Path:
    """Follow links to where an output would be written; raise `WeightsError` where nothing can be written."""
    try:
        if output.is_symlink():
            output = output.resolve()
            if output.is_symlink():  # Python 3.13 gives up silently
                raise RuntimeError("its links form a circle")
        mode = output.stat().st_mode
    except FileNotFoundError:
        return output
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WeightsError(f"cannot write {str(output)!r}: {reason}.") from error
    for is_kind, kind in KINDS.items():
        if is_kind(mode):
            raise WeightsError(f"cannot write {output}: it is {kind}, and only files are replaced.")
    return output


def check_output(output: Path, folder: bool, overwrite: bool, replaces: Collection[Path] = ()) -> None:
    """Raise `WeightsError` if an output has no folder to be in, is of another kind, or would replace too much."""
    output = place_of(output)
    if not output.parent.is_dir():
        raise WeightsError(f"cannot write {output}: the folder {output.parent} does not exist. Create it first.")
    with failing_to_write(output):
        if not os.path.lexists(output):
            return
        mode = output.lstat().st_mode
        if stat.S_ISDIR(mode) != folder:
            raise WeightsError(f"cannot write {output}: it is a {'file' if folder else 'folder'}.")
        if is_free(output):
            return
        if not overwrite:
            raise WeightsError(EXISTS.format(output))
        if folder:
            refuse_strangers(output, output, replaces)
