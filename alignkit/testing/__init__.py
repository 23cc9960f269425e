"""The test suite that every solver has to pass, and the problems that it uses. Needs pytest.

A package with a solver subclasses `SolverContract` in its own tests::

    class TestMine(alignkit.testing.SolverContract):
        solver = Mine(max_steps=50)
        known_gaps = {"test_swap_gives_inverse": "each direction has its own local optimum"}
"""

import pytest

pytest.register_assert_rewrite("alignkit.testing.contract")

from alignkit.testing.contract import SolverContract  # noqa: E402  after the line above, so that asserts explain themselves
from alignkit.testing.kind_problems import KIND_ARCHITECTURES, decoder, tanh_mlp  # noqa: E402
from alignkit.testing.problems import (  # noqa: E402
    ARCHITECTURES,
    ProblemArchitecture,
    ProblemPair,
    attention,
    convnet,
    independent_pair,
    mlp,
    planted_pair,
    residual,
    torch_attention,
)

__all__ = [
    "ARCHITECTURES",
    "KIND_ARCHITECTURES",
    "ProblemArchitecture",
    "ProblemPair",
    "SolverContract",
    "attention",
    "convnet",
    "decoder",
    "independent_pair",
    "mlp",
    "planted_pair",
    "residual",
    "tanh_mlp",
    "torch_attention",
]
