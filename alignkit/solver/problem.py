"""What a solver is asked: two networks on a graph, where to start, and what may help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.matching.objective import Objective
from alignkit.matching.soft_alignment import SoftAlignment

if TYPE_CHECKING:
    from alignkit.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Problem:
    """One alignment problem: find the order of B's units that brings B closest to A.

    Solvers read it and never change it: ``a`` and ``b`` are the user's own tensors.
    """

    bound: Pair
    init: Alignment | None = None
    """Where to start; ``None`` leaves it to the solver. Solvers that take no start may ignore it."""
    task: Task | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """Type of the solver's arithmetic. Objectives are accumulated in float64 whatever it is."""
    seed: int = 0
    """Seed of every random choice. Takes the place of ``options.seed``, which is only its default."""
    soft_init: SoftAlignment | None = None
    """A soft alignment to start from, for solvers that move one: it says more than ``init``, which is there beside it,
    and which others start from."""

    @property
    def graph(self) -> SymmetryGraph:
        """The groups, and where they act."""
        return self.bound.graph

    @property
    def a(self) -> Mapping[str, Tensor]:
        """Tensors of model A by name. They stay where they are."""
        return self.bound.a

    @property
    def b(self) -> Mapping[str, Tensor]:
        """Tensors of model B by name, whose units are reordered."""
        return self.bound.b

    @cached_property
    def start(self) -> Alignment:
        """``init``, or the identity when there is none."""
        return Alignment.identity(self.graph) if self.init is None else self.init

    @cached_property
    def objective(self) -> Objective:
        """Squared distance and similarities of this pair, on the problem's device, in float64."""
        return Objective(self.bound, device=self.device)

    def generator(self) -> torch.Generator:
        """Return a fresh CPU random generator with the problem's seed."""
        return torch.Generator().manual_seed(self.seed)
