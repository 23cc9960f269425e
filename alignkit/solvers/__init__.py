"""The built-in solvers, one file each. They register through the same hook as those of any other package."""

from __future__ import annotations

from typing import Any

from alignkit.plugins.hookspecs import hookimpl
from alignkit.solver import Solver


@hookimpl
def alignkit_register_solvers() -> list[type[Solver[Any]]]:
    """Offer the built-in solvers; their modules are imported only now."""
    from alignkit.solvers.activation_matching import ActivationMatching
    from alignkit.solvers.deepalign import DeepAlign
    from alignkit.solvers.frank_wolfe import FrankWolfe
    from alignkit.solvers.identity import Identity
    from alignkit.solvers.sinkhorn import Sinkhorn
    from alignkit.solvers.straight_through import StraightThrough
    from alignkit.solvers.weight_matching import WeightMatching

    return [ActivationMatching, DeepAlign, FrankWolfe, Identity, Sinkhorn, StraightThrough, WeightMatching]
