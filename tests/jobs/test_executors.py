"""Jobs on executors: taken as they are needed, and none is lost by an executor that breaks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from alignkit.errors import SolverError
from alignkit.jobs import executors
from alignkit.jobs.executors import ExecutorFailure, packed, run_in, unpacked


class Slow(Executor):
    """Holds its jobs until it has as many as it waits for; then all of them end, the last first."""

    def __init__(self, full: int) -> None:
        self.full, self.held, self.most = full, [], 0
        self.broken_after: int | None = None
        self.submitted = 0

    def submit(self, function, *arguments):
        if self.broken_after is not None and self.submitted >= self.broken_after:
            raise RuntimeError("the pool is broken")
        self.submitted += 1
        future: Future[Any] = Future()
        self.held.append((future, function, arguments))
        self.most = max(self.most, len(self.held))
        if len(self.held) >= self.full:
            for waiting, call, given in reversed(self.held):
                try:
                    waiting.set_result(call(*given))
                except Exception as error:
                    waiting.set_exception(error)
            self.held.clear()
        return future


def half(number: int, data: bytes = b"") -> float:
    if number == 13:
        raise SolverError("thirteen")
    return 1 / (number - 4)


def jobs(count: int, taken: list[int], data: bytes = b"") -> Iterator[tuple[int, tuple[Any, ...]]]:
    for i in range(count):
        taken.append(i)
        yield i, (i, data)


def test_every_job_has_its_own_result_and_failures_are_told() -> None:
    results = dict(run_in(Slow(3), half, jobs(9, [])))
    assert set(results) == set(range(9))
    assert results[6] == 0.5
    assert "ZeroDivisionError" in results[4].reason


def test_jobs_are_taken_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "WAITING_BYTES", 100)
    executor, taken = Slow(executors.AT_LEAST), []
    results = run_in(executor, half, jobs(24, taken, b"x" * 60))
    with pytest.raises(SolverError, match="thirteen"):
        list(results)
    assert executor.most <= executors.AT_LEAST
    assert max(taken) < 20  # those behind were never taken


def test_small_jobs_are_taken_at_once() -> None:
    executor, taken = Slow(12), []
    assert len(list(run_in(executor, half, jobs(12, taken, b"x")))) == 12
    assert executor.most == 12


def test_an_executor_that_breaks_is_told_to_every_job_that_is_left() -> None:
    executor = Slow(1)
    executor.broken_after = 3
    results = dict(run_in(executor, half, jobs(8, [])))
    assert [number for number, result in results.items() if isinstance(result, ExecutorFailure)] == [3, 4, 5, 6, 7]
    assert "the pool is broken" in results[7].reason


def test_jobs_that_wait_are_cancelled_when_the_caller_stops() -> None:
    executor = Slow(100)
    executor.submit(half, 0).set_result(-0.25)
    first = executor.held.pop()[0]

    class Answers(Slow):
        def submit(self, function, *arguments):
            future = super().submit(function, *arguments)
            return first if len(self.held) == 1 else future

    executor = Answers(100)
    results = run_in(executor, half, jobs(3, []))
    assert next(results) == (0, -0.25)
    results.close()
    assert [future.cancelled() for future, _, _ in executor.held] == [False, True, True]


def test_what_cannot_be_pickled_is_named() -> None:
    assert unpacked(packed({"one": 1, "two": [2]}, SolverError)) == (1, [2])
    parts = {"one": 1, "two": lambda: 0, "three": (i for i in ())}
    with pytest.raises(SolverError, match=r"^two, three cannot be sent to the executor"):
        packed(parts, SolverError)
