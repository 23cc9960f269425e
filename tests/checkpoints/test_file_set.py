"""Files that belong together: all of them appear, or none, wherever a run is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.checkpoints import file_set, staging, unfinished
from alignkit.checkpoints.file_set import clear_leftovers, written_together
from alignkit.checkpoints.staging import staged, write_text
from alignkit.errors import WeightsError

CALLS = ["open", "write", "link", "rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "chmod"]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are killed in forked processes")
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def killed_at(number: int, work: Callable[[], None], *, swap: bool = True) -> bool:
    """Run work in a process that kills itself before its call ``number`` to the system; whether it came to that.

    Work computes nothing: a process that is forked behind products in several threads can hang in its own.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [number]

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: object, **keywords: object) -> object:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*arguments, **keywords)

        return counting

    try:
        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        if swap:
            file_set.exchange = counted(file_set.exchange)
        else:
            unfinished.sys = type("OtherSystem", (), {"platform": "darwin"})  # no renameat2 there
        work()
    finally:
        os._exit(0)


def write_set(folder: Path, text: str, *, overwrite: bool) -> None:
    """A file, a folder and a file in another place, together."""
    with written_together():
        for place in (folder / "a.txt", folder / "else" / "c.txt"):
            with staged(place, overwrite=overwrite) as temporary:
                temporary.write_text(text)
        with staged(folder / "b", folder=True, overwrite=overwrite, replaces=[Path("x")]) as temporary:
            (temporary / "x").write_text(text)


PLACES = "a.txt", "b/x", "else/c.txt"


def state(folder: Path) -> set[str | None]:
    """What the files of the set say; None for one that is missing."""
    return {(folder / name).read_text() if (folder / name).exists() else None for name in PLACES}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@needs_fork
@forks
@pytest.mark.parametrize("swap", [True, False], ids=["renameat2", "three renames"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_set_is_whole_once_the_next_run_looks(every: int, overwrite: bool, swap: bool, tmp_path: Path) -> None:
    outcomes = set()
    for number in range(0, 400, every):
        looked_at = ("a.txt", "b", "else/c.txt")[number % 3]
        folder = tmp_path / str(number)
        (folder / "else").mkdir(parents=True)
        (folder / "mine.txt").write_text("mine")
        if overwrite:
            write_set(folder, "old", overwrite=False)
        died = killed_at(number, lambda folder=folder: write_set(folder, "new", overwrite=overwrite), swap=swap)
        clear_leftovers(folder / looked_at)
        found = state(folder)
        assert found in ({"new"}, {"old"} if overwrite else {None}), f"killed before call {number}: {found}"
        if found == {None}:
            write_set(folder, "again", overwrite=False)
            assert state(folder) == {"again"}
        else:
            write_set(folder, "again", overwrite=True)
        assert names(folder) == sorted([*PLACES, "mine.txt"]), "leftovers"
        outcomes.add("new" in found)
        if not died:
            break
    assert not died, "the run never came to its end"
    assert outcomes == {True, False}
    assert number > 20


@needs_fork
@forks
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_folder_is_whole_at_every_moment(every: int, overwrite: bool, tmp_path: Path) -> None:
    def write(folder: Path, text: str) -> None:
        with staged(folder / "b", folder=True, overwrite=overwrite, replaces=[Path("x"), Path("y")]) as temporary:
            for name in "xy":
                (temporary / name).write_text(text)

    for number in range(0, 400, every):
        folder = tmp_path / str(number)
        folder.mkdir()
        if overwrite:
            write(folder, "old")
        died = killed_at(number, lambda folder=folder: write(folder, "new"))
        found = {(folder / "b" / name).read_text() if (folder / "b" / name).exists() else None for name in "xy"}
        assert found in ({"new"}, {"old"} if overwrite else {None})
        if not died:
            break
    assert not died


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "replacing"])
def test_a_set_that_fails_on_the_way_leaves_nothing(
    overwrite: bool, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "else").mkdir()
    if overwrite:
        write_set(tmp_path, "old", overwrite=False)
    publish = file_set.Member.publish

    def failing(member: file_set.Member) -> None:
        if member.output.name == "b":  # the last of the three
            raise error
        publish(member)

    monkeypatch.setattr(file_set.Member, "publish", failing)
    with pytest.raises((WeightsError, KeyboardInterrupt)):
        write_set(tmp_path, "new", overwrite=overwrite)
    assert state(tmp_path) == ({"old"} if overwrite else {None})
    assert len(names(tmp_path)) == (3 if overwrite else 0)


def test_a_second_run_to_one_of_the_files_makes_the_whole_set_refuse(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()

    def both() -> None:
        with written_together():
            for place in (tmp_path / "a.txt", tmp_path / "else" / "c.txt"):
                with staged(place, overwrite=False) as temporary:
                    temporary.write_text("ours")
            (tmp_path / "else" / "c.txt").write_text("theirs")

    with pytest.raises(WeightsError, match=r"else/c.txt: it exists"):
        both()
    assert names(tmp_path) == ["else/c.txt"]
    assert (tmp_path / "else" / "c.txt").read_text() == "theirs"


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    def both() -> None:
        with written_together():
            write_text(tmp_path / "a.txt", "1")
            write_text(tmp_path / "A.txt", "2")

    with pytest.raises(WeightsError, match="two outputs of this run"):
        both()
    assert names(tmp_path) == []


def test_a_record_that_somebody_forged_moves_nothing(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "precious").write_text("mine")
    facts = (tmp_path / "precious").lstat()
    listed = [[str(tmp_path / "precious"), str(tmp_path / "inside" / "taken"), [facts.st_ino, facts.st_mtime_ns]]]
    record = tmp_path / "inside" / ".out.01234567.alignkit-set"
    record.write_text(file_set.json.dumps({**file_set.HEADER, "members": listed}))
    write_text(tmp_path / "inside" / "out", "text")
    assert (tmp_path / "precious").read_text() == "mine"
    assert names(tmp_path / "inside") == ["out"]


def test_blocks_inside_a_folder_stand_for_themselves(tmp_path: Path) -> None:
    with written_together():
        with staged(tmp_path / "b", folder=True) as temporary:
            write_text(temporary / "x", "1")
            assert (temporary / "x").read_text() == "1"
        assert not (tmp_path / "b").exists()
    assert (tmp_path / "b" / "x").read_text() == "1"


def test_a_set_in_a_folder_that_is_being_written_does_not_wait_for_itself(tmp_path: Path) -> None:
    with staged(tmp_path / "f", folder=True) as folder, written_together():
        write_text(folder / "a", "a")
        write_text(folder / "b", "b")
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["a", "b"]


def test_folders_are_made_and_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    monkeypatch.setattr(staging, "flush", flushed.append)
    staging.make_folder(tmp_path / "a" / "b")
    assert flushed == [tmp_path, tmp_path / "a"]
    (tmp_path / "a" / "f").write_text("")
    with pytest.raises(WeightsError, match="cannot write"):
        staging.make_folder(tmp_path / "a" / "f" / "g")
