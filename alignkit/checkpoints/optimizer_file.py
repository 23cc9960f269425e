"""States of optimisers in files of ``torch.save``: alone, or in the checkpoint of a training script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.arguments import check_arguments
from alignkit.checkpoints.pickle_file import load_pickle, save_pickle
from alignkit.checkpoints.staging import staged
from alignkit.errors import WeightsError

USUAL = ("optimizer", "optimizer_state_dict", "optimizer_states", "optimizer_state", "optim", "opt")
"""Keys under which training scripts keep it; Lightning has a list of them."""


@check_arguments
def read_optimizer(path: str | Path) -> dict[str, Any]:
    """Read what ``optimizer.state_dict()`` returned, without running code from the file.

    Args:
        path: What ``torch.save`` wrote: the state, or a checkpoint that holds it under a usual key. Beside it there may
            be objects of any class, which are not made.

    Raises:
        WeightsError: The file cannot be read, or holds no state of an optimiser, or several.
    """
    return dict(load_pickle(Path(path), part=_state_in))


@check_arguments
def write_optimizer(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write the state of an optimiser as ``torch.save`` does, whole or not at all (`WeightsError`)."""
    with staged(Path(path)) as temporary:
        save_pickle(state, temporary)


def _state_in(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the state of an optimiser in what a file holds."""
    for value in (content, *(content[key] for key in USUAL if key in content)):
        states = value if isinstance(value, list | tuple) else [value]
        if len(states) > 1:
            raise WeightsError(f"holds the states of {len(states)} optimisers. Save the one that is meant alone.")
        if states and isinstance(states[0], Mapping) and {"state", "param_groups"} <= states[0].keys():
            return states[0]
    keys = ", ".join(map(repr, USUAL[:3]))
    raise WeightsError(f"holds no state of an optimiser: no 'state' and 'param_groups', at once or under {keys}.")
