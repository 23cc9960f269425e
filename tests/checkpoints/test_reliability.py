"""A few rounds of what `tests/reliability` does to checkpoints many times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fuzz_checkpoints
import kills
from alignkit.checkpoints.file_set import clear_leftovers
from alignkit.checkpoints.staging import staged
from alignkit.errors import WeightsError

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials run in forked processes")


@pytest.mark.parametrize("kind", fuzz_checkpoints.DAMAGES)
def test_damaged_checkpoints_are_refused_or_read_in_full(kind: str, tmp_path: Path) -> None:
    counts = fuzz_checkpoints.trials(kind, range(6), 7, str(tmp_path))
    assert set(counts) <= {"refused", "read in full"}
    assert sum(counts.values()) == 6
    if kind not in ("bit flipped in a shard", "bits flipped in a header", "link") and "pickle" not in kind:
        assert counts == {"refused": 6}


@pytest.mark.slow
@needs_fork
def test_killed_commands_leave_whole_outputs(tmp_path: Path) -> None:
    """One kill of every command, and some full disks and pairs of writers; `kills.run` looks at what is left."""
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    counts = kills.run(len(kills.COMMANDS), 3, tmp_path, others=5)
    assert sum(counts["full disk, all"].values()) == 5
    assert sum(counts["two at once, all"].values()) == 5


def test_what_a_live_run_writes_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    output = tmp_path / "out"
    (tmp_path / ".out.0123abcd.alignkit-part").mkdir()
    (tmp_path / ".out.notes.alignkit-part").mkdir()
    (tmp_path / ".other.0123abcd.alignkit-part").mkdir()
    with staged(output, folder=True, replaces=[Path("x")]) as live:
        (live / "x").write_text("1")
        assert not (tmp_path / ".out.0123abcd.alignkit-part").exists()
        clear_leftovers(output)
        assert live.is_dir()
        with staged(output, folder=True) as second:
            (second / "x").write_text("2")
        assert (output / "x").read_text() == "2"
    assert (output / "x").read_text() == "1"
    others = [".other.0123abcd.alignkit-part", ".out.notes.alignkit-part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*others, "out"]


def test_a_link_that_is_named_like_a_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("1")
    (tmp_path / ".out.0123abcd.alignkit-part").symlink_to(tmp_path / "precious")
    with staged(tmp_path / "out", folder=True) as live:
        (live / "x").write_text("2")
    assert (tmp_path / "precious" / "x").read_text() == "1"


def test_a_second_run_finds_that_the_first_was_there_before_it(tmp_path: Path) -> None:
    def both() -> None:
        with staged(tmp_path / "out", folder=True, overwrite=False) as late:
            (late / "x").write_text("late")
            with staged(tmp_path / "out", folder=True, overwrite=False) as early:
                (early / "x").write_text("early")

    with pytest.raises(WeightsError, match="it exists"):
        both()
    assert (tmp_path / "out" / "x").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
