"""Plugins as code: files that define them, classes that they offer, and whether alignkit still works beside them."""

from __future__ import annotations

import warnings
from importlib.metadata import Distribution

from alignkit.jobs.solve import solve
from alignkit.plugins import Registry
from alignkit.plugins.hookspecs import hookimpl
from alignkit.solver import Outcome, Solver
from alignkit.testing import mlp, planted_pair

BUILT_IN = set(Registry([]).solvers())
SOLVER = "class {0}(alignkit.Solver[alignkit.SolverOptions]):\n    name = {1!r}\n    def solve(self, problem, report):\n        return alignkit.Outcome(problem.start)\n"  # noqa: E501
HEAD = "import alignkit, os, sys\n" + SOLVER.format("Good", "good")


def hook(name: str, body: str) -> str:
    """A plugin whose hook has this body; it defines a solver class ``Good``."""
    return f"{HEAD}\n@alignkit.hookimpl\ndef alignkit_register_{name}():\n    {body}\n"


GOOD = hook("solvers", "return [Good]")


class FakeDistribution(Distribution):
    """A package that is installed nowhere; None: it has no metadata."""

    def __init__(self, metadata: str | None) -> None:
        self._text = metadata

    @classmethod
    def of(cls, package: str) -> FakeDistribution:
        """A package of this name, version 0.3."""
        return cls(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.3\n")

    def read_text(self, filename):
        return self._text if filename == "METADATA" else None

    def locate_file(self, path):
        raise FileNotFoundError(path)


def works(registry: Registry) -> None:
    """A solve with a built-in solver, warnings being errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = planted_pair(mlp(3, 5, 2))
        assert solve(pair.bind(), registry=registry).objective_after == 0
        assert set(registry.solvers()) >= BUILT_IN


def solver_class(solver_name: str, **body):
    body.setdefault("solve", lambda self, problem, report: Outcome(problem.start))
    return type("Made", (Solver,), {"name": solver_name, "__doc__": f"Do {solver_name}.\n\nMore.", **body})


def plugin_offering(*solvers):
    class Offering:
        @hookimpl
        def alignkit_register_solvers(self):
            return list(solvers)

    return Offering()


def rule_plugin(rules):
    class Offering:
        @hookimpl
        def alignkit_register_trace_rules(self):
            return rules

    return Offering()
