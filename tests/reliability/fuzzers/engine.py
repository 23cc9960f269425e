"""One engine for all fuzzers: a random source makes a case, the case is run, and what came of it has a name.

A fuzzer is a function from a random source and an empty folder to a `Case`. Every case is determined by the name of its
fuzzer, a seed and an index, in every process.
"""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from alignkit.errors import AlignkitError
from fuzzers.state import ProcessState, contents, listing

LONGEST = 12
"""Lines of a message that a person still reads."""
CPU_SECONDS, SECONDS = 30, 240
"""What a case may take before it counts as a hang: of the processor, and of the clock where it waits."""
FAILURES = ("raw", "wrong", "unclear", "leaked", "hang", "crash")
OUTCOMES = ("checked", "refused", *FAILURES)
T = TypeVar("T")


class Dice(random.Random):
    """A random source; it makes seeds of torch's generators as well."""

    def chance(self, share: float) -> bool:
        return self.random() < share

    def pick(self, *choices: T) -> T:
        return self.choice(choices)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.getrandbits(60))

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator(), dtype=dtype)


class WrongResultError(Exception):
    """What was accepted is not what an independent computation gives."""


def expect(holds: object, problem: str) -> None:
    """Raise `WrongResultError` with the problem unless something holds."""
    if not holds:
        raise WrongResultError(problem)


def expect_refusal(call: Callable[[], object], problem: str) -> None:
    """Raise `WrongResultError` with the problem unless a call raises an error of alignkit."""
    try:
        call()
    except AlignkitError:
        return
    raise WrongResultError(problem)


class Hang(BaseException):
    """A case took too long."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        shown: The input in a line or two, for those who read of a failure.
        run: Calls the public API, and raises `WrongResultError` where an oracle contradicts what it returns.
        names: A message that refuses the input has to hold one of these, if there are any.
        kept: Tensors, modules and containers of them that have to stay as they are.
        outputs: Files and folders that may appear in the folder of the case; ``"*"`` is any.
        refusals: Errors beside `AlignkitError` that are a refusal by design.
    """

    shown: str
    run: Callable[[], object]
    names: tuple[str, ...] = ()
    kept: tuple[object, ...] = ()
    outputs: tuple[str, ...] = ()
    refusals: tuple[type[Exception], ...] = ()


@dataclass(frozen=True)
class Fuzzer:
    """A kind of input: how it is made, and how many of a run's inputs are of it, as a share among all fuzzers."""

    name: str
    make: Callable[[Dice, Path], Case]
    share: float


@dataclass(frozen=True)
class Verdict:
    """What came of a case: one of `OUTCOMES`, what went wrong, and the traceback of an exception."""

    outcome: str
    detail: str = ""
    trace: str = ""


def run_case(fuzzer: Fuzzer, seed: int, index: int) -> tuple[Case, Verdict]:
    """Make a case and run it in an empty folder, which is the working folder meanwhile."""
    dice = Dice(f"{fuzzer.name} {seed} {index}")
    torch.manual_seed(index)
    with tempfile.TemporaryDirectory() as place, working_in(place), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = fuzzer.make(dice, Path(place))
        verdict = judged(case, Path(place))
    told = (without_places(text, place) for text in (case.shown, verdict.detail))
    return replace(case, shown=next(told)), replace(verdict, detail=next(told))


def without_places(text: str, folder: str) -> str:
    """A text without what differs from run to run: the folder, and places in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text.replace(folder, "FOLDER"))


def judged(case: Case, place: Path) -> Verdict:
    """Run a case, and look at what it returned, raised and left behind."""
    process, inputs, files = ProcessState(), contents(case.kept), listing(place)
    try:
        with limited():
            verdict = attempt(case)
    except Hang:
        verdict = Verdict("hang", f"more than {CPU_SECONDS} s of the processor or {SECONDS} s of the clock")
    leaks = process.changes()
    process.restore()
    if contents(case.kept) != inputs:
        leaks.append("an input was changed")
    left = {name: facts for name, facts in listing(place).items() if files.get(name) != facts}
    gone = files.keys() - listing(place).keys()
    allowed = case.outputs if verdict.outcome == "checked" else ()
    if "*" not in allowed:
        leaks += [f"{name} was left" for name in left if name.split("/")[0] not in allowed]
        leaks += [f"{name} was deleted" for name in gone if name.split("/")[0] not in allowed]
    if leaks and verdict.outcome not in FAILURES:
        return Verdict("leaked", f"{verdict.outcome}, but " + "; ".join(sorted(leaks)))
    return verdict


def attempt(case: Case) -> Verdict:
    """Call the API; an error of alignkit is a refusal if it says what the matter is."""
    try:
        case.run()
    except WrongResultError as error:
        return Verdict("wrong", str(error))
    except (AlignkitError, *case.refusals) as error:
        return refusal(case, str(error))
    except Hang:
        raise
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename.rpartition('/alignkit/')[2]}:{frame.lineno}"
        return Verdict("raw", f"{type(error).__name__}: {str(error)[:300]} ({place})", traceback.format_exc())
    return Verdict("checked")


def refusal(case: Case, message: str) -> Verdict:
    """Judge a message that refuses an input."""
    lines = message.strip().splitlines()
    if not lines or len(lines) > LONGEST or len(message) > 160 * LONGEST:
        return Verdict("unclear", f"the message has {len(lines)} lines and {len(message)} signs: {message[:300]!r}")
    if case.names and not any(name in message for name in case.names):
        return Verdict("unclear", f"the message names none of {', '.join(case.names)}: {message[:300]!r}")
    return Verdict("refused", message)


@contextmanager
def limited() -> Iterator[None]:
    """Raise `Hang` in what takes too long."""

    def stop(number: int, frame: object) -> None:
        raise Hang

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, CPU_SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, SECONDS)}
    before = {number: signal.signal(number, stop) for number, _ in timers.values()}
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def working_in(place: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)
