"""Plugins: solvers and observers that misbehave in every way, alone and in chains."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import alignkit
from alignkit import Alignment, Outcome, Problem, SolverOptions, Status, Step
from alignkit.plugins import Registry
from fuzzers.engine import Case, Dice, expect
from fuzzers.networks import NETS, moved, random_alignment, same, weights_for
from fuzzers.state_dicts import check_solution
from fuzzers.values import anything

Report = Callable[[Step], None]
Deed = Callable[[Dice, Problem, Report], object]


def endless() -> None:
    endless()


def raising(error: type[BaseException], *arguments: object) -> Deed:
    def deed(dice: Dice, problem: Problem, report: Report) -> None:
        raise error(*arguments)

    return deed


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def assign(problem: Problem, name: str, value: object) -> None:
    setattr(problem, name, value)


DEEDS: dict[str, Deed] = {
    "nothing": lambda dice, problem, report: None,
    "ValueError": raising(ValueError, "wrong"),
    "an error of alignkit": raising(alignkit.AlignkitError, "wrong"),
    "an empty error": raising(RuntimeError),
    "an error without a text": raising(UnprintableError),
    "KeyError": raising(KeyError, 3),
    "StopIteration": raising(StopIteration),
    "SystemExit": raising(SystemExit, 5),
    "exit with text": raising(SystemExit, "bye"),
    "GeneratorExit": raising(GeneratorExit),
    "MemoryError": raising(MemoryError),
    "a bare exception": raising(BaseException, "bare"),
    "recursion": lambda dice, problem, report: endless(),
    "writes to B": lambda dice, problem, report: next(iter(problem.b.values())).zero_(),
    "writes through data": lambda dice, problem, report: next(iter(problem.b.values())).data.zero_(),
    "writes through numpy": lambda dice, problem, report: next(iter(problem.a.values())).detach().numpy().fill(0),
    "empties B": lambda dice, problem, report: problem.b.clear(),  # type: ignore[attr-defined]
    "replaces a tensor": lambda dice, problem, report: replace_tensor(problem),
    "resizes a tensor": lambda dice, problem, report: next(iter(problem.b.values())).resize_(1),
    "writes to the start": lambda dice, problem, report: [e.zero_() for e in problem.start.elements.values()],
    "sets a field": lambda dice, problem, report: assign(problem, "bound", None),
    "sets a field by force": lambda dice, problem, report: object.__setattr__(problem, "bound", None),
    "default dtype": lambda dice, problem, report: torch.set_default_dtype(torch.float64),
    "grad mode": lambda dice, problem, report: torch.set_grad_enabled(False),
    "threads": lambda dice, problem, report: torch.set_num_threads(2),
    "deterministic": lambda dice, problem, report: torch.use_deterministic_algorithms(True),
    "seeds": lambda dice, problem, report: (torch.manual_seed(1), np.random.seed(1), random.seed(1)),
    "reports a step": lambda dice, problem, report: report(Step(0, 1.0, "a step")),
    "reports NaN": lambda dice, problem, report: report(Step(0, float("nan"))),
    "reports anything": lambda dice, problem, report: report(anything(dice)),
    "reports a step of anything": lambda dice, problem, report: report(
        Step(anything(dice), anything(dice), anything(dice))
    ),
}
"""What a solver or an observer does before it returns."""


def replace_tensor(problem: Problem) -> None:
    name = next(iter(problem.b))
    problem.b[name] = torch.zeros_like(problem.b[name])  # type: ignore[index]


def returned(dice: Dice, problem: Problem) -> Any:
    """What a solver returns: right, of a wrong type, or changed after it was made."""
    graph = problem.graph
    right = random_alignment(dice, graph)
    other = Alignment.identity(next(net for net in NETS.values() if net != graph))
    kind = dice.randrange(8)
    if kind == 0:
        return anything(dice)
    if kind == 1:
        return right
    if kind == 2:
        return Outcome(other)
    if kind == 3:
        made = Outcome(right)
        for element in right.elements.values():
            element.zero_()
        return made
    if kind == 4:
        field = dice.pick("alignment", "status", "stats", "soft", "notes")
        return Outcome(**{"alignment": right, field: anything(dice)})
    return Outcome(right, dice.choice(list(Status)), {"restarts": 1}, None, {"note": "text"})


def solver_class(dice: Dice, deed: Deed) -> type[alignkit.Solver[Any]]:
    class Misbehaving(alignkit.Solver[SolverOptions]):
        """Misbehave."""

        name = "misbehaving"
        Options = SolverOptions
        summary = "Misbehaves."

        def solve(self, problem: Problem, report: Report) -> Outcome:
            deed(dice, problem, report)
            return returned(dice, problem)

    return Misbehaving


def solver(dice: Dice, folder: Path) -> Case:
    """A solver that misbehaves is told by its name, or what it returned is right and nothing else is changed."""
    graph = NETS[dice.choice(sorted(NETS))]
    a, b = weights_for(dice, graph), weights_for(dice, graph)
    deed = dice.choice(sorted(DEEDS))
    stages: list[Any] = [solver_class(dice, DEEDS[deed]), "weight_matching"][: dice.randint(1, 2)]
    throw = dice.chance(0.7)

    given = [{name: tensor.clone() for name, tensor in side.items()} for side in (a, b)]

    def run() -> None:
        solution = alignkit.solve(graph, a, b, solver=stages, throw=throw, registry=Registry([]))
        check_solution(graph, *given, solution)
        expect(not (throw and solution.status.failed), "a failure was not raised")
        expect(solution.status.failed or same(b, given[1]), "B was written to, and nothing is said")
        expect(same(solution.apply(b), moved(graph, solution.alignment, b)), "another network is returned")
        solution.save("solution.safetensors")
        loaded = alignkit.Solution.load("solution.safetensors", graph)
        expect(loaded.alignment == solution.alignment, "another alignment is loaded")
        solution.explain()

    case = f"a solver: {deed}, {len(stages)} stages, throw={throw}"
    # What writes past every guard cannot be undone; it must be refused all the same.
    writes = deed.startswith("writes") or deed == "resizes a tensor"
    names = () if deed == "an error of alignkit" else ("misbehaving",)
    return Case(case, run, names, () if writes else (a, b), ("solution.safetensors",))


HOOKS = ("alignkit_solve_started", "alignkit_solve_step", "alignkit_solve_finished")


def observer(dice: Dice, folder: Path) -> Case:
    """An observer that misbehaves changes neither the result nor the process."""
    graph = NETS[dice.choice(sorted(NETS))]
    a, b = weights_for(dice, graph), weights_for(dice, graph)
    deed, hook = dice.choice(sorted(DEEDS)), dice.choice(HOOKS)
    writes = deed.startswith(("writes", "replaces", "empties", "resizes", "sets a field by"))

    def call(**arguments: Any) -> object:
        solution = arguments.get("solution")
        if solution is not None and deed == "writes to the start":
            return [element.zero_() for element in solution.alignment.elements.values()]
        return DEEDS[deed](dice, arguments["problem"], lambda step: None)

    hooks: dict[str, Any] = {}
    source = f"def {hook}(problem, solver{', step' if hook.endswith('step') else ''}"
    source += f"{', solution' if hook.endswith('finished') else ''}):\n    return call(**locals())"
    exec(source, {"call": call}, hooks)
    plugin = type("Observer", (), {hook: staticmethod(alignkit.hookimpl(hooks[hook]))})

    def run() -> None:
        plain = alignkit.solve(graph, {n: t.clone() for n, t in a.items()}, {n: t.clone() for n, t in b.items()})
        registry = Registry([])
        registry.register(plugin(), name="observer")
        solution = alignkit.solve(graph, a, b, registry=registry)
        if not writes or deed == "writes to the start":
            expect(solution.alignment == plain.alignment, "an observer changed the result")
            check_solution(graph, a, b, solution)

    return Case(f"an observer in {hook}: {deed}", run, (), () if writes else (a, b))


def make(dice: Dice, folder: Path) -> Case:
    return dice.choice((solver, solver, observer))(dice, folder)
