"""Options of every solver, by its own model of them, and the arguments of `solve` beside them."""

from __future__ import annotations

import itertools
import math
import re
import types
import typing
from pathlib import Path
from typing import Any

import annotated_types
import torch
from pydantic.fields import FieldInfo

import alignkit
from alignkit import Alignment, Task
from alignkit.plugins import registry
from fuzzers.engine import Case, Dice, expect
from fuzzers.networks import perceptron, perceptron_graph, random_alignment
from fuzzers.state_dicts import check_solution
from fuzzers.values import anything, shown
from helpers.small_pairs import pair_of

BUDGET = 6
"""Largest number that is given where a number says how long to work: more is asked for, and not a hang."""
LONG = ("probes", "samples", "score_samples", "batch_size")
"""Options that cost little for each of what they count."""


def right_value(dice: Dice, name: str, field: FieldInfo) -> Any:
    """A value that the option's type and bounds allow, at and beside its bounds as often as inside."""
    kind = dice.choice(alternatives(field.annotation))
    lower = next((m.ge for m in field.metadata if isinstance(m, annotated_types.Ge)), None)
    above = next((m.gt for m in field.metadata if isinstance(m, annotated_types.Gt)), None)
    upper = next((m.le for m in field.metadata if isinstance(m, annotated_types.Le)), None)
    if kind is bool:
        return dice.chance(0.5)
    if kind is int:
        if name == "seed":
            return dice.pick(0, 1, 7, 2**31, 2**63 - 1, 2**63, 2**64, 10**30)
        return dice.randint(int(lower or 0), 200 if name in LONG else BUDGET)
    if kind is float:
        edges = [edge for edge in (lower, upper) if edge is not None]
        return dice.choice(
            [*edges, 1e-12, 0.1, 0.5, 1.0, *(() if upper else (3.0, 1e6, 1e300, math.inf, math.nan))]
        ) or (1e-9 if above is not None else 0.0)
    if typing.get_origin(kind) is tuple:
        return dice.pick((4,), (1, 4), (3,), (), (0,), (4, 4))
    if kind is Path:
        return dice.pick(Path("nowhere"), Path(), Path("/dev/null"))
    return kind


def alternatives(annotation: Any) -> list[Any]:
    """The types, literal values and None that an annotation allows."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [one for part in typing.get_args(annotation) for one in alternatives(part)]
    if origin is typing.Literal:
        return list(typing.get_args(annotation))
    return [None] if annotation is type(None) else [annotation]


def options_for(dice: Dice, name: str) -> tuple[dict[str, Any], bool]:
    """Options of a solver, and whether all are of the right types and inside of their bounds."""
    fields = registry().solver(name).Options.model_fields
    chosen = {key: right_value(dice, key, field) for key, field in fields.items() if dice.chance(0.3)}
    # What is not chosen stays short.
    small = {
        key: min(BUDGET, field.default)
        for key, field in fields.items()
        if key in ("max_steps", "midpoint_steps") and field.default
    }
    right = True
    if dice.chance(0.4):
        right, key = False, dice.choice((*fields, "sede"))
        chosen[key] = dice.pick(-1, 0, "7", 0.5, math.nan, 1e400) if dice.chance(0.5) else anything(dice)
        if key in fields and isinstance(chosen[key], int | float) and chosen[key] > BUDGET:
            del chosen[key]
    return {**small, **chosen}, right


def make(dice: Dice, folder: Path) -> Case:
    """Solve a small pair; what is accepted is checked against numpy."""
    torch.manual_seed(dice.randrange(1000))
    name = dice.choice(sorted(alignkit.list_solvers()))
    options, right = options_for(dice, name)
    extra: dict[str, Any] = {}
    if dice.chance(0.5):
        a, b = perceptron(4, 5, 3), perceptron(4, 5, 3)
        pair = perceptron_graph(a).bind(a, b)
        if dice.chance(0.7):
            inputs = torch.randn(12, 4)
            extra["task"] = Task(a, (inputs, torch.randint(3, (12,))), "cross_entropy", dice.pick(None, "accuracy"))
    else:
        pair = pair_of(dice.pick("two layers", "flatten", "heads", "experts"), dice.randrange(9))
    if dice.chance(0.3):
        extra["init"] = random_alignment(dice, pair.graph)
    if dice.chance(0.2):
        options["seed"] = dice.pick(0, 1, -1, 2**64, "x", None)
        right = False
    if dice.chance(0.2):
        extra["throw"] = dice.chance(0.5)
    if dice.chance(0.1):
        name += dice.pick(" > weight_matching", ">identity", " > ", " > nothing", " > identity > identity")

    def run() -> None:
        solution = alignkit.solve(pair, solver=name, **extra, **options)
        check_solution(pair.graph, dict(pair.a), dict(pair.b), solution)
        if solution.status.failed:
            expect(extra.get("throw") is False, "a failure was not raised")
            expect(solution.alignment == extra.get("init", Alignment.identity(pair.graph)), "a failure moved units")
        returns = None if ">" in name else registry().solver(name).returns
        if returns and returns.monotone:
            steps = [step.objective for step in solution.history]
            expect(all(b <= a + 1e-6 * abs(a) for a, b in itertools.pairwise(steps)), f"history rises: {steps}")
        if returns and not solution.status.failed:
            again = alignkit.solve(pair, solver=name, **extra, **options)
            expect(again.alignment == solution.alignment, "the same call gave another alignment")
        solution.save("solution.safetensors")
        expect(
            alignkit.Solution.load("solution.safetensors", pair.graph).facts() == solution.facts(), "the file differs"
        )
        solution.explain()

    asked = {**options, **{key: value for key, value in extra.items() if key not in ("task", "init")}}
    text = ", ".join(f"{key}={shown(value)}" for key, value in asked.items())
    told = ("sede", "empty stage", "cannot be read", "group ", "the data", "batch ")  # of what is wrong beside options
    names = () if right else (*options, *extra, *re.findall(r"\w+", name), *told)
    kept = (pair.a, pair.b, *(module for module in (pair.module_a, pair.module_b) if module is not None))
    return Case(f"solve with {name}: {text}; {', '.join(extra)}", run, names, kept, ("solution.safetensors",))
