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
from alignkit.canonical import Canonical, canonicalize
from alignkit.checkpoints import Checkpoint, open_checkpoint, write_checkpoint
from alignkit.compare import compare
from alignkit.comparison import Comparison
from alignkit.distance import Distance, distance
from alignkit.errors import AlignkitError
from alignkit.evaluate import Interpolation, interpolate
from alignkit.graph import BoundGraph, PermutationGraph, builders
from alignkit.hookspecs import hookimpl
from alignkit.low_memory import align_checkpoint, match_checkpoints, merge_checkpoints
from alignkit.many import ManyAlignment, align_many
from alignkit.merge import merge, transport
from alignkit.objective import Objective
from alignkit.observers import logged, progress
from alignkit.plugins import solvers
from alignkit.repair import repair, reset_batchnorm
from alignkit.soft import SoftAlignment
from alignkit.solution import Solution
from alignkit.solve import solve
from alignkit.solver import Needs, Outcome, Problem, Returns, Solver, SolverOptions, Status, Step
from alignkit.task import Task
from alignkit.trace import trace
from alignkit.weights import read_weights, write_weights

__version__ = "0.1.0"

__all__ = [
    "AlignkitError",
    "Alignment",
    "BoundGraph",
    "Canonical",
    "Checkpoint",
    "Comparison",
    "Distance",
    "Interpolation",
    "ManyAlignment",
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
    "align_checkpoint",
    "align_many",
    "builders",
    "canonicalize",
    "compare",
    "distance",
    "hookimpl",
    "interpolate",
    "linear_assignment",
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
    "solvers",
    "trace",
    "transport",
    "write_checkpoint",
    "write_weights",
]
