"""First labels: which axes of which parameters may move, before anything is known.

Recurrent layers return the state that they take. A run of a single time step does not show it, because there the
weights of the state multiply the zeros it starts from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.tensor_labels import IntArray, LabelBlock, Labels
from alignkit.tracing.recording.recorder import OpRecord, TensorRef

_CONVOLUTIONS = {"convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable", "cudnn_convolution"}
_PASSES_ON = {"add", "sub", "mul", "div", "native_batch_norm", "clone", "_to_copy", "detach", "alias", "view",
              "reshape", "_unsafe_view", "transpose", "permute"}  # fmt: skip
_TABLE_OPS = {"t", "mm", "addmm", "linear", "embedding", "matmul", "addmv", "mv"}
_STATE_WEIGHT = re.compile(r"(parametrizations\.)?(?P<gates>weight_hh)(_l\d+)?(_reverse)?(\.original\d*|_v|_orig)?")
_MAX_ATOMS = 1 << 22
"""Maximum number of atoms of one axis that depends on another: 32 MiB. Larger axes move by themselves."""
SMALL_STACK = 1 << 16
"""Number of atoms of such axes of one tensor up to which they do not matter for time and memory: 16 MiB."""
MAX_NESTED = 1 << 24
"""Maximum number of atoms of all such axes of a model. A trace takes about 250 bytes and 3 microseconds for each: 4 GiB
and less than a minute, in which Mixtral-8x7B fits with its 13 million."""


@dataclass(frozen=True)
class ParameterUse:
    """How a run uses a parameter: `matrix` tells factors of a matrix product and tables of embeddings from others.

    `groups` is the number of groups of the convolution whose weight it is; else 0.
    """

    groups: int = 0
    matrix: bool = False


def parameter_uses(steps: Iterable[OpRecord], tensors: Mapping[str, TensorRef]) -> dict[int, ParameterUse]:
    """Return how each tensor (by storage) is used, directly or after ops that keep its elements."""
    origin = {ref.key: (ref.storage, ref.shape) for ref in tensors.values()}
    uses: dict[int, ParameterUse] = {}
    for step in steps:
        name = step.op.split("::")[1].rstrip("_")
        inputs = step.inputs
        parameters = [origin[ref.key] for ref in inputs if ref.key in origin]
        if name in _CONVOLUTIONS and len(inputs) > 1 and inputs[1].key in origin:
            storage, shape = origin[inputs[1].key]
            if shape == inputs[1].shape:
                uses[storage] = ParameterUse(groups=int(step.args[6 if name == "mkldnn_convolution" else 8]))
        elif name in _TABLE_OPS:
            for storage, _ in parameters:
                uses.setdefault(storage, ParameterUse(matrix=True))
        if parameters and (name in _PASSES_ON or "batch_norm" in name or "weight_norm" in name):
            largest = max(parameters, key=lambda item: int(np.prod(item[1])))
            for ref in step.outputs[:1]:
                origin.setdefault(ref.key, largest)
    return uses


def nested_axes(shape: tuple[int, ...], use: ParameterUse) -> list[int]:
    """List the axes that may move differently for each unit of the first one, as units of stacked experts do."""
    labelled = [d for d, n in enumerate(shape) if n > 1 and (d < 2 or not use.groups)]
    if use.groups == 1 or (use.matrix and len(shape) == 2):
        return []
    return [d for d in labelled[1:] if use.groups or shape[labelled[0]] * shape[d] <= _MAX_ATOMS]


def nested_atoms(shape: tuple[int, ...], nested: Iterable[int]) -> int:
    """Return how many atoms nested axes have, one for each position in each unit of the first axis that moves."""
    return next((n for n in shape if n > 1), 1) * sum(shape[d] for d in nested)


def shared_axes(labels: Mapping[str, Labels], classes: IntArray, stacks: Collection[str]) -> dict[str, set[int]]:
    """Return the axes of some tensors whose units stand in other tensors as well, as those of a residual stream do.

    Args:
        labels: First labels of all tensors.
        classes: The class of each atom.
        stacks: The tensors in question, no axis of which depends on another.
    """
    atoms = [block.atoms.ravel() for name, x in labels.items() if name not in stacks for block in x.blocks]
    outside = np.zeros(len(classes), bool)
    outside[classes[np.concatenate([np.zeros(0, np.int64), *atoms])]] = True
    return {name: {d for d, o in labels[name].owner.items() if outside[classes[o.atoms]].all()} for name in stacks}


def first_labels(c: Constraints, shape: tuple[int, ...], use: ParameterUse, nested: Collection[int]) -> Labels:
    """Return labels in which every axis moves by itself, and `nested` ones inside the units of the first axis.

    Example: stacked experts [4, 3, 5] get 4 atoms for the experts, 4 x 3 for their units and 4 x 5 for their inputs.
    The weight [6, 2, 3, 3] of a convolution in two groups gets 6 atoms for the outputs and 2 x 2 for the inputs, those
    of a group repeated for its three outputs; its kernel stays fixed.
    """
    labelled = [d for d, n in enumerate(shape) if n > 1 and (d < 2 or not use.groups)]
    blocks: list[LabelBlock] = []
    for d in labelled:
        first, n = labelled[0], shape[d]
        owners = use.groups or shape[first]
        atoms = c.new_atoms([owners, n] if d in nested else [n])
        c.colour(atoms)
        if d in nested and use.groups:
            c.adopt_rows(atoms, (0,), c.rows(blocks[0].atoms.reshape(owners, -1), (0,)))
            atoms = np.repeat(atoms, shape[0] // owners, axis=0)
        elif d in nested:
            c.adopt_rows(atoms, (0,), blocks[0].atoms)
        blocks.append(LabelBlock((d,), (first,) if d in nested else (), atoms))
    return Labels.of(shape, (), blocks)


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
