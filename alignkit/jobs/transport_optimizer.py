"""`transport_optimizer`: the state of an optimiser, moved with the weights that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.errors import MergeError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.elements.element import order_of
from alignkit.graph.kinds import KINDS
from alignkit.text import list_some, plural, show_value

LIKE_GRADIENTS = frozenset(("exp_avg", "momentum_buffer", "grad_avg", "ax", "prev"))
"""State that changes its sign with its weight: means of gradients, or of weights."""
WITHOUT_SIGN = frozenset(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf", "step_size"))
"""State that does not: means of squares, and step sizes."""


@check_arguments
def transport_optimizer(
    state: Mapping[str, Any], alignment: Alignment, *, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Move the state of an optimiser as an alignment moves the weights, so that training goes on in the other order.

    Means of gradients (momentum, Adam's first moments) move as weights do. Means of squares (Adam's second moments)
    move with the units and have no sign. Under rotations they have no meaning: the mean square of a sum is not made of
    the mean squares of its parts.

    Args:
        state: What ``optimizer.state_dict()`` returned, for the optimiser of a network in the order of units that
            ``alignment.apply`` takes.
        alignment: What is done to the weights.
        names: The names of all parameters in the order in which the optimiser got them. None: the optimiser says them
            (it was made from named parameters), or its parameters are those of the graph in their order.

    Returns:
        A state for ``load_state_dict`` of an optimiser of the moved network. Tensors are new.

    Raises:
        MergeError: The state is not that of an optimiser, belongs to other parameters, holds what alignkit does not
            know how to move, or means of squares would be rotated; or the graph has folds.
    """
    graph = alignment.graph
    if graph.folds:
        problem = "the state of an optimiser belongs to the parameters as they were trained, and this graph folds some"
        raise MergeError(f"{problem} into others. Trace with symmetries='permutation' for it.")
    if not {"state", "param_groups"} <= state.keys():
        raise MergeError("this is not the state of an optimiser: it has no 'state' and 'param_groups'.")
    ids = [number for group in state["param_groups"] for number in group["params"]]
    ordered = _names(alignment, state["param_groups"], names)
    if len(ids) != len(ordered):
        counts = f"the optimiser has {plural(len(ids), 'parameter')}, {len(ordered)} names are known"
        raise MergeError(f"{counts}. Give names= in the order in which it got them.")
    if unknown := [name for name in ordered if name not in graph.first_names]:
        raise MergeError(f"the graph has no tensors {list_some([repr(name) for name in unknown], 5)}.")
    by_id = dict(zip(ids, ordered, strict=True))
    unsigned = Alignment(graph, {n: e if e.is_floating_point() else order_of(e) for n, e in alignment.elements.items()})
    moved = {}
    for number, entries in state["state"].items():
        if number not in by_id:
            raise MergeError(f"the state holds parameter {show_value(number)}, which no group of parameters has.")
        name = graph.first_names[by_id[number]]
        moved[number] = {key: _moved(key, value, name, alignment, unsigned) for key, value in entries.items()}
    return {**state, "state": moved}


def _names(alignment: Alignment, groups: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> list[str]:
    if names is not None:
        return list(names)
    if all("param_names" in group for group in groups):
        return [name for group in groups for name in group["param_names"]]
    return [name for name, node in alignment.graph.tensors.items() if node.role != "buffer"]


def _moved(key: str, value: Any, name: str, alignment: Alignment, unsigned: Alignment) -> Any:
    """Move one entry of the state of one parameter."""
    if not isinstance(value, Tensor) or not value.ndim:  # numbers of steps
        return value.clone() if isinstance(value, Tensor) else value
    node, where = alignment.graph.tensors[name], f"{key!r} of {name!r}"
    if tuple(value.shape) != node.shape:
        shapes = f"it has shape {tuple(value.shape)}, and the parameter {node.shape}"
        raise MergeError(
            f"{where} cannot be moved: {shapes}. Give names= in the order in which the optimiser got them."
        )
    kinds = {alignment.graph.groups[group].kind for group in node.groups}
    if key in WITHOUT_SIGN:
        if any(KINDS[kind].rotates for kind in kinds):
            problem = "its units are rotated, and the mean square of a sum is not made of the mean squares of its parts"
            raise MergeError(f"{where} cannot be moved: {problem}. Start these anew, or trace permutations alone.")
        return unsigned.apply_tensor(name, value)
    if key not in LIKE_GRADIENTS and kinds - {"permutation"}:
        raise MergeError(f"{where} cannot be moved: it is not known whether it changes its sign with the weight.")
    return alignment.apply_tensor(name, value)
