"""Trace and verify the models of torchvision, timm and transformers.

    OMP_NUM_THREADS=1 python tests/coverage/trace_zoo.py docs/results/coverage.json --jobs 2

Every model runs in a process of its own with a limit of processor time and of memory. A run that was stopped goes on
where it was, and `--again` runs models anew that have a status, or were run at a commit. Needs torchvision, timm and
transformers; downloads nothing. `docs/coverage.md` draws its tables from the file.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import logging
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import zoo_models
from judge import Result, judge, said

Judge = Callable[[str, str], Result]
"""What makes a row of a source and a name."""
WAIT = 8
"""A model that shares the processor may take this many times its limit."""
FORK = multiprocessing.get_context("fork")


def main() -> None:
    """Run what is missing in the results."""
    options = _options()
    rows = {} if not options.results.exists() else read(options.results)
    todo = [
        key
        for key in listed()
        if key[0] in options.source
        and any(fnmatch.fnmatch(key[1], pattern) for pattern in options.only)
        and (key not in rows or rows[key]["status"] in options.again or rows[key]["commit"] in options.again)
    ]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for library in options.source:
        importlib.import_module(library)  # the processes share what is imported
    state = {"commit": _commit(), "limit": options.limit, "memory": options.memory}
    for number, row in enumerate(run(todo, options.jobs, options.limit, options.memory), 1):
        rows[row["source"], row["name"]] = {**row, **state, "date": date.today().isoformat()}
        write(options.results, rows)
        print(f"{number}/{len(todo)} {row['source']}:{row['name']} {row['status']} {row['reason'][:150]}", flush=True)


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the result of each model."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["models"]
    return {(row["source"], row["name"]): row for row in rows}


def listed() -> list[tuple[str, str]]:
    """Return source and name of every model of the run."""
    return [(source, name) for source in zoo_models.SOURCES for name in zoo_models.names(source)]


def write(path: Path, rows: Mapping[tuple[str, str], dict[str, Any]]) -> None:
    """Write the results, a line for each model, with the versions that they were made with and what was not run."""
    every = listed()
    libraries = ("torch", *zoo_models.SOURCES)
    head = {
        "command": "python tests/coverage/trace_zoo.py docs/results/coverage.json",
        "versions": {library: importlib.metadata.version(library).partition("+")[0] for library in libraries},
        "not_run": [f"{source}:{name}" for source, name in every if (source, name) not in rows],
    }
    models = ",\n".join(json.dumps(rows[key]) for key in every if key in rows)
    text = json.dumps(head, indent=1)[:-2] + f',\n "models": [\n{models}\n]\n}}\n'
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _commit() -> str:
    """Return the commit of the checkout, marked where files were changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()


def run(
    todo: list[tuple[str, str]], jobs: int, limit: float, memory: float, judge: Judge = judge
) -> Iterator[dict[str, Any]]:
    """Yield the row of each model as it is done: `jobs` at a time, each for `limit` seconds of processor time."""
    waiting = list(reversed(todo))
    running: dict[Connection, tuple[Any, tuple[str, str], float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            key = waiting.pop()
            ours, theirs = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_work, args=(theirs, *key, limit, memory, judge), daemon=True)
            process.start()
            theirs.close()
            running[ours] = (process, key, time.monotonic())
        ready = wait(list(running), timeout=1)
        for connection, (process, key, started) in list(running.items()):
            if connection in ready:
                yield _received(connection, process, key)
            elif time.monotonic() - started > WAIT * limit:
                process.kill()
                yield Result(*key, status="time", reason=f"not done after {WAIT * limit:.0f} s of waiting").row()
            else:
                continue
            process.join()
            connection.close()
            del running[connection]


def _received(connection: Connection, process: Any, key: tuple[str, str]) -> dict[str, Any]:
    try:
        row: dict[str, Any] = connection.recv()
    except EOFError:
        process.join()
        late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        reason = "not done in time" if late else f"the process ended with code {process.exitcode}"
        row = Result(*key, status="time" if late else "memory", reason=reason).row()
    return row


def _work(connection: Connection, source: str, name: str, limit: float, memory: float, judge: Judge) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit),) * 2)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    try:
        row = judge(source, name).row()
        if "can't allocate memory" in row["reason"] or "MemoryError" in row["reason"]:
            row["status"] = "memory"
    except MemoryError as error:
        row = Result(source, name, status="memory", reason=said(error)).row()
    connection.send(row)
    connection.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON; added to")
    parser.add_argument("--source", nargs="*", default=zoo_models.SOURCES, choices=zoo_models.SOURCES)
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of names")
    parser.add_argument("--again", nargs="*", default=[], help="statuses and commits that are run once more")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=400, help="seconds of processor time for a model")
    parser.add_argument("--memory", type=float, default=10, help="GiB for a model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
