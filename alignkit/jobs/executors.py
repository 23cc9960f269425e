"""Work in other threads, processes or machines: any ``concurrent.futures.Executor``, such as Dask's."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, NamedTuple, TypeVar

from alignkit.errors import AlignkitError
from alignkit.text import describe_error

AT_LEAST, WAITING_BYTES = 4, 1 << 31
"""An executor holds so many jobs, or more if they take fewer bytes: what they need is in memory until they are done."""

KeyT = TypeVar("KeyT")
ResultT = TypeVar("ResultT")


class ExecutorFailure(NamedTuple):
    """What an executor made of a job that it could not do: a worker was killed, or a result could not be sent."""

    reason: str


def packed(parts: Mapping[str, object], error: type[AlignkitError]) -> bytes:
    """Return objects as bytes for `unpacked`, each with what to call it.

    Tensors go by value: file handles and shared memory could run out.

    Raises:
        AlignkitError: Something cannot be pickled; the message names it. In the given class.
    """
    try:
        return pickle.dumps(parts, pickle.HIGHEST_PROTOCOL)
    except Exception as reason:
        guilty = []
        for name, part in parts.items():
            try:
                pickle.dumps(part)
            except Exception:
                guilty.append(name)
        raise error(
            f"{', '.join(guilty) or 'a job'} cannot be sent to the executor: {reason}. Classes and functions have to "
            "be defined at the top level of a module that the workers can import, not in a function or as a lambda; or "
            "run without an executor."
        ) from reason


def unpacked(data: bytes) -> tuple[Any, ...]:
    """Return the objects that `packed` took, in their order."""
    return tuple(pickle.loads(data).values())


def run_in(
    executor: Executor, function: Callable[..., ResultT], jobs: Iterable[tuple[KeyT, tuple[Any, ...]]]
) -> Iterator[tuple[KeyT, ResultT | ExecutorFailure]]:
    """Call a function for each job, and yield the results in the order in which they are done.

    Args:
        executor: Where it is called.
        function: It and its results can be pickled, if the executor needs that.
        jobs: What tells a job from the others, and the arguments of the function. They are taken as they are needed.

    Raises:
        AlignkitError: The function raised it. Other jobs that have not begun do not begin, nor on Ctrl-C.
    """
    waiting: dict[Future[ResultT], tuple[KeyT, int]] = {}
    upcoming = iter(jobs)
    following = next(upcoming, None)
    try:
        while following is not None or waiting:
            while following is not None:
                key, arguments = following
                size = sum(len(argument) for argument in arguments if isinstance(argument, bytes))
                if len(waiting) >= AT_LEAST and size + sum(own for _, own in waiting.values()) > WAITING_BYTES:
                    break
                try:
                    waiting[executor.submit(function, *arguments)] = key, size
                except Exception as error:  # it is broken, or was shut down
                    yield key, ExecutorFailure(f"the executor failed: {describe_error(error)}")
                following = next(upcoming, None)
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                key, _ = waiting.pop(future)
                try:
                    result: ResultT | ExecutorFailure = future.result()
                except AlignkitError:
                    raise
                except Exception as error:
                    result = ExecutorFailure(f"the executor failed: {describe_error(error)}")
                yield key, result
    finally:
        for future in waiting:
            future.cancel()
