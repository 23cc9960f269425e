"""Align the hidden units of neural networks.

The public API::

    graph = alignkit.SymmetryGraph.from_spec(spec, like=model)   # or alignkit.trace(model, example)
    pair = graph.bind(model_a, model_b)
    solution = alignkit.solve(pair, solver="weight_matching")
    aligned_b = solution.apply(model_b)

Names and sub-packages are imported at their first use, so that ``import alignkit`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit import deepalign as deepalign
    from alignkit import models as models
    from alignkit import plotting as plotting
    from alignkit import plugins as plugins
    from alignkit import reports as reports
    from alignkit import testing as testing
    from alignkit import training as training
    from alignkit import zoo as zoo
    from alignkit.checkpoints import Checkpoint, open_checkpoint, write_checkpoint
    from alignkit.checkpoints.weights import read_weights, write_weights
    from alignkit.errors import AlignkitError
    from alignkit.graph import Pair, SymmetryGraph, builders
    from alignkit.graph.elements.alignment import Alignment
    from alignkit.jobs.align_many import ManyAlignment, align_many
    from alignkit.jobs.canonicalize import Canonical, canonicalize
    from alignkit.jobs.compare.compare import compare
    from alignkit.jobs.compare.comparison import Comparison
    from alignkit.jobs.distance import Distance, distance
    from alignkit.jobs.from_disk import align_checkpoint, match_checkpoints, merge_checkpoints
    from alignkit.jobs.merge import merge, transport
    from alignkit.jobs.repair import repair, reset_batchnorm
    from alignkit.jobs.solve import solve
    from alignkit.matching.assignment import linear_assignment
    from alignkit.matching.objective import Objective
    from alignkit.matching.soft_alignment import SoftAlignment
    from alignkit.plugins.hookspecs import hookimpl
    from alignkit.plugins.observers import logged, progress
    from alignkit.plugins.plugin_registry import list_solvers
    from alignkit.solver import IterativeOptions, Needs, Outcome, Problem, Returns, Solver, SolverOptions, Status, Step
    from alignkit.solver.solution import Solution
    from alignkit.tasks.interpolation import Interpolation, interpolate
    from alignkit.tasks.task import Task
    from alignkit.tracing import trace

__version__ = "0.1.0"

_HOMES = {
    "AlignkitError": "alignkit.errors",
    "Alignment": "alignkit.graph.elements.alignment",
    "Pair": "alignkit.graph",
    "Canonical": "alignkit.jobs.canonicalize",
    "Checkpoint": "alignkit.checkpoints",
    "Comparison": "alignkit.jobs.compare.comparison",
    "Distance": "alignkit.jobs.distance",
    "Interpolation": "alignkit.tasks.interpolation",
    "ManyAlignment": "alignkit.jobs.align_many",
    "Needs": "alignkit.solver",
    "Objective": "alignkit.matching.objective",
    "Outcome": "alignkit.solver",
    "SymmetryGraph": "alignkit.graph",
    "IterativeOptions": "alignkit.solver",
    "Problem": "alignkit.solver",
    "Returns": "alignkit.solver",
    "SoftAlignment": "alignkit.matching.soft_alignment",
    "Solution": "alignkit.solver.solution",
    "Solver": "alignkit.solver",
    "SolverOptions": "alignkit.solver",
    "Status": "alignkit.solver",
    "Step": "alignkit.solver",
    "Task": "alignkit.tasks.task",
    "align_checkpoint": "alignkit.jobs.from_disk",
    "align_many": "alignkit.jobs.align_many",
    "builders": "alignkit.graph",
    "canonicalize": "alignkit.jobs.canonicalize",
    "compare": "alignkit.jobs.compare.compare",
    "distance": "alignkit.jobs.distance",
    "hookimpl": "alignkit.plugins.hookspecs",
    "interpolate": "alignkit.tasks.interpolation",
    "linear_assignment": "alignkit.matching.assignment",
    "list_solvers": "alignkit.plugins.plugin_registry",
    "logged": "alignkit.plugins.observers",
    "match_checkpoints": "alignkit.jobs.from_disk",
    "merge": "alignkit.jobs.merge",
    "merge_checkpoints": "alignkit.jobs.from_disk",
    "open_checkpoint": "alignkit.checkpoints",
    "progress": "alignkit.plugins.observers",
    "read_weights": "alignkit.checkpoints.weights",
    "repair": "alignkit.jobs.repair",
    "reset_batchnorm": "alignkit.jobs.repair",
    "solve": "alignkit.jobs.solve",
    "trace": "alignkit.tracing",
    "transport": "alignkit.jobs.merge",
    "write_checkpoint": "alignkit.checkpoints",
    "write_weights": "alignkit.checkpoints.weights",
}
"""Where each public name is defined."""
_ROOMS = ("deepalign", "models", "plotting", "plugins", "reports", "testing", "training", "zoo")
"""Public sub-packages."""

__all__ = [
    "AlignkitError",
    "Alignment",
    "Canonical",
    "Checkpoint",
    "Comparison",
    "Distance",
    "Interpolation",
    "IterativeOptions",
    "ManyAlignment",
    "Needs",
    "Objective",
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
    "align_checkpoint",
    "align_many",
    "builders",
    "canonicalize",
    "compare",
    "distance",
    "hookimpl",
    "interpolate",
    "linear_assignment",
    "list_solvers",
    "logged",
    "match_checkpoints",
    "merge",
    "merge_checkpoints",
    "open_checkpoint",
    "progress",
    "read_weights",
    "repair",
    "reset_batchnorm",
    "solve",
    "trace",
    "transport",
    "write_checkpoint",
    "write_weights",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"alignkit.{name}")
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
