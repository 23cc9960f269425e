"""Align the hidden units of neural networks.

The public API::

    graph = alignkit.PermutationGraph.from_spec(spec, like=model)   # or alignkit.trace(model, example)
    pair = graph.bind(model_a, model_b)
    solution = alignkit.solve(pair, solver="weight_matching")
    aligned_b = solution.apply(model_b)
"""

from __future__ import annotations

from alignkit.alignment import Alignment
from alignkit.assignment import linear_assignment
from alignkit.errors import AlignkitError
from alignkit.evaluate import Interpolation, interpolate
from alignkit.graph import BoundGraph, PermutationGraph, builders
from alignkit.hookspecs import hookimpl
from alignkit.objective import Objective
from alignkit.plugins import solvers
from alignkit.soft import SoftAlignment
from alignkit.solution import Solution
from alignkit.solve import solve
from alignkit.solver import Needs, Outcome, Problem, Returns, Solver, SolverOptions, Status, Step
from alignkit.task import Task
from alignkit.trace import trace
from alignkit.weights import read_weights, write_weights

__version__ = "0.1.0.dev0"

__all__ = [
    "AlignkitError",
    "Alignment",
    "BoundGraph",
    "Interpolation",
    "Needs",
    "Objective",
    "Outcome",
    "PermutationGraph",
    "Problem",
    "Returns",
    "SoftAlignment",
    "Solution",
    "Solver",
    "SolverOptions",
    "Status",
    "Step",
    "Task",
    "builders",
    "hookimpl",
    "interpolate",
    "linear_assignment",
    "read_weights",
    "solve",
    "solvers",
    "trace",
    "write_weights",
]
