"""Reading what plugins answer to hooks: every answer is checked before anything is done with it.

An answer that cannot be used is a `PluginError` that says what was found.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alignkit.errors import PluginError
from alignkit.graph.kinds import KINDS
from alignkit.solver import Needs, Returns, Solver, SolverOptions
from alignkit.text import describe_error, show_value


def read_solvers(answer: object) -> Iterator[tuple[str, type[Solver[Any]]]]:
    """Yield solver classes by name."""
    if isinstance(answer, str | Mapping) or not isinstance(answer, Iterable):
        raise PluginError(f"it returned {show_value(answer)} instead of a list of solver classes")
    checked: set[type] = set()
    for offered in answer:
        if not (isinstance(offered, type) and issubclass(offered, Solver)):
            raise PluginError(f"{show_value(offered)} is not a Solver class")
        if inspect.isabstract(offered):
            raise PluginError(f"solver class {offered.__name__} does not define solve()")
        if not isinstance(offered.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", offered.name):
            needed = "needs a name of lower-case letters, digits and '_'"
            raise PluginError(f"solver class {offered.__name__} {needed}, not {show_value(offered.name)}")
        if offered not in checked:
            check_facts(offered)
            checked.add(offered)
        yield offered.name, offered


def check_facts(solver: type[Solver[Any]]) -> None:
    """Raise a `PluginError` for a solver class whose facts are of a wrong type: they would break what reads them."""
    name, options = solver.__name__, solver.Options
    if solver.__module__.startswith("alignkit."):
        return
    for attribute, kind in (("name", str), ("needs", Needs), ("returns", Returns)):
        fact = getattr(solver, attribute)
        if not isinstance(fact, kind):
            wanted = "a text" if kind is str else f"an alignkit.{kind.__name__}"
            raise PluginError(f"{name}.{attribute} is {show_value(fact)}, not {wanted}")
    kinds = solver.kinds
    if not isinstance(kinds, frozenset) or not all(isinstance(kind, str) and kind in KINDS for kind in kinds):
        raise PluginError(f"{name}.kinds is {show_value(kinds)}, not a frozenset of some of {', '.join(KINDS)}")
    if not (isinstance(options, type) and issubclass(options, SolverOptions)):
        raise PluginError(f"{name}.Options is {show_value(options)}, not a subclass of SolverOptions")
    try:
        options.model_json_schema()
    except Exception as error:
        reason = f"so they cannot be listed or saved: {describe_error(error)}"
        raise PluginError(f"the options of {name} have no JSON schema, {reason}") from error


def read_callables(answer: object) -> Iterator[tuple[str, Any]]:
    """Yield functions by name."""
    if not isinstance(answer, Mapping):
        raise PluginError(f"it returned {show_value(answer)} instead of a mapping from names to functions")
    for name, offered in answer.items():
        if not isinstance(name, str) or not name or not callable(offered):
            raise PluginError(f"names must map to functions, found {show_value(name)}: {show_value(offered)}")
        yield name, offered


def read_sources(answer: object) -> Iterator[tuple[str, Any]]:
    """Yield model sources by name."""
    for name, offer in read_callables(answer):
        if not re.fullmatch(r"[\w.-]+", name):
            raise PluginError(f"a model source is named by letters, digits, '_', '.' and '-', not {show_value(name)}")
        yield name, offer


def read_rules(answer: object) -> Iterator[tuple[str, Any]]:
    """Yield trace rules by operator."""
    for name, offer in read_callables(answer):
        if "::" not in name:
            raise PluginError(f"operator {name!r} has no namespace, write it as 'aten::{name}' or 'mylib::{name}'")
        yield name, offer


def rules_covering(name: str) -> Iterator[str]:
    """Yield the names of rules that an operator may have already: its own, all overloads, the out-of-place form.

    ``"aten::add_.Tensor"`` is covered by ``"aten::add_.Tensor"``, ``"aten::add_"``, ``"aten::add.Tensor"`` and
    ``"aten::add"``, as in `alignkit.tracing.rules.table.RuleTable`.
    """
    operator, dot, overload = name.partition(".")
    plain = operator[:-1] if operator.endswith("_") and not operator.endswith("__") else operator
    yield from (name, operator, f"{plain}{dot}{overload}", plain)
