"""Recurrent layers: the state that they return is the state that they take.

A run of a single time step does not show it, because there the weights of the state multiply the zeros it starts from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.tensor_labels import Labels

_STATE_WEIGHT = re.compile(
    r"(?:parametrizations\.)?(?P<gates>weight_hh)(?:_l\d+)?(?:_reverse)?(?:\.original\d*|_v|_orig)?"
)


def state_weights(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the weights that torch's recurrent layers and cells multiply their state with, and those that write it.

    The state of an LSTM with projections is written by its projection, any other by the same weight. Weights under
    `weight_norm` and other parametrizations are those that these keep.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
            continue
        dot = f"{path}." if path else ""
        for name in names:
            match = _STATE_WEIGHT.fullmatch(name.removeprefix(dot)) if name.startswith(dot) else None
            if match is not None:
                local = name.removeprefix(dot)
                projected = local[: match.start("gates")] + "weight_hr" + local[match.end("gates") :]
                yield name, dot + (projected if getattr(module, "proj_size", 0) else local)


def close_states(c: Constraints, model: nn.Module, labels: Mapping[str, Labels]) -> None:
    """Make the columns of recurrent weights [gates * units, state] move with the rows that write the state.

    The rows of each gate move together in any run. The labels are first ones, with each axis by itself.
    """
    for reader, writer in state_weights(model, labels):
        columns = labels[reader].owner.get(1)
        rows = labels[writer].owner.get(0) if writer in labels else None
        if columns is None or rows is None or columns.context or rows.context:
            continue
        c.blame("recurrence", reader.rpartition(".")[0])
        c.merge(rows.atoms.reshape(-1, columns.atoms.size), columns.atoms)
