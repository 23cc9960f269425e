"""`transport_optimizer`: the state of an optimiser, moved with the weights that it belongs to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.opening import read_file
from alignkit.errors import MergeError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.elements.element import order_of
from alignkit.graph.kinds import KINDS
from alignkit.jobs.passage import alignment_sections
from alignkit.jobs.solve import SolverLike, bound_pair, completed, solve
from alignkit.reports import Check, Facts, Report, Section, Table
from alignkit.rewriting import WideWeights, spaces_apart
from alignkit.solver.solution import Solution
from alignkit.text import Explained, list_some, plural, show_value

LIKE_GRADIENTS = frozenset(("exp_avg", "momentum_buffer", "grad_avg", "ax", "prev"))
"""State that changes its sign with its weight: means of gradients, or of weights."""
WITHOUT_SIGN = frozenset(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf", "step_size"))
"""State that does not: means of squares, and step sizes."""


@dataclass(frozen=True, eq=False, repr=False)
class CarriedOptimizer(Explained):
    """The state of an optimiser of network A, for one of network B.

    ``state`` is for ``load_state_dict``. ``alignment`` brings B to A; there is no ``solution`` where it was given.
    """

    state: dict[str, Any]
    alignment: Alignment
    solution: Solution | None

    @property
    def entries(self) -> dict[str, int]:
        """How many parameters have each entry of the state, such as ``exp_avg``."""
        return dict(Counter(key for entries in self.state["state"].values() for key in entries))

    def __repr__(self) -> str:
        return f"CarriedOptimizer({plural(len(self.state['state']), 'parameter')})"

    def explain(self) -> str:
        """Say in a few lines what was carried, and how the networks were aligned."""
        how = "The networks were aligned before." if self.solution is None else self.solution.explain()
        names = list_some(list(self.entries), 8) or "no entries"
        return f"{how}\nState of {plural(len(self.state['state']), 'parameter')} carried: {names}."

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        solved = {} if self.solution is None else self.solution.facts()
        return {**solved, "parameters": len(self.state["state"]), "entries": self.entries}

    @check_arguments
    def report(
        self,
        title: str = "The state of an optimiser carried to another network",
        *,
        pair: Pair | None = None,
        check: Check = None,
        facts: Facts = None,
    ) -> Report:
        """List the entries of the state, with pictures of the alignment where one was solved."""
        sections = alignment_sections(title, self.alignment, self.solution, pair, check, facts)
        rows = tuple((key, str(count)) for key, count in self.entries.items())
        table = Section("State", (Table(("entry", "parameters that have it"), rows),))
        return Report(title, (*sections[:1], table, *sections[1:]))


@check_arguments
def carry_optimizer(
    pair: Pair | SymmetryGraph,
    a: WeightsSource | None = None,
    b: WeightsSource | None = None,
    *,
    state: Mapping[str, Any],
    names: Sequence[str] | None = None,
    alignment: Alignment | Solution | None = None,
    solver: SolverLike = "weight_matching",
    **arguments: Any,
) -> CarriedOptimizer:
    """Carry the state of an optimiser of network A to network B, which is A in another order of units, or like it.

    Args:
        pair: The two networks, ``graph.bind(a, b)``; or a graph, with them beside it.
        a: The network that the optimiser trains, if ``pair`` is a graph.
        b: The network that gets it, if ``pair`` is a graph.
        state: What ``optimizer.state_dict()`` returned.
        names: The names of all parameters in the order in which the optimiser got them, as `transport_optimizer` takes
            them.
        alignment: Aligns B to A. None: it is solved.
        solver: Solver of the alignment, as in `alignkit.solve`.
        arguments: Further arguments of `alignkit.solve`: a device, a seed, options.

    Raises:
        MergeError: The state cannot be moved, see `transport_optimizer`, before anything is solved; or the networks
            differ by scales or phases.
        BindError: The networks do not fit the graph.
        SolverError: The solver is unknown or failed.
    """
    graph = pair.graph if isinstance(pair, Pair) else pair
    transport_optimizer(state, Alignment.identity(graph), names=names)
    bound = bound_pair("carry_optimizer", pair, a, b)
    solution = completed(solve(bound, solver=solver, **arguments)) if alignment is None else None
    given = solution if alignment is None else alignment
    assert given is not None
    order = given if isinstance(given, Alignment) else given.alignment
    if order.graph != graph:
        raise MergeError("the alignment belongs to another graph than the networks.")
    aligned = {name: order.apply_tensor(name, tensor) for name, tensor in bound.b.items()}
    if apart := spaces_apart(graph, WideWeights(bound.a), WideWeights(aligned)):
        problem = f"the networks differ by scales or phases of {list_some(apart, 3)}"
        raise MergeError(f"{problem}, and the state of an optimiser moves with orders and signs alone.")
    return CarriedOptimizer(transport_optimizer(state, order.inverse(), names=names), order, solution)


@check_arguments
def read_names(path: str | Path) -> list[str]:
    """Read a JSON list of names of parameters; raise `MergeError` where there is none."""
    try:
        names = json.loads(read_file(path))
    except OSError as error:
        raise MergeError(f"the names {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise MergeError(f"the names {path} are not JSON: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MergeError(f'the names {path} have to be one JSON list of strings, such as ["fc1.weight", "fc1.bias"].')
    return names


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
            (it was made from named parameters), or its parameters are those of the module that the graph was made from,
            in their order.

    Returns:
        A state for ``load_state_dict`` of an optimiser of the moved network. Tensors are new.

    Raises:
        MergeError: The state is not that of an optimiser, belongs to other parameters, holds what alignkit does not
            know how to move, or means of squares would be rotated; or the graph has folds.
    """
    graph = alignment.graph
    if graph.folds:
        problem = "the state of an optimiser belongs to the parameters as they were trained, and this graph folds some"
        raise MergeError(
            f"{problem} into others. Align by permutations for it: alignkit.trace(..., "
            "symmetries='permutation'), or --symmetries permutation."
        )
    if not {"state", "param_groups"} <= state.keys():
        raise MergeError("this is not the state of an optimiser: it has no 'state' and 'param_groups'.")
    ids = [number for group in state["param_groups"] for number in group["params"]]
    ordered = _names(alignment, state["param_groups"], names)
    if len(ids) != len(ordered):
        counts = f"the optimiser has {plural(len(ids), 'parameter')}, {len(ordered)} names are known"
        raise MergeError(f"{counts}. Give names= (--names) in the order in which it got them.")
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
    if any(node.role == "tensor" for node in alignment.graph.tensors.values()):
        why = "the graph was made from a file or a mapping, which may have another order than the module"
        raise MergeError(f"the order of the parameters is not known: {why}. Give names= (--names), or trace the model.")
    return [name for name, node in alignment.graph.tensors.items() if node.role != "buffer"]


def _moved(key: str, value: Any, name: str, alignment: Alignment, unsigned: Alignment) -> Any:
    """Move one entry of the state of one parameter."""
    if not isinstance(value, Tensor) or not value.ndim:  # numbers of steps
        return value.clone() if isinstance(value, Tensor) else value
    node, where = alignment.graph.tensors[name], f"{key!r} of {name!r}"
    if tuple(value.shape) != node.shape:
        shapes = f"it has shape {tuple(value.shape)}, and the parameter {node.shape}"
        raise MergeError(
            f"{where} cannot be moved: {shapes}. Give names= (--names) in the order in which the optimiser got them."
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
