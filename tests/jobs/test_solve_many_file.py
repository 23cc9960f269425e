"""The file of `solve_many`: what is in it is not solved again, and nothing else is taken from it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import alignkit
from alignkit import Alignment, SoftAlignment, solve_many
from alignkit.errors import SolverError
from alignkit.testing import independent_pair, mlp, planted_pair
from helpers.comparison_solvers import Shuffle
from helpers.many_pairs import GRAPH, FailsAt, numbers, pairs_of
from helpers.small_pairs import pair_of


def test_what_is_in_the_file_is_not_solved_again(tmp_path: Path) -> None:
    path, log, pairs = tmp_path / "rows.jsonl", tmp_path / "log", pairs_of(5)
    shuffle = Shuffle(log=str(log))
    first = solve_many(GRAPH, pairs[:3], solver=shuffle, seed=4, path=path)
    again = solve_many(GRAPH, pairs, solver=shuffle, seed=4, path=path)
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["4", "5", "6", "7", "8"]
    assert [numbers(one) for one in again][:3] == [numbers(one) for one in first]
    assert [one.seconds for one in again][:3] == [one.seconds for one in first]
    changed = [pairs[0], (pairs[1][1], pairs[1][0]), *pairs[2:]]
    done: list[int] = []
    solve_many(GRAPH, changed, solver=shuffle, seed=4, path=path, report=lambda pair: done.append(pair.index))
    assert done == [1]
    done.clear()
    solve_many(GRAPH, changed, solver=shuffle, seed=5, path=path, report=lambda pair: done.append(pair.index))
    assert done == list(range(5))


def test_a_pair_with_another_start_is_solved_again(tmp_path: Path) -> None:
    path, pairs = tmp_path / "rows.jsonl", pairs_of(3)
    starts = [Alignment.random(GRAPH, seed) for seed in range(3)]

    def done(init: Any) -> list[int]:
        numbers: list[int] = []
        solve_many(GRAPH, pairs, init=init, path=path, report=lambda pair: numbers.append(pair.index))
        return numbers

    assert done(None) == [0, 1, 2]
    assert done([None, *starts[1:]]) == [1, 2]
    assert done([None, *starts[1:]]) == []
    assert done([None, starts[1], starts[0]]) == [2]
    assert done([None, None, starts[0]]) == [1]
    soft = [SoftAlignment.from_alignment(starts[0]), SoftAlignment.centre(GRAPH), None]
    assert done([soft[0], None, soft[0]]) == [0, 2]  # a soft start may lead elsewhere than its alignment
    assert done([soft[0], None, soft[0]]) == []
    assert done([soft[1], None, soft[0]]) == [0]


def test_a_soft_alignment_survives_the_file(tmp_path: Path) -> None:
    pair = planted_pair(mlp(4, 5, 3), noise=0.1)
    given, path = [(pair.a, pair.b)] * 2, tmp_path / "rows.jsonl"
    first = solve_many(pair.graph, given, solver="sinkhorn > weight_matching", max_steps=3, path=path)
    again = solve_many(
        pair.graph, given, solver="sinkhorn > weight_matching", max_steps=3, path=path, report=pytest.fail
    )
    for one, other in zip(first, again, strict=True):
        assert numbers(one) == numbers(other)
        assert one.facts() == other.facts()
        soft, read = one.stages[0].soft, other.stages[0].soft
        assert soft is not None
        assert read is not None
        assert all(torch.equal(soft.matrices[n], read.matrices[n]) for n in soft.matrices)


def test_failures_are_solved_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert len(solve_many(GRAPH, pairs_of(3), solver=FailsAt({1: ValueError()}), path=path).solutions) == 2
    done: list[int] = []
    solve_many(GRAPH, pairs_of(3), solver=FailsAt({}), path=path, report=lambda pair: done.append(pair.index))
    assert done == [1]


def test_files_of_something_else_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    solve_many(GRAPH, pairs_of(2), path=path)
    kept = path.read_bytes()
    other = pair_of("flatten")
    with pytest.raises(SolverError, match="graph differ"):
        solve_many(other.graph, [other], path=path)
    with pytest.raises(SolverError, match="device differ"):
        solve_many(GRAPH, pairs_of(2), path=path, device="cpu")
    assert path.read_bytes() == kept
    pair = independent_pair(mlp(3, 4, 2))
    rows = tmp_path / "compare.jsonl"
    alignkit.compare(pair.bind(), solvers=[], path=rows)
    with pytest.raises(SolverError, match="cannot be resumed"):
        solve_many(pair.graph, [pair.bind()], path=rows)


@pytest.mark.parametrize("cut", [1, 30, 700])
def test_a_line_that_was_cut_off_is_solved_again(cut: int, tmp_path: Path) -> None:
    path, pairs = tmp_path / "rows.jsonl", pairs_of(4)
    whole = solve_many(GRAPH, pairs, path=path)
    path.write_bytes(path.read_bytes()[:-cut])
    again = solve_many(GRAPH, pairs, path=path)
    assert [numbers(one) for one in again] == [numbers(one) for one in whole]
    solve_many(GRAPH, pairs, path=path, report=pytest.fail)


def test_damaged_rows_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    solve_many(GRAPH, pairs_of(2), path=path)
    lines = path.read_text().splitlines()
    row = {key: value for key, value in json.loads(lines[2]).items() if key != "digest"}
    tensors = row["solution"]["tensors"]
    damages = [
        lines[2].replace('"sweeps": ', '"sweeps": 1'),
        "[]",
        "{",
        json.dumps({**row, "pair": "x"}),
        *(json.dumps({**row, "solution": {**row["solution"], "tensors": text}}) for text in ("?", "", tensors[:-8], 3)),
        json.dumps({**row, "solution": {**row["solution"], "status": "FINE"}}),
        json.dumps({**row, "solution": {**row["solution"], "gain": {}}}),
    ]
    for damage in damages:
        path.write_text("\n".join([*lines[:2], damage]) + "\n")
        with pytest.raises(SolverError, match=r"line 3 of .*rows\.jsonl"):
            solve_many(GRAPH, pairs_of(2), path=path)


KILLED = """
import sys
sys.path[:0] = {paths!r}
from helpers.comparison_solvers import Shuffle
from alignkit import SymmetryGraph, solve_many
from helpers.small_pairs import pair_of
pairs = [pair_of("two layers", seed) for seed in range(4)]
solve_many(pairs[0].graph, pairs, solver=Shuffle(log={log!r}, hang_at=2), path={path!r})
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path, log = tmp_path / "rows.jsonl", tmp_path / "log"
    paths = [str(Path(__file__).parents[1]), *sys.path[1:]]
    script = KILLED.format(paths=paths, log=str(log), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not (log.exists() and len(log.read_text().splitlines()) == 3):  # it hangs in the third pair now
            assert process.poll() is None
            assert time.monotonic() < deadline, "it never came to its third pair"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    log.unlink()
    pairs = [pair_of("two layers", seed) for seed in range(4)]
    resumed = Shuffle(log=str(log), hang_at=2)
    solve_many(pairs[0].graph, pairs[:2], solver=resumed, path=path, report=pytest.fail)
    assert not log.exists()
