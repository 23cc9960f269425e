"""Phases of sine units brought to one place: ``sin(u + pi)`` is ``-sin(u)``, so that a bias may move by half periods.

What reads a unit takes its other sign for each half period. Networks that differ by such moves are alike once their
phases are wrapped, up to the order and the signs of units, which a solver finds on a graph of ``symmetries="all"``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from alignkit.errors import FoldError
from alignkit.graph.module_copy import copy_module
from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import Use
from alignkit.rewriting.modules import module_with
from alignkit.rewriting.wide import WideWeights

ModuleT = TypeVar("ModuleT", bound=nn.Module)
TOLERANCE = 1e-3
"""Largest change of an output, as a share of the largest output. Half periods that move by rounding of float32 stay far
below it."""
SAME = 1e-9
"""How far, as a share, what a bias adds to the arguments of sines may differ between places, in float64."""


def wrap_phases(module: ModuleT, graph: GraphStructure, inputs: Tensor, like: nn.Module | None = None) -> ModuleT:
    """Return a copy of a network of sine units whose phases are the nearest to 0, or to those of another network.

    It computes the same, which is checked on the inputs. The frequency of units ``sin(frequency * (W x + b))`` is found
    by running the network with another bias.

    Args:
        module: A network whose signed groups are sine units.
        graph: Its graph, traced with ``symmetries="all"``.
        inputs: Some inputs of the network.
        like: A network whose units are in the same order.

    Raises:
        FoldError: No group is signed, a signed group has no bias of its own or its units are not sines, or the network
            does not compute the same.
    """
    groups = [name for name in graph.groups if graph.groups[name].kind == "signed"]
    if not groups:
        raise FoldError('no group of the graph is signed: trace the network with symmetries="all".')
    tensors = {graph.first_names[name]: tensor for name, tensor in module.state_dict().items()}
    wide = WideWeights(tensors)
    near = {} if like is None else dict(like.state_dict())
    biases = {group: _bias_of(graph, group) for group in groups}
    frequencies = _frequencies(module, biases, inputs)
    for group, bias in biases.items():
        period = math.pi / frequencies[group]
        old = wide[bias]
        turns = ((old - near[bias].to(old) if bias in near else old) / period).round()
        old -= period * turns
        signs = 1 - 2 * turns.remainder(2)
        for use in _readers(graph, group, bias):
            part = use.block.view(wide[use.tensor]).movedim(use.at, -1)
            part *= signs
    wrapped = module_with(module, wide.rounded())
    with torch.no_grad():
        before, after = module(inputs), wrapped(inputs)
    if not float((after - before).abs().max()) <= TOLERANCE * float(before.abs().max()):
        raise FoldError("the network computes something else once phases are wrapped: its units are not only sines.")
    return wrapped


class _Sines(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook for subclasses untyped
    """Keep what sines are taken of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an op, and copy its argument if it is a sine."""
        if func.overloadpacket in (torch.ops.aten.sin, torch.ops.aten.sin_):
            self.arguments.append(args[0].clone())
        return func(*args, **(kwargs or {}))


def _frequencies(module: nn.Module, biases: Mapping[str, str], inputs: Tensor) -> dict[str, float]:
    """Return what one more in the bias of each group adds to the argument of the sine behind it, in float64.

    Raises:
        FoldError: It reaches no sine, or adds unlike numbers.
    """
    wide, inputs = copy_module(module).double(), inputs.double()

    def arguments() -> list[Tensor]:
        sines = _Sines()
        with torch.no_grad(), sines:
            copy_module(wide)(inputs)
        return sines.arguments

    before, frequencies = arguments(), dict[str, float]()
    for group, bias in biases.items():
        values = wide.state_dict(keep_vars=True)[bias].data
        given = values.clone()
        values += 1
        added = [after - old for after, old in zip(arguments(), before, strict=True) if not torch.equal(after, old)]
        values.copy_(given)
        low, high = added[0].abs().aminmax() if added else (0.0, 0.0)
        if not 0 < high - SAME * high <= low:
            raise FoldError(f"the units of group {group!r} are no sines of a number times what {bias!r} is added to.")
        frequencies[group] = float(high)
    return frequencies


def _bias_of(graph: GraphStructure, group: str) -> str:
    """Return the one tensor that holds a number for each unit of a group and nothing else."""
    size = (graph.groups[group].size,)
    found = list(dict.fromkeys(use.tensor for use in graph.uses[group] if graph.tensors[use.tensor].shape == size))
    if len(found) != 1:
        raise FoldError(f"group {group!r} has {len(found)} tensors with one number a unit, where one bias is expected.")
    return found[0]


def _readers(graph: GraphStructure, group: str, bias: str) -> list[Use]:
    """Return the uses of a group in tensors of other modules than that of its bias."""
    own = bias.rpartition(".")[0]
    return [use for use in graph.uses[group] if use.tensor.rpartition(".")[0] != own]
