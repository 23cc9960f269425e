"""Align the hidden units of neural networks.

The public API::

    graph = alignkit.SymmetryGraph.from_spec(spec, like=model)   # or alignkit.trace(model, example)
    pair = graph.bind(model_a, model_b)
    solution = alignkit.solve(pair, solver="weight_matching")
    aligned_b = solution.apply(model_b)

Names and sub-packages are imported at their first use, so that ``import alignkit`` costs next to nothing.
"""

from __future__ import annotations

import random
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit import checkpoints as checkpoints
    from alignkit import deepalign as deepalign
    from alignkit import jobs as jobs
    from alignkit import matching as matching
    from alignkit import models as models
    from alignkit import plotting as plotting
    from alignkit import plugins as plugins
    from alignkit import reports as reports
    from alignkit import tasks as tasks
    from alignkit import testing as testing
    from alignkit import training as training
    from alignkit import zoo as zoo
    from alignkit.checkpoints.weights import read_weights, write_weights
    from alignkit.errors import AlignkitError
    from alignkit.graph import Pair, SymmetryGraph, builders
    from alignkit.graph.elements.alignment import Alignment
    from alignkit.jobs.align_many import align_many
    from alignkit.jobs.average import average
    from alignkit.jobs.canonical_form import canonical_form
    from alignkit.jobs.canonicalize import canonicalize
    from alignkit.jobs.check import check
    from alignkit.jobs.compare.compare import compare
    from alignkit.jobs.compare.comparison import Comparison
    from alignkit.jobs.compare.job import Evaluation
    from alignkit.jobs.distance import distance
    from alignkit.jobs.estimate import estimate
    from alignkit.jobs.fold import fold
    from alignkit.jobs.merge import merge
    from alignkit.jobs.merge_adapters import merge_adapters
    from alignkit.jobs.network_opening import open_networks
    from alignkit.jobs.repair import repair, reset_batchnorm
    from alignkit.jobs.rotate import rotate
    from alignkit.jobs.solve import solve
    from alignkit.jobs.solve_many import solve_many
    from alignkit.jobs.stretch import stretch
    from alignkit.jobs.transport import transport
    from alignkit.jobs.transport_adapter import transport_adapter
    from alignkit.jobs.transport_optimizer import transport_optimizer
    from alignkit.jobs.transport_tensors import transport_tensors
    from alignkit.jobs.widen import widen
    from alignkit.matching.soft_alignment import SoftAlignment
    from alignkit.plugins.hookspecs import hookimpl
    from alignkit.plugins.observers import progress
    from alignkit.plugins.plugin_registry import list_solvers
    from alignkit.solver import IterativeOptions, Needs, Outcome, Problem, Returns, Solver, SolverOptions, Status, Step
    from alignkit.solver.solution import Solution
    from alignkit.tasks.interpolation import interpolate
    from alignkit.tasks.task import Task
    from alignkit.tracing import trace

__version__ = "0.2.0"

_HOMES = {
    "AlignkitError": "alignkit.errors",
    "Alignment": "alignkit.graph.elements.alignment",
    "Comparison": "alignkit.jobs.compare.comparison",
    "Evaluation": "alignkit.jobs.compare.job",
    "IterativeOptions": "alignkit.solver",
    "Needs": "alignkit.solver",
    "Outcome": "alignkit.solver",
    "Pair": "alignkit.graph",
    "Problem": "alignkit.solver",
    "Returns": "alignkit.solver",
    "SoftAlignment": "alignkit.matching.soft_alignment",
    "Solution": "alignkit.solver.solution",
    "Solver": "alignkit.solver",
    "SolverOptions": "alignkit.solver",
    "Status": "alignkit.solver",
    "Step": "alignkit.solver",
    "SymmetryGraph": "alignkit.graph",
    "Task": "alignkit.tasks.task",
    "align_many": "alignkit.jobs.align_many",
    "average": "alignkit.jobs.average",
    "builders": "alignkit.graph",
    "canonical_form": "alignkit.jobs.canonical_form",
    "canonicalize": "alignkit.jobs.canonicalize",
    "check": "alignkit.jobs.check",
    "compare": "alignkit.jobs.compare.compare",
    "distance": "alignkit.jobs.distance",
    "estimate": "alignkit.jobs.estimate",
    "fold": "alignkit.jobs.fold",
    "hookimpl": "alignkit.plugins.hookspecs",
    "interpolate": "alignkit.tasks.interpolation",
    "list_solvers": "alignkit.plugins.plugin_registry",
    "merge": "alignkit.jobs.merge",
    "merge_adapters": "alignkit.jobs.merge_adapters",
    "open_networks": "alignkit.jobs.network_opening",
    "progress": "alignkit.plugins.observers",
    "read_weights": "alignkit.checkpoints.weights",
    "repair": "alignkit.jobs.repair",
    "reset_batchnorm": "alignkit.jobs.repair",
    "rotate": "alignkit.jobs.rotate",
    "solve": "alignkit.jobs.solve",
    "solve_many": "alignkit.jobs.solve_many",
    "stretch": "alignkit.jobs.stretch",
    "trace": "alignkit.tracing",
    "transport": "alignkit.jobs.transport",
    "transport_adapter": "alignkit.jobs.transport_adapter",
    "transport_optimizer": "alignkit.jobs.transport_optimizer",
    "transport_tensors": "alignkit.jobs.transport_tensors",
    "widen": "alignkit.jobs.widen",
    "write_weights": "alignkit.checkpoints.weights",
}
"""Where each public name is defined."""
_ROOMS = {
    "checkpoints": "alignkit.checkpoints",
    "deepalign": "alignkit.deepalign",
    "jobs": "alignkit.jobs",
    "models": "alignkit.models",
    "tasks": "alignkit.tasks",
    "matching": "alignkit.matching",
    "plotting": "alignkit.plotting",
    "plugins": "alignkit.plugins",
    "reports": "alignkit.reports",
    "testing": "alignkit.testing",
    "training": "alignkit.training",
    "zoo": "alignkit.zoo",
}
"""The public sub-packages, and where they are."""

__all__ = [
    "AlignkitError",
    "Alignment",
    "Comparison",
    "Evaluation",
    "IterativeOptions",
    "Needs",
    "Outcome",
    "Pair",
    "Problem",
    "Returns",
    "SoftAlignment",
    "Solution",
    "Solver",
    "SolverOptions",
    "Status",
    "Step",
    "SymmetryGraph",
    "Task",
    "align_many",
    "average",
    "builders",
    "canonical_form",
    "canonicalize",
    "check",
    "compare",
    "distance",
    "estimate",
    "fold",
    "hookimpl",
    "interpolate",
    "list_solvers",
    "merge",
    "merge_adapters",
    "open_networks",
    "progress",
    "read_weights",
    "repair",
    "reset_batchnorm",
    "rotate",
    "solve",
    "solve_many",
    "stretch",
    "trace",
    "transport",
    "transport_adapter",
    "transport_optimizer",
    "transport_tensors",
    "widen",
    "write_weights",
]


def _import(room: str) -> ModuleType:
    """Import a room, and leave Python's random state as it was: libraries such as rich draw when they are imported."""
    state = random.getstate()
    try:
        return import_module(room)
    finally:
        random.setstate(state)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return _import(_ROOMS[name])
    if name in _HOMES:
        value = globals()[name] = getattr(_import(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
