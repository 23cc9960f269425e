"""Ctrl-C: a sentence says what was written, the exit code is 130, and a second one ends at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import alignkit
from alignkit.checkpoints.file_set import Member
from alignkit.zoo.training import train
from helpers.command_line import run
from helpers.weight_files import GIVEN, JOBS, A, B, C

SLOW = '''
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
import alignkit
from alignkit import Alignment, Outcome, Solver, Step

class Slow(Solver):
    """Report a step, and press Ctrl-C in the next one."""

    name = "slow"

    def solve(self, problem, report):
        best = Alignment.random(problem.graph, 3)
        report(Step(1, 1.0, "", best))
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass

class Plugin:
    @alignkit.hookimpl
    def alignkit_register_solvers(self):
        return [Slow]

alignkit.plugins.registry().register(Plugin())
from alignkit.cli import main
main()
'''


class Presses:
    """Presses Ctrl-C after the first step of every solve."""

    @alignkit.hookimpl
    def alignkit_solve_step(self) -> None:
        raise KeyboardInterrupt


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WRITING = [job for job in JOBS if JOBS[job][1]]


@pytest.mark.parametrize(
    "job", [job for job in JOBS if job not in ("check", "canonical-form", "canonicalize", "solve")]
)
def test_a_job_that_is_interrupted_while_it_solves_writes_nothing(job: str, folder: Path) -> None:
    before = listing(folder)
    with alignkit.plugins.watched(Presses()):
        said = run(*JOBS[job][0], "--report", "r.md", code=130)
    assert "Interrupted. Nothing was written." in said
    assert listing(folder) == before


@pytest.mark.parametrize("job", WRITING)
@pytest.mark.parametrize("force", [False, True], ids=["new", "replacing"])
def test_a_command_that_is_interrupted_while_it_writes_leaves_all_as_it_was(
    job: str, force: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [*JOBS[job][0], "--report", "r.html"]
    if force:
        run(*call)
        call.append("--force")
    before = listing(folder)
    publish = Member.publish

    def pressed(member: Member) -> None:
        if member.output.name == "r.html":
            raise KeyboardInterrupt
        publish(member)

    monkeypatch.setattr(Member, "publish", pressed)
    assert "Interrupted. Nothing was written." in run(*call, code=130)
    assert listing(folder) == before


def test_an_import_in_c_that_is_interrupted_is_no_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: object, **keywords: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("alignkit.solvers.stacked_matching.StackedMatching.run", pressed)
    assert "Interrupted." in run(*JOBS["canonicalize"][0], code=130)


def test_canonicalize_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alignkit.solvers.stacked_matching.StackedMatching.run", pressed)
    before = listing(folder)
    assert "Interrupted. Nothing was written." in run(*JOBS["canonicalize"][0], code=130)
    assert listing(folder) == before


@pytest.mark.parametrize("memory", [(), ("--memory", "100MB")], ids=["in memory", "from disk"])
def test_solve_writes_the_best_so_far(memory: tuple[str, ...], folder: Path) -> None:
    outputs = ["-o", "out.safetensors", "--save-alignment", "al.safetensors", "--report", "r.html"]
    with alignkit.plugins.watched(Presses()):
        said = run("solve", A, B, *outputs, *GIVEN, *memory, code=130)
    assert "The solver was interrupted. The best alignment that it had found was kept." in said
    assert "Interrupted. Written: out.safetensors, al.safetensors, r.html." in said
    graph = alignkit.open_networks(A, B, spec="spec.json").graph
    alignment = alignkit.Alignment.load("al.safetensors", graph)
    expected = alignment.apply(alignkit.read_weights(B))
    found = alignkit.read_weights("out.safetensors")
    assert all((found[name] == tensor).all() for name, tensor in expected.items())


@pytest.mark.parametrize("memory", [(), ("--memory", "100MB")], ids=["in memory", "from disk"])
def test_solve_writes_nothing_where_nothing_was_found(memory: tuple[str, ...], folder: Path) -> None:
    before = listing(folder)
    with alignkit.plugins.watched(Presses()):
        said = run("solve", A, A, "-o", "out.safetensors", *GIVEN, *memory, code=130)
    assert "Interrupted. Nothing was written." in said
    assert listing(folder) == before


def test_compare_keeps_its_rows_and_goes_on(folder: Path) -> None:
    call = ["compare", A, B, *GIVEN, "--solver", "weight_matching", "--resume", "rows.jsonl", "--picture", "p.png"]
    with alignkit.plugins.watched(Presses()):
        said = run(*call, code=130)
    assert "What is done is kept in rows.jsonl, and the same command goes on there. Nothing else was written." in said
    assert [json.loads(line)["solver"] for line in Path("rows.jsonl").read_text().splitlines()[1:]] == ["identity"]
    run(*call)
    assert len(Path("rows.jsonl").read_text().splitlines()) == 3


def test_zoo_says_how_far_it_has_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: object, first: int, **keywords: object) -> object:
        if first == 2:
            raise KeyboardInterrupt
        return train(*arguments, first=first, **keywords)

    monkeypatch.setattr("alignkit.zoo.writing.train", pressed)
    call = ["zoo", "nets", "--widths", "4", "--source", "digits", "--count", 4, "--shard", 2, "--steps", 1]
    assert "2 of 4 networks are in nets. The same command goes on there." in run(*call, code=130)
    monkeypatch.undo()
    run(*call)


def test_trace_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(alignkit.SymmetryGraph, "draw", pressed)
    said = run("trace", "job_nets:net", "--spec", "s.json", "--picture", "p.png", code=130)
    assert "Interrupted. Nothing was written." in said
    assert not (folder / "s.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("second", [False, True], ids=["once", "twice"])
def test_a_real_ctrl_c(second: bool, folder: Path) -> None:
    """From the keyboard to the exit code: the signal meets a solver that never looks up."""
    code = SLOW
    if second:  # the next one comes while the first is being dealt with
        busy = """from alignkit.jobs import solver_run
account = solver_run.account
def busy(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    while True: pass
solver_run.account = busy
"""
        code = SLOW.replace("from alignkit.cli", busy + "from alignkit.cli")
    command = ["solve", A, C, "-o", "out.safetensors", "--solver", "slow", *GIVEN]
    ended = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert (folder / "out.safetensors").exists() == (not second)
    assert ("Nothing was written." if second else "Written: out.safetensors.") in ended.stderr


def in_thread(work: Callable[[], object]) -> object:
    import threading

    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_solves_and_files_in_threads(folder: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    graph = alignkit.open_networks(A, B, spec="spec.json").graph
    solution = in_thread(lambda: alignkit.solve(graph, A, B))
    with alignkit.checkpoints.written_together():  # of this thread, not of others
        in_thread(lambda: alignkit.write_weights("t.safetensors", solution.apply(alignkit.read_weights(B))))
        assert Path("t.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert os.getpid()
