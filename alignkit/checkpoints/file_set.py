"""Files that belong together: all of them appear, or none.

Every file is written beside its place and flushed; only when all are whole do they take their places. Several files
cannot change names in one step. So a record beside each of them lists them all while they do, and the next run to any
of them puts back what a killed run has moved.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.checkpoints.unfinished import (
    PART,
    RECORD,
    TOKEN,
    claim,
    exchange,
    flush,
    hidden_beside,
    hidden_name,
    is_unfinished,
    lock,
    put_back,
    remove,
    remove_parts,
    strangers,
)
from alignkit.errors import WeightsError
from alignkit.text import list_some

HEADER = {"format": "alignkit.file-set", "version": 1}
EXISTS = "cannot write {}: it exists. Choose another name, or ask for it to be replaced."
_collecting: ContextVar[FileSet | None] = ContextVar("collecting", default=None)


@dataclass
class Member:
    """One file or folder of a set.

    Attributes:
        output: Its place.
        hidden: Where it is written. After an exchange this is what was at the place before.
        identity: Inode and time of what was written, once it is whole; so a file that somebody else puts there later is
            never taken for it.
        overwrite: Whether it may take the place of something.
        replaces: Paths of the files that a folder at its place may hold.
    """

    output: Path
    hidden: Path
    identity: tuple[int, int] | None = None
    overwrite: bool = False
    replaces: Collection[Path] = ()

    @property
    def record(self) -> Path:
        """Where the set is listed while its members take their places."""
        return self.hidden.with_name(self.hidden.name.removesuffix(PART) + RECORD)

    @property
    def is_published(self) -> bool:
        """Whether what was written is at its place."""
        return self.identity is not None and identity_of(self.output) == self.identity

    def publish(self) -> None:
        """Take the place; raise `WeightsError` where something is there that may not be replaced."""
        if os.path.lexists(self.output) and not is_free(self.output):
            if not self.overwrite:
                raise WeightsError(EXISTS.format(self.output))
            exchange(self.hidden, self.output)
            if self.hidden.is_dir():  # Somebody may have put a file there since the first look.
                refuse_strangers(self.output, self.hidden, self.replaces)
            return
        try:
            if not self.hidden.is_dir() and not self.overwrite:
                os.link(self.hidden, self.output)
            else:
                os.replace(self.hidden, self.output)
        except OSError as error:
            if not self.overwrite and os.path.lexists(self.output):  # Another run was first.
                raise WeightsError(EXISTS.format(self.output)) from error
            if error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise
            os.replace(self.hidden, self.output)  # No hard links here; the look above has to do.

    def undo(self) -> None:
        """Put everything back as it was before `publish`; does nothing where that was done, or never happened."""
        if not self.is_published:
            return
        if not os.path.lexists(self.hidden):
            os.rename(self.output, self.hidden)
        elif identity_of(self.hidden) == self.identity:  # a second name of the same file
            self.output.unlink()
        else:
            exchange(self.hidden, self.output)


@dataclass
class FileSet:
    """Outputs that appear together when `publish` is called, and disappear if the block ends without it."""

    members: list[Member] = field(default_factory=list)
    is_published: bool = False
    _locks: list[int] = field(default_factory=list)

    def __enter__(self) -> FileSet:
        return self

    def __exit__(self, *error: Any) -> None:
        for member in self.members:
            remove(member.hidden)
        while self._locks:
            os.close(self._locks.pop())

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Let every output that is written in the block belong to this set."""
        token = _collecting.set(self)
        try:
            yield
        finally:
            _collecting.reset(token)

    def add(self, output: Path, *, folder: bool, overwrite: bool, replaces: Collection[Path] = ()) -> Member:
        """Make a hidden file or folder for an output.

        Raises:
            WeightsError: The set has an output of that name; where case does not count they would be one file.
        """
        if any(_folded(member.output) == _folded(output) for member in self.members):
            raise WeightsError(f"cannot write {output}: two outputs of this run have the name.")
        hidden, handle = claim(output, folder)
        self._locks += [] if handle is None else [handle]
        member = Member(output, hidden, overwrite=overwrite, replaces=replaces)
        self.members.append(member)
        return member

    def drop(self, member: Member) -> None:
        """Take an output out of the set, and remove what was written of it."""
        self.members.remove(member)
        remove(member.hidden)

    def publish(self) -> None:
        """Let all members take their places, or none.

        Raises:
            WeightsError: One of them cannot. The others are put back.
        """
        try:
            if len(self.members) > 1:
                self._locks += lock_parents(self.members)
                self._write_records()
            for member in self.members:
                with failing_to_write(member.output):
                    with suppress(FileNotFoundError, BlockingIOError):
                        self._lock(member.output)  # What is put aside is not taken for a leftover.
                    member.publish()
            flush_parents(self.members)
        except BaseException:
            # Taken out first: if they cannot be put back now, what is left of them is needed by the next run.
            members, self.members = self.members, []
            put_all_back(members)
            raise
        self.is_published = True
        for member in self.members:
            remove(member.record)

    def _write_records(self) -> None:
        listed = [[str(m.output), str(m.hidden), m.identity] for m in self.members]
        text = json.dumps({**HEADER, "members": listed})
        for member in self.members:
            with failing_to_write(member.output):
                member.record.touch(exist_ok=False)
                self._lock(member.record)
                member.record.write_text(text, encoding="ascii")
                flush(member.record)
        flush_parents(self.members)

    def _lock(self, path: Path) -> None:
        if (handle := lock(path)) is not None:
            self._locks.append(handle)


@contextmanager
def written_together() -> Iterator[FileSet]:
    """Let all files that are written in the block appear when it ends well, and none of them otherwise.

    A block inside another belongs to it.
    """
    outer = _collecting.get()
    if outer is not None:
        yield outer
        return
    with FileSet() as files:
        with files.collecting():
            yield files
        files.publish()


def current_set() -> FileSet | None:
    """Return the set that outputs written here belong to, if there is one."""
    return _collecting.get()


@contextmanager
def apart() -> Iterator[None]:
    """Let outputs that are written in the block stand for themselves."""
    token = _collecting.set(None)
    try:
        yield
    finally:
        _collecting.reset(token)


def clear_leftovers(output: Path) -> None:
    """Put back or remove what a killed run to this output left, not what live runs are writing."""
    for record in hidden_beside(output, RECORD):
        with suppress(OSError), ExitStack() as stack:
            handle = lock(record)
            if handle is None:
                continue
            stack.callback(os.close, handle)
            members = read_record(record)
            for parent in lock_parents(members):
                stack.callback(os.close, parent)
            for member in members:
                put_back(member.hidden, member.output)
            # All records are there from before the first member moves until after the last one has.
            is_moving = all(member.record.exists() for member in members)
            put_all_back(members if is_moving and not all(member.is_published for member in members) else [])
            for leftover in [*(path for member in members for path in (member.hidden, member.record)), record]:
                remove(leftover)
    remove_parts(output)


def put_all_back(members: Sequence[Member]) -> None:
    """Put every member of a set back, the last first, and remove what was written of them."""
    for member in reversed(members):
        member.undo()
    for member in members:
        remove(member.hidden)
        remove(member.record)


def lock_parents(members: Iterable[Member]) -> list[int]:
    """Lock the folders of a set, always in the same order, so that two sets never mix; return the handles to close.

    A hidden folder is locked by the run that fills it, which would wait for itself.
    """
    parents = {member.output.parent.resolve() for member in members}
    handles = [lock(parent, wait=True) for parent in sorted(parents) if not is_unfinished(parent.name)]
    return [handle for handle in handles if handle is not None]


def flush_parents(members: Iterable[Member]) -> None:
    """Flush the folders of a set to the disk."""
    for parent in {member.output.parent for member in members}:
        flush(parent)


def refuse_strangers(output: Path, folder: Path, known: Collection[Path]) -> None:
    """Raise `WeightsError`, with their names, if a folder that would be replaced holds more than known files."""
    if names := strangers(folder, known):
        loss = f"it holds {list_some(names, 5)}, which would be lost"
        raise WeightsError(f"cannot replace {output}: {loss}. Choose another output, or move them away.")


def is_free(output: Path) -> bool:
    """Whether nothing is there; an empty folder counts as nothing."""
    if output.is_symlink() or not output.is_dir():
        return not os.path.lexists(output)
    return not os.listdir(output)


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return inode and time of last change of what is there."""
    with suppress(OSError):
        facts = path.lstat()
        return facts.st_ino, facts.st_mtime_ns
    return None


@contextmanager
def failing_to_write(output: Path) -> Iterator[None]:
    """Turn what the system says against an output into a `WeightsError` that names it."""
    try:
        yield
    except OSError as error:
        raise WeightsError(f"cannot write {output}: {error.strerror or error}.") from error


def read_record(record: Path) -> list[Member]:
    """Read the members that a record lists; none where it was cut off, or lists what does not stand beside them."""
    try:
        document = json.loads(record.read_text(encoding="ascii"))
        if {key: document[key] for key in HEADER} != HEADER:
            return []
        members = [Member(Path(to), Path(hidden), (inode, time)) for to, hidden, (inode, time) in document["members"]]
    except (ValueError, KeyError, TypeError):
        return []
    tokens = [member.hidden.name.removesuffix(PART)[-TOKEN:] for member in members]
    names = [hidden_name(member.output, token, PART) for member, token in zip(members, tokens, strict=True)]
    is_ours = names == [member.hidden for member in members] and record in [member.record for member in members]
    return members if is_ours else []


def _folded(output: Path) -> tuple[Path, str]:
    return output.parent.resolve(), output.name.casefold()
