"""Arguments of wrong types for everything that is public, found by signatures: new functions are fuzzed at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import torch

import alignkit
from alignkit import Alignment, Evaluation, Outcome, Problem, SoftAlignment, Step, SymmetryGraph, Task
from fuzzers.engine import Case, Dice
from fuzzers.networks import perceptron, perceptron_graph
from fuzzers.values import anything, shown

BUDGETS = {"draws", "points", "max_steps", "max_sweeps"}
OWN_ERRORS = (pydantic.ValidationError, AttributeError)
"""Settings models keep the errors of pydantic, and frozen ones say what cannot be set."""


class World:
    """A value that is right for each argument and each ``self``, by name."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        a, b, tuned = (perceptron(3, 4, 2) for _ in range(3))
        graph: SymmetryGraph = perceptron_graph(a)
        pair = graph.bind(a, b)
        data = (torch.randn(6, 3), torch.randn(6, 2))
        task = Task(a, data, "mse")
        alignment = Alignment.random(graph)
        solution = alignkit.solve(pair)
        soft = SoftAlignment.from_alignment(alignment)
        comparison = alignkit.compare(pair, solvers=["identity"])
        self.values: dict[str, Any] = {
            "a": a,
            "b": b,
            "tuned": tuned,
            "model": a,
            "merged": a,
            "like": a,
            "module_a": a,
            "module_b": b,
            "models": [a, b],
            "parents": [a, b],
            "networks": [a, b],
            "reference": a,
            "graph": graph,
            "pair": pair,
            "bound": pair,
            "task": task,
            "batches": [data],
            "inputs": data[0],
            "alignment": alignment,
            "init": alignment,
            "elements": dict(alignment.elements),
            "matrices": dict(soft.matrices),
            "weights": a.state_dict(),
            "spec": graph.spec(),
            "sizes": None,
            "text": "x",
            "path": "out.safetensors",
            "name": "0.weight",
            "tensor": a.state_dict()["0.weight"],
            "group": next(iter(graph.groups)),
            "solver": "weight_matching",
            "solvers": ["identity"],
            "loss": "mse",
            "metric": None,
            "stacked": {},
            "shared": {},
            "batch": next(iter(task.batches)),
            "problem": Problem(pair),
            "report": lambda *arguments: None,
            "points": 3,
            "seed": 0,
            "draws": 1,
            "job": "merge",
            "tensors": dict(graph.tensors),
            "groups": dict(graph.groups),
            "function": len,
            "args": torch.randn(2, 3),
            "options": {},
            "stats": {},
            "notes": {},
            "moved": {},
            "gain": {},
            "history": (),
            "rows": comparison.rows,
            "status": alignkit.Status.OK,
            "title": "A title",
            "device": "cpu",
            "method": "linear",
            "paths": "nowhere",
            "memory": 10**9,
            "evaluation": Evaluation(),
            "seeds": (0,),
            "iteration": 1,
            "objective": 1.0,
            "note": "",
        }
        self.special: dict[tuple[str, str], Any] = {
            ("align_many", "method"): "reference",
            ("align_many", "reference"): 0,
            ("merge", "weights"): [1, 1],
            ("average", "weights"): [1, 1],
            ("repair", "weights"): [1, 1],
            ("trace", "args"): data[0],
            ("check", "args"): data[0],
            ("SymmetryGraph.verify", "args"): data[0],
            ("merge", "models"): None,
            ("align_many", "models"): None,
            ("Task.from_name", "name"): "nowhere:task",
            ("Comparison.row", "solver"): "identity",
            ("Comparison.from_json", "text"): comparison.to_json(),
            ("SymmetryGraph.from_json", "text"): graph.to_json(),
            ("SymmetryGraph.bind", "b"): b,
            ("Task.outputs", "weights"): task.checked(a),
            ("Task.loss_on", "weights"): task.checked(a),
            ("canonicalize", "reference"): a,
            ("write_weights", "weights"): a.state_dict(),
            ("read_weights", "path"): "nowhere.pt",
            ("Comparison.plot", "path"): None,
            ("SymmetryGraph.draw", "path"): None,
            ("compare", "path"): None,
            ("compare", "report"): None,
            ("Solution.plot", "groups"): None,
            ("open_networks", "model"): None,
            ("open_networks", "spec"): None,
            ("Solution", "soft"): None,
            ("Outcome", "soft"): None,
        }
        self.owners: dict[str, Any] = {
            "Alignment": alignment,
            "Comparison": comparison,
            "Pair": pair,
            "Problem": Problem(pair),
            "Solution": solution,
            "SoftAlignment": soft,
            "SymmetryGraph": graph,
            "Task": task,
            "Evaluation": Evaluation(),
            "Outcome": Outcome(alignment),
            "Step": Step(1, 1.0),
            "Needs": alignkit.Needs(),
            "Returns": alignkit.Returns(),
            "Status": alignkit.Status.OK,
            "Solver": alignkit.plugins.registry().solver("weight_matching")(),
        }

    def value(self, call: str, parameter: inspect.Parameter) -> Any:
        """A right value of a parameter: its own, one for its name, its default, or one of any type."""
        if (call, parameter.name) in self.special:
            return self.special[call, parameter.name]
        if parameter.default is not inspect.Parameter.empty:
            return parameter.default
        return self.values.get(parameter.name, 1)


WORLD = World()


def calls() -> dict[str, Callable[..., Any]]:
    """Everything public that can be called, methods by the name of their class and bound to an instance."""
    found: dict[str, Callable[..., Any]] = {}
    for name in alignkit.__all__:
        value = getattr(alignkit, name)
        if inspect.ismodule(value):
            found |= {
                f"{name}.{n}": f
                for n, f in vars(value).items()
                if inspect.isfunction(f) and f.__module__ == value.__name__
            }
            continue
        if not (inspect.isclass(value) and issubclass(value, BaseException)):
            found[name] = value
        if inspect.isclass(value):
            owner = WORLD.owners.get(name, value)
            members = [n for n, member in vars(value).items() if not n.startswith("_") and is_method(member)]
            found |= {f"{name}.{member}": getattr(owner, member) for member in members}
    return {name: call for name, call in sorted(found.items()) if public(name)}


def is_method(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(member, classmethod | staticmethod)


def public(name: str) -> bool:
    """Leave out what others implement, what passes on errors of others, and what is a protocol of Python."""
    return name not in {
        "Status",
        "Solver.solve",
        "hookimpl",
        "progress",
        "Solver.Options",
        "Solver",
        "Task.outputs",
    } and not name.startswith("builders._")


CALLS = calls()
PARAMETERS = {name: parameters for name in CALLS if (parameters := inspect.signature(CALLS[name]).parameters)}


def make(dice: Dice, folder: Path) -> Case:
    """A right call in which one or two arguments are of any type."""
    name = dice.choice(sorted(PARAMETERS))
    parameters = list(PARAMETERS[name].values())
    replaced = dice.sample([p.name for p in parameters], min(len(parameters), dice.pick(1, 1, 1, 2)))
    positional, keywords = [], {}
    for parameter in parameters:
        wrong = parameter.name in replaced
        value = wrong_value(dice, parameter.name) if wrong else WORLD.value(name, parameter)
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += [] if value is None and not wrong else [value]
        elif parameter.kind is parameter.VAR_KEYWORD:
            keywords |= {dice.pick("max_steps", "seed", "unknown"): value} if wrong else {}
        elif parameter.kind is parameter.KEYWORD_ONLY:
            keywords[parameter.name] = value
        else:
            positional.append(value)
    if (
        name in ("solve", "distance", "merge", "align_many", "transport", "compare")
        and "pair" in replaced
        and dice.chance(0.5)
    ):
        positional[0] = WORLD.values["graph"]
    shown_as = ", ".join([*map(shown, positional), *(f"{k}={shown(v)}" for k, v in keywords.items())])
    call = CALLS[name]
    refusals = OWN_ERRORS if settings(call) else ()
    kept = (positional, keywords)
    return Case(f"{name}({shown_as})", lambda: call(*positional, **keywords), (), kept, ("*",), refusals)


def wrong_value(dice: Dice, name: str) -> Any:
    """A value of any type; where a number says how long to work, none that asks for years."""
    value = anything(dice)
    return 3 if name in BUDGETS and isinstance(value, int | float) and value > 100 else value


def settings(call: object) -> bool:
    return inspect.isclass(call) and issubclass(call, pydantic.BaseModel)
