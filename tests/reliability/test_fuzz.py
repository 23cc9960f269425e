"""The quick part of `tests/reliability/fuzz.py`: a few random inputs of every kind, and what the engine itself sees."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alignkit import AlignkitError
from fuzz import command
from fuzzers import engine
from fuzzers.all import FUZZERS, shared_out
from fuzzers.engine import FAILURES, Case, Fuzzer, expect, run_case

INPUTS = 2000
SEED = 11
needs_alarm = pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of time are signals of POSIX")


@needs_alarm
@pytest.mark.parametrize(("name", "count"), shared_out(FUZZERS, INPUTS).items())
def test_random_inputs_are_checked_or_refused(name: str, count: int) -> None:
    failures = []
    for index in range(count):
        _, verdict = run_case(FUZZERS[name], SEED, index)
        if verdict.outcome in FAILURES:
            failures.append(f"{verdict.outcome}: {verdict.detail}\n  {command(name, SEED, index)}")
    assert not failures, f"{len(failures)} of {count} inputs failed, for example\n" + "\n".join(failures[:5])


def verdict_of(run: Callable[[], object], **case: object) -> str:
    fuzzer = Fuzzer("made", lambda dice, folder: Case("made", run, **case), 1)  # type: ignore[arg-type]
    return run_case(fuzzer, 0, 0)[1].outcome


def refuse(message: str) -> Callable[[], object]:
    def run() -> None:
        raise AlignkitError(message)

    return run


TENSOR = torch.zeros(3)
RUNS: dict[str, tuple[Callable[[], object], dict[str, object], str]] = {
    "nothing wrong": (lambda: 1, {}, "checked"),
    "a refusal": (refuse("the tensor 'w' is missing."), {"names": ("'w'",)}, "refused"),
    "a refusal without a name": (refuse("no."), {"names": ("'w'",)}, "unclear"),
    "an empty refusal": (refuse(" "), {}, "unclear"),
    "a long refusal": (refuse("x\n" * 40), {}, "unclear"),
    "another exception": (lambda: [][0], {}, "raw"),
    "an exit": (lambda: sys.exit(0), {}, "raw"),
    "an oracle that disagrees": (lambda: expect(False, "2 and 2 are 5"), {}, "wrong"),
    "a file that is left": (lambda: Path("x").write_text("x"), {}, "leaked"),
    "a file that may be left": (lambda: Path("x").write_text("x"), {"outputs": ("x",)}, "checked"),
    "a setting": (lambda: torch.set_default_dtype(torch.float64), {}, "leaked"),
    "a seed": (lambda: torch.manual_seed(5), {}, "leaked"),
    "an input": (lambda: TENSOR.add_(1), {"kept": ([TENSOR],)}, "leaked"),
    "the working folder": (lambda: os.chdir("/"), {}, "leaked"),
}


@needs_alarm
@pytest.mark.parametrize("case", RUNS)
def test_the_engine_sees(case: str) -> None:
    run, fields, outcome = RUNS[case]
    assert verdict_of(run, **fields) == outcome
    assert torch.get_default_dtype() == torch.float32


@needs_alarm
def test_the_engine_ends_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SECONDS", 0.05)
    assert verdict_of(lambda: time.sleep(60)) == "hang"


@needs_alarm
@pytest.mark.parametrize("name", FUZZERS)
def test_an_input_is_the_same_every_time(name: str) -> None:
    first, second = ([run_case(FUZZERS[name], 3, index) for index in (2, 3)] for _ in range(2))
    assert [case.shown for case, _ in first] == [case.shown for case, _ in second]
    assert [verdict.outcome for _, verdict in first] == [verdict.outcome for _, verdict in second]


@pytest.mark.slow
def test_an_input_is_the_same_in_every_process() -> None:
    def shown(hash_seed: str) -> str:
        call = [sys.executable, "tests/reliability/fuzz.py", "state_dicts", "--seed", "1", "--index", "3"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        root = Path(__file__).parents[2]
        return subprocess.run(call, capture_output=True, text=True, check=False, cwd=root, env=environment).stdout

    assert shown("1") == shown("2") != ""
