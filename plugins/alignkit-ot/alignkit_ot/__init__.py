"""Optimal transport between the units of two networks, for alignkit.

The solver ``ot`` matches units softly and rounds. `fuse` carries the weights of one network to the widths of another.
Source: S. P. Singh and M. Jaggi, "Model Fusion via Optimal Transport", NeurIPS 2020 ("OTFusion").
"""

from __future__ import annotations

import alignkit
from alignkit_ot.fusion import Fusion, fuse
from alignkit_ot.solver import OptimalTransport, OptimalTransportOptions

__all__ = ["Fusion", "OptimalTransport", "OptimalTransportOptions", "fuse"]


@alignkit.hookimpl
def alignkit_register_solvers() -> list[type[OptimalTransport]]:
    """Offer the solver to alignkit."""
    return [OptimalTransport]
