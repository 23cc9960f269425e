"""Merges and alignments of many models that are cut off, and go on from their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import alignkit
from alignkit.errors import AlignkitError, AlignmentError
from alignkit.jobs import kept_solves
from helpers.many_pairs import GRAPH, network

NETWORKS = [network(seed) for seed in range(4)]


class Presses:
    """Counts solves, and presses Ctrl-C in the first step of one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.solves = at, 0

    @alignkit.hookimpl
    def alignkit_solve_started(self) -> None:
        self.solves += 1

    @alignkit.hookimpl
    def alignkit_solve_step(self) -> None:
        if self.solves == self.at:
            raise KeyboardInterrupt


def merge_two(path: Path | None, **changes: Any) -> Any:
    given = {"networks": NETWORKS[:2], "restarts": 2, **changes}
    return alignkit.merge(GRAPH, *given.pop("networks"), path=path, **given)


def merge_four(path: Path | None, **changes: Any) -> Any:
    given = {"networks": NETWORKS, **changes}
    return alignkit.merge(GRAPH, *given.pop("networks"), path=path, **given)


def align(method: str) -> Any:
    def job(path: Path | None, **changes: Any) -> Any:
        given = {"networks": NETWORKS, "method": method, **changes}
        return alignkit.align_many(GRAPH, *given.pop("networks"), path=path, **given)

    return job


METHODS = ("reference", "merge_many", "universe")
JOBS = {"merge two": merge_two, "merge four": merge_four} | {method: align(method) for method in METHODS}


def result_of(done: Any) -> Any:
    """What does not depend on the clock."""
    if isinstance(done, alignkit.jobs.Merged):
        return {name: tensor.tolist() for name, tensor in done.network.items()}
    return done.alignments, done.spread_after, [step.objective for step in done.history]


def solves(job: Any, path: Path | None, at: int | None = None) -> tuple[int, Any]:
    watching, done = Presses(at), None
    with alignkit.plugins.watched(watching):
        if at is None:
            done = job(path)
        else:
            with pytest.raises(KeyboardInterrupt):
                job(path)
    return watching.solves, done


@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_is_cut_off_anywhere_ends_as_if_it_were_not(name: str, tmp_path: Path) -> None:
    job = JOBS[name]
    in_all, whole = solves(job, None)
    for at in range(1, in_all + 1):
        path = tmp_path / f"{at}.jsonl"
        solves(job, path, at)
        left, resumed = solves(job, path)
        assert left == in_all - at + 1
        if name != "merge two":  # its only solve starts where it was cut off, and may end elsewhere
            assert result_of(resumed) == result_of(whole)
        again, last = solves(job, path)
        assert again == 0
        assert result_of(last) == result_of(resumed)


def test_the_best_so_far_is_kept_of_a_solve_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_solves, "EVERY", 0.0)
    path, seen = tmp_path / "rows.jsonl", []

    class Killed(BaseException):
        pass

    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as at_the_end:
        at_the_end.setattr("alignkit.jobs.solver_run.account", killed)
        with pytest.raises(Killed):
            merge_two(path)
    best = [json.loads(line)["best"] for line in path.read_text().splitlines()[1:]]
    assert best
    assert all(best)

    class Sees:
        @alignkit.hookimpl
        def alignkit_solve_started(self, problem: alignkit.Problem) -> None:
            seen.append(problem.objective.distance2(problem.start))

    with alignkit.plugins.watched(Sees()):
        resumed = merge_two(path)
    assert seen[0] < alignkit.solve(GRAPH, *NETWORKS[:2], solver="identity").objective_after
    assert resumed.alignment.objective_after <= seen[0]


def test_what_was_gained_before_the_break_counts(tmp_path: Path) -> None:
    """The start of the solve that goes on is as good as its end: the network has to move all the same."""
    path = tmp_path / "rows.jsonl"
    job = align("merge_many")
    _, whole = solves(job, None)
    solves(job, path, 1)
    _, resumed = solves(job, path)
    assert resumed.spread_after <= whole.spread_after * (1 + 1e-9)


CHANGES: dict[str, dict[str, Any]] = {
    "weights": {"networks": [*NETWORKS[:3], network(9)]},
    "order": {"networks": NETWORKS[::-1]},
    "number": {"networks": NETWORKS[:3]},
    "solver": {"solver": "frank_wolfe"},
    "option": {"restarts": 1},
    "seed": {"seed": 5},
    "device": {"device": "cpu"},
    "reference": {"reference": 1},
    "method": {"method": "reference"},
    "sweeps": {"max_sweeps": 1},
    "start": {"init": [alignkit.Alignment.random(GRAPH, seed) for seed in range(4)]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_of_another_job_is_refused(change: str, tmp_path: Path) -> None:
    job, path = align("merge_many"), tmp_path / "rows.jsonl"
    job(path)
    before = path.read_bytes()
    with pytest.raises(AlignmentError, match="cannot be resumed: its rows are of something else"):
        job(path, **CHANGES[change])
    assert path.read_bytes() == before


DAMAGE = {
    "cut off in a row": lambda text: text[:-40],
    "cut off in the header": lambda text: text[:30],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_was_cut_off_is_used_as_far_as_it_goes(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    _, whole = solves(merge_four, path)
    path.write_text(DAMAGE[damage](path.read_text()))
    left, resumed = solves(merge_four, path)
    assert left > 0
    assert result_of(resumed) == result_of(whole)


@pytest.mark.parametrize("content", ["something else\n", "{}\n", '{"format": "alignkit.comparison-rows"}\n'])
def test_something_else_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(AlignkitError, match="cannot be resumed"):
        merge_four(path)
    assert path.read_text() == content


def test_networks_on_disk_go_on_too(tmp_path: Path) -> None:
    files = []
    for number, tensors in enumerate(NETWORKS):
        files.append(tmp_path / f"{number}.safetensors")
        alignkit.write_weights(files[-1], tensors)

    def job(path: Path | None) -> Any:
        return alignkit.align_many(GRAPH, *files, memory="1MB", path=path)

    _, whole = solves(job, None)
    solves(job, tmp_path / "rows.jsonl", 2)
    _, resumed = solves(job, tmp_path / "rows.jsonl")
    assert resumed.alignments == whole.alignments


def test_progress_tells_each_round_to_its_end() -> None:
    reports: list[alignkit.checkpoints.ByteProgress] = []
    alignkit.align_many(GRAPH, *NETWORKS, on_progress=reports.append)
    assert [report.fraction for report in reports[:3]] == [1 / 3, 2 / 3, 1.0]
    assert reports[-1].fraction == 1
    assert all(torch.isfinite(torch.tensor(report.seconds)) for report in reports)
