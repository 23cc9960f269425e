"""Every registered solver keeps the contract; a new solver is tested because it is registered."""

from __future__ import annotations

from alignkit.plugins import solvers
from alignkit.testing import SolverContract

KNOWN_GAPS = {
    "identity": {
        "test_equivariant_to_unit_order": "it is the baseline that looks at no weights",
        "test_never_worse_than_its_start": "it is the baseline that ignores its start",
    },
}

for _name, _info in solvers().items():
    _body = {"solver": _info.solver(), "known_gaps": KNOWN_GAPS.get(_name, {})}
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (SolverContract,), _body)
