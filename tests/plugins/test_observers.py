"""The progress bar and the log: what is shown, and that nothing is shown unasked."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from io import StringIO

import pytest
import torch
from rich.console import Console

from alignkit.errors import PluginError, SolverError
from alignkit.graph import SymmetryGraph
from alignkit.jobs.solve import solve
from alignkit.plugins.observers import _place_of, logged, progress, watched
from alignkit.plugins.plugin_registry import registry
from alignkit.solver import IterativeOptions, Outcome, Solver, Status, Step
from alignkit.testing import mlp, planted_pair


class Steps(Solver[IterativeOptions]):
    """Reports three steps, and lets the test look around before the last."""

    name = "steps"
    look = staticmethod(lambda: None)

    def solve(self, problem, report):
        for i in range(1, 4):
            report(Step(i, 100.0 / i, "a note"))
            if i == 2:
                type(self).look()
        return Outcome(problem.start)


class Fails(Solver[IterativeOptions]):
    name = "fails"

    def solve(self, problem, report):
        raise RuntimeError("the matrix is singular")


class Interrupted(Solver[IterativeOptions]):
    name = "interrupted"

    def solve(self, problem, report):
        raise KeyboardInterrupt


@pytest.fixture
def pair():
    return planted_pair(mlp(3, 6, 2)).bind()


@pytest.fixture
def screen():
    return Console(file=StringIO(), force_terminal=True, width=100)


def shown(screen):
    return screen.file.getvalue()


def test_a_bar_shows_solver_step_and_objective(pair, screen):
    class Looks(Steps):
        look = staticmethod(lambda: threading.Event().wait(0.3))  # the bar is drawn ten times a second

    with progress(after=0, console=screen):
        solve(pair, solver=Looks())
    for text in ("steps", "2/1000", "objective 50"):
        assert text in shown(screen)


@pytest.mark.parametrize(("name", "text"), [("weight_matching", "restart 2/2"), ("frank_wolfe", "run 3/3")])
def test_restarts_are_counted_as_restarts(name, text):
    a, b = (torch.nn.Sequential(torch.nn.Linear(9, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4)) for _ in range(2))
    graph = SymmetryGraph.from_spec({"0.weight": "h .", "0.bias": "h", "2.weight": ". h", "2.bias": "."}, like=a)
    last = solve(graph, a, b, solver=name, restarts=2).history[-1]
    assert _place_of(last, 1000) == text


def test_a_slow_solver_that_reports_nothing_gets_its_bar_too(pair, screen):
    appeared = threading.Event()

    class Silent(Solver[IterativeOptions]):
        """Waits until its bar is on the screen."""

        name = "silent"

        def solve(self, problem, report):
            for _ in range(600):
                if "silent" in shown(screen):
                    appeared.set()
                    break
                threading.Event().wait(0.05)
            return Outcome(problem.start)

    with progress(after=0.05, console=screen):
        solve(pair, solver=Silent())
    assert appeared.is_set()


def test_a_quick_solve_shows_nothing(pair, screen):
    with progress(after=3600, console=screen):
        solve(pair, solver=Steps())
    assert shown(screen) == ""


def test_nothing_is_drawn_on_what_is_no_terminal(pair):
    plain = Console(file=StringIO(), force_terminal=False)
    with progress(after=0, console=plain):
        solve(pair, solver=Steps())
    assert shown(plain) == ""


def test_a_library_call_shows_and_logs_nothing(pair, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        solve(pair, solver=Steps())
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


@pytest.mark.parametrize("solver", [Fails(), Interrupted()])
def test_the_screen_is_given_back_when_a_solve_ends_badly(pair, screen, solver):
    with suppress(SolverError), progress(after=0, console=screen):
        assert solve(pair, solver=solver).status is Status.INTERRUPTED
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert shown(screen).rfind(show) > shown(screen).rfind(hide) >= 0  # the cursor is back
    before = len(registry().plugins.manager.get_plugins())
    with progress(after=0, console=screen):
        assert len(registry().plugins.manager.get_plugins()) == before + 1
    assert len(registry().plugins.manager.get_plugins()) == before


def test_solves_in_threads_have_a_line_each(pair, screen):
    both = threading.Barrier(2)

    class Meets(Steps):
        name = "meets"
        look = staticmethod(lambda: both.wait(60) and threading.Event().wait(0.3))

    with progress(after=0, console=screen):
        threads = [threading.Thread(target=solve, args=(pair,), kwargs={"solver": Meets()}) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "meets" in shown(screen)
    assert not both.broken


def test_log_lines(pair, caplog):
    with caplog.at_level(logging.DEBUG, logger="alignkit"), logged():
        solve(pair, solver=Steps(), seed=3)
        solve(pair, solver=Fails(), throw=False)
        solve(pair, solver=Interrupted())
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines[0] == ("INFO", "steps starts: Steps(), seed 3, on cpu")
    assert ("DEBUG", "steps step 2: objective 50 (a note)") in lines
    assert any(level == "INFO" and "steps ends with OK" in text for level, text in lines)
    assert any(level == "WARNING" and "the matrix is singular" in text for level, text in lines)
    assert lines[-1][0] == "WARNING"
    assert "interrupted ends with INTERRUPTED" in lines[-1][1]
    caplog.clear()
    solve(pair, solver=Steps())
    assert caplog.records == []


def test_what_observes_nothing_is_refused(pair):
    with pytest.raises(PluginError, match="implements no hook"), watched(object()):
        solve(pair)


class Halfway(Solver[IterativeOptions]):
    """Says which share of its work is done."""

    name = "halfway"

    def solve(self, problem, report):
        report(Step(1, 5.0, share=0.5))
        threading.Event().wait(0.3)  # the bar is drawn ten times a second
        return Outcome(problem.start)


def test_a_bar_shows_the_share_that_is_done_and_the_time_left(pair, screen):
    from rich.progress import Progress

    shares = []
    update = Progress.update

    def noted(self, line, **values):
        update(self, line, **values)
        shares.append(self.tasks[0].percentage)

    with pytest.MonkeyPatch.context() as patch, progress(after=0, console=screen):
        patch.setattr(Progress, "update", noted)
        solve(pair, solver=Halfway())
    assert 50.0 in shares
    assert "-:--:--" in shown(screen)  # the place of the time left


@pytest.mark.parametrize("share", [1.5, -0.1, float("nan"), "half"])
def test_a_share_that_is_none_ends_the_solver(pair, share):
    class Wrong(Solver[IterativeOptions]):
        name = "wrong"

        def solve(self, problem, report):
            report(Step(1, 1.0, share=share))
            return Outcome(problem.start)

    with pytest.raises(SolverError, match="as the share of a step"):
        solve(pair, solver=Wrong())


def test_observers_see_the_alignment_of_a_step(pair):
    from alignkit.plugins.hookspecs import hookimpl

    seen = []

    class Sees:
        @hookimpl
        def alignkit_solve_step(self, step):
            seen.append(step.alignment)

    with watched(Sees()):
        solution = solve(pair, solver="weight_matching")
    assert seen[-1] == solution.alignment
    assert all(step.alignment is None for step in solution.history)
