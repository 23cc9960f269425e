"""`solve_many`: a pair that fails, and Ctrl-C, lose no other pair; wrong calls raise first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Alignment, solve, solve_many
from alignkit.errors import ArgumentError, SolverError
from alignkit.jobs import SolvedPair
from alignkit.solver import Outcome, Status
from helpers.many_pairs import GRAPH, FailsAt, State, network, pairs_of
from helpers.small_pairs import pair_of


def bad_pairs() -> dict[str, tuple[Any, str]]:
    good = network(1)
    nan = {**good, "w2": good["w2"].clone().fill_(float("nan"))}
    return {
        "another shape": (({**good, "w2": torch.zeros(3, 3)}, good), "w2"),
        "a tensor too few": ((good, {n: good[n] for n in ("w1", "b1")}), "w2"),
        "NaN": ((good, nan), "NaN or infinity"),
        "overflow": ((network(1, 1e200, torch.float64), network(2, 1e200, torch.float64)), "overflow"),
        "vanishing": ((network(1, 1e-200, torch.float64), network(2, 1e-200, torch.float64)), "vanish"),
        "complex": ((network(1, 1, torch.complex64), network(2, 1, torch.complex64)), "complex"),
        "no file": ((good, "no/such.safetensors"), "no/such.safetensors"),
        "a single network": (good, "A pair is two networks"),
        "three": ((good, good, good), "A pair is two networks"),
        "a text": ("ab", "A pair is two networks"),
        "a number": (3, "A pair is two networks"),
        "another graph": (pair_of("flatten"), "another graph"),
        "numbers": ((1, 2), "int"),
    }


@pytest.mark.parametrize("kind", bad_pairs())
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_pair_that_cannot_be_solved_is_told_and_the_others_go_on(kind: str, place: int) -> None:
    bad, words = bad_pairs()[kind]
    good = pairs_of(4)
    reported: list[SolvedPair] = []
    solved = solve_many(GRAPH, [*good[:place], bad, *good[place:]], report=reported.append)
    assert list(solved.reasons) == [place]
    assert words in solved.reasons[place]
    assert [one.alignment for one in solved.solutions] == [solve(GRAPH, *given).alignment for given in good]
    assert sorted(pair.index for pair in reported) == list(range(5))
    with pytest.raises(SolverError, match=rf"pair {place} has no solution\. "):
        solved[place]
    assert f"pair {place}: " in solved.explain()
    assert not solved.interrupted


def test_a_solver_that_fails_for_some_pairs_is_told_for_these() -> None:
    ways = {1: ValueError("singular"), 2: SystemExit(3), 3: None, 4: "no outcome", 5: Outcome("x"), 6: MemoryError()}
    solved = solve_many(GRAPH, pairs_of(8), solver=FailsAt(ways))
    assert list(solved.reasons) == [1, 2, 4, 5, 6]
    assert "singular" in solved.reasons[1]
    assert len(solved.solutions) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solver": "wieght_matching"}, "Did you mean 'weight_matching'"),
        ({"restart": 3}, "restart"),
        ({"solver": "activation_matching"}, "pass task="),
        ({"solver": []}, "empty sequence"),
        ({"path": "no/such/folder/rows.jsonl"}, "cannot be used for the rows"),
        ({"device": "nowhere"}, "nowhere"),
        ({"executor": 3}, "executor="),
        ({"seed": 0.5}, "seed="),
        ({"pairs": 3}, "pairs="),
        ({"init": 3}, "init="),
        ({"pairs": pairs_of(3), "init": [None, None]}, "init= holds 2 starts for 3 pairs"),
    ],
)
def test_wrong_calls_raise_before_a_pair_is_taken(wrong: dict[str, Any], message: str) -> None:
    def pairs() -> Iterator[Any]:
        pytest.fail("a pair was taken")
        yield

    with pytest.raises((SolverError, ArgumentError), match=message):
        solve_many(GRAPH, **{"pairs": pairs(), **wrong})


@pytest.mark.parametrize("place", [0, 3, 7])
def test_ctrl_c_returns_what_is_done_and_a_file_goes_on_there(place: int, tmp_path: Path) -> None:
    path, pairs = tmp_path / "rows.jsonl", pairs_of(8)
    solved = solve_many(GRAPH, pairs, solver=FailsAt({place: KeyboardInterrupt()}), path=path)
    assert solved.interrupted
    assert [pair.index for pair in solved.pairs if not pair.reason] == list(range(place))
    assert solved[place].status is Status.INTERRUPTED
    assert "Ctrl-C" in solved.reasons[7] or place == 7
    done: list[int] = []
    rest = solve_many(GRAPH, pairs, solver=FailsAt({}), path=path, report=lambda pair: done.append(pair.index))
    assert done == list(range(place, 8))
    assert (len(rest.solutions), rest.interrupted) == (8, False)


def test_ctrl_c_while_pairs_are_read_or_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs() -> Iterator[tuple[State, State]]:
        yield from pairs_of(5)
        raise KeyboardInterrupt

    monkeypatch.setattr("alignkit.jobs.pair_batches.STACKED", 2)
    solved = solve_many(GRAPH, pairs())
    assert solved.interrupted
    assert [len(solved), len(solved.solutions)] == [5, 4]
    calls: list[int] = []

    def pressed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    from alignkit.solvers.stacked_matching import StackedMatching

    whole = StackedMatching.run
    monkeypatch.setattr(StackedMatching, "run", pressed)
    solved = solve_many(GRAPH, pairs_of(7))
    assert [pair.index for pair in solved.pairs if pair.solution is not None] == [0, 1, 2, 3]
    assert solved.interrupted
    assert len(solved) == 7


def test_a_start_that_does_not_fit_is_told_and_the_others_go_on() -> None:
    fitting, stranger = Alignment.random(GRAPH, 1), Alignment.identity(pair_of("flatten").graph)
    solved = solve_many(GRAPH, pairs_of(5), init=(start for start in (fitting, stranger, "identity", None)))
    assert list(solved.reasons) == [1, 2, 4]
    assert "another graph" in solved.reasons[1]
    assert "has to be a Solution, a SoftAlignment, an Alignment or None" in solved.reasons[2]
    assert solved.reasons[4] == "init= holds 4 starts, and none for pair 4."
    assert solved[0].objective_init == pytest.approx(solve(GRAPH, *pairs_of(1)[0], init=fitting).objective_init)
