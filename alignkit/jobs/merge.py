"""Merging: averages of aligned networks, and task vectors carried from one basis to another.

Everything here takes weights as they stand. Align first: ``merge([a, solution.apply(b)])``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignkit.checkpoints.fit import all_finite
from alignkit.checkpoints.ties import tensor_identity
from alignkit.errors import MergeError
from alignkit.graph.bind import fit_weights, weights_of
from alignkit.graph.elements.alignment import Alignment

if TYPE_CHECKING:
    from alignkit.graph.structure import GraphStructure
    from alignkit.solver.solution import Solution

Method = Literal["linear", "slerp"]
Weights = nn.Module | Mapping[str, Tensor]
ModuleT = TypeVar("ModuleT", bound=nn.Module)

PARALLEL = 1e-6
"""Below this sine of the angle between two tensors there is no plane to turn in, and slerp is the straight line."""
STATISTICS = ("running_mean", "running_var")
"""Buffers that hold statistics of data; they have no direction, so they are always averaged."""


@overload
def merge(models: Sequence[ModuleT], weights: Sequence[float] | None = None, method: Method = "linear") -> ModuleT: ...
@overload
def merge(
    models: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None, method: Method = "linear"
) -> dict[str, Tensor]: ...
def merge(
    models: Sequence[Weights], weights: Sequence[float] | None = None, method: Method = "linear"
) -> nn.Module | dict[str, Tensor]:
    """One network between several aligned ones.

    Args:
        models: Modules, or state dicts, of one architecture and in one basis. They are left as they are.
        weights: Share of each model: not negative, divided by their sum. None: equal shares.
        method: ``"linear"``, the weighted average of every tensor; or ``"slerp"``, for two models: each tensor turns
            from the first to the second at constant speed, so that its length does not shrink in between (Shoemake,
            "Animating rotation with quaternion curves", 1985). Running statistics are averaged in any case.

    Returns:
        A module where modules were given (a copy of the first with new values; tied tensors stay tied), a dict where
        mappings were given. Dtypes and devices are those of the first model; sums are taken in float64. Whole numbers
        have no average: they have to be alike, only ``num_batches_tracked`` becomes the largest. The running statistics
        of a merged network do not fit it: see `alignkit.reset_batchnorm`.

    Raises:
        MergeError: Models differ in names, shapes, ties or whole numbers (model and tensor are named), hold NaN or
            infinity, or shares or method are wrong.
    """
    shares = shares_of(weights, len(models))
    modules = [isinstance(model, nn.Module) for model in models]
    if any(modules) and not all(modules):
        kinds = ", ".join("a module" if module else "a mapping" for module in modules)
        raise MergeError(f"models are all modules or all state dicts, found {kinds}.")
    if method not in ("linear", "slerp"):
        raise MergeError(f"there is no method {method!r}: take 'linear' or 'slerp'.")
    if method == "slerp" and len(models) != 2:
        raise MergeError(f"method='slerp' turns from one model to another, found {len(models)} models.")
    sides = [weights_of(model) for model in models]
    check_alike(sides, [f"model {at}" for at in range(len(sides))])
    merged: dict[str, Tensor] = {}
    done: dict[object, Tensor] = {}
    with torch.no_grad():
        for name, tensor in sides[0].items():
            key = tensor_identity(tensor)
            if key not in done:
                done[key] = _merged(name, [side[name] for side in sides], shares, method)
            merged[name] = done[key]
    first = models[0]
    return filled(first, merged) if isinstance(first, nn.Module) else merged


@overload
def transport(
    base_a: Weights, tuned_a: Weights, base_b: ModuleT, alignment: Alignment | Solution, scale: float = 1.0
) -> ModuleT: ...
@overload
def transport(
    base_a: Weights, tuned_a: Weights, base_b: Mapping[str, Tensor], alignment: Alignment | Solution, scale: float = 1.0
) -> dict[str, Tensor]: ...
def transport(
    base_a: Weights, tuned_a: Weights, base_b: Weights, alignment: Alignment | Solution, scale: float = 1.0
) -> nn.Module | dict[str, Tensor]:
    """Carry a fine-tune from one base to another: ``base_b + scale * P^-1 # (tuned_a - base_a)``.

    The alignment is the one that brings B to A, as ``solve(graph.bind(base_a, base_b))`` finds it; its inverse brings
    the task vector of A (Ilharco et al., "Editing models with task arithmetic", 2023) to the units of B. Nothing of B
    is reordered.

    Args:
        base_a: The base that was tuned: a module or a state dict.
        tuned_a: The same after tuning, its units in the same order.
        base_b: The base that the task vector is added to. It is left as it is.
        alignment: Aligns ``base_b`` to ``base_a``.
        scale: Factor of the task vector; -1 takes the task away.

    Returns:
        A module or a dict, as ``base_b`` is, in its dtypes and on its devices. Whole numbers are those of ``base_b``;
        running variances stay positive.

    Raises:
        MergeError: A model does not fit the alignment's graph (every mismatch is named), or the scale is not finite.
    """
    if not math.isfinite(scale):
        raise MergeError(f"scale is {scale}: give a finite number.")
    back = (alignment if isinstance(alignment, Alignment) else alignment.alignment).inverse()
    problems: list[str] = []
    given = (("base_a", base_a), ("tuned_a", tuned_a), ("base_b", base_b))
    sides = [fit_weights(back.graph, model, label, problems) for label, model in given]
    if problems:
        listed = "\n".join(f"  - {text}" for text in sorted(problems))
        raise MergeError(f"the models do not fit the alignment's graph, {len(problems)} problems:\n{listed}")
    carried: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, target in sides[2].items():
            carried[name] = _carried(back, name, sides[0][name], sides[1][name], target, scale)
    if isinstance(base_b, nn.Module):
        return filled(base_b, _all_names(back.graph, carried))
    named = _all_names(back.graph, carried)
    return {name: named[name] for name in base_b}


def filled(module: ModuleT, tensors: Mapping[str, Tensor]) -> ModuleT:
    """A deep copy of a module with new values for its parameters and buffers."""
    copied = copy.deepcopy(module)
    places = copied.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name in places:
                places[name].data.copy_(tensor)
    return copied


def shares_of(weights: Sequence[float] | None, count: int) -> list[float]:
    """Shares of ``count`` models that add up to 1; equal ones for None.

    Raises:
        MergeError: There are no models, or the shares are negative, not finite, all zero or not one for each model.
    """
    if not count:
        raise MergeError("there are no models: give at least one.")
    if weights is None:
        return [1.0 / count] * count
    shares = [float(weight) for weight in weights]
    if len(shares) != count:
        raise MergeError(f"there are {len(shares)} weights for {count} models: give one each.")
    for at, share in enumerate(shares):
        if not math.isfinite(share) or share < 0:
            raise MergeError(f"weights[{at}] is {share}: shares are finite and not negative.")
    total = sum(shares)
    if total <= 0:
        raise MergeError("all weights are 0: give at least one model a share.")
    return [share / total for share in shares]


def check_alike(sides: Sequence[Mapping[str, Tensor]], labels: Sequence[str]) -> None:
    """Hold the tensors of several models against those of the first.

    Raises:
        MergeError: Names, shapes, kinds, ties or values do not fit; every mismatch is listed by model and tensor.
    """
    first, zero = sides[0], labels[0]
    ties: dict[object, str] = {}
    tied = {n: other for n, t in first.items() if (other := ties.setdefault(tensor_identity(t), n)) != n}
    problems: list[str] = []
    for label, side in zip(labels, sides, strict=True):
        problems += [f"{name!r} is missing in {label}" for name in first if name not in side]
        problems += [f"{name!r} of {label} is not in {zero}" for name in side if name not in first]
        for name, tensor in side.items():
            if name not in first:
                continue
            if tensor.shape != first[name].shape:
                problems.append(f"{name!r} is {[*tensor.shape]} in {label} but {[*first[name].shape]} in {zero}")
            elif _is_number(tensor) != _is_number(first[name]):
                problems.append(f"{name!r} is {tensor.dtype} in {label} but {first[name].dtype} in {zero}")
            elif _is_number(tensor) and not all_finite(tensor):
                problems.append(f"{name!r} of {label} holds NaN or infinity")
            elif name in tied and tied[name] in side and not torch.equal(tensor, side[tied[name]]):
                problems.append(f"{name!r} and {tied[name]!r} are tied in {zero} but differ in {label}")
    if problems:
        listed = "\n".join(f"  - {text}" for text in problems)
        raise MergeError(f"the models do not fit each other, {len(problems)} problems:\n{listed}")


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _wide(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, torch.complex128 if tensor.is_complex() else torch.float64)


def _merged(name: str, tensors: Sequence[Tensor], shares: Sequence[float], method: Method) -> Tensor:
    first = tensors[0]
    if not _is_number(first):
        return _merged_whole(name, tensors)
    wide = [_wide(tensor.detach(), first.device) for tensor in tensors]
    if method == "slerp" and not name.endswith(STATISTICS):
        return slerp(wide[0], wide[1], shares[1]).to(first.dtype)
    total = torch.zeros_like(wide[0])
    for tensor, share in zip(wide, shares, strict=True):
        total += share * tensor
    return total.to(first.dtype)


def _merged_whole(name: str, tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    others = [tensor.to(first.device) for tensor in tensors[1:]]
    if name.endswith("num_batches_tracked"):
        return torch.stack([first, *others]).amax(0)
    for at, other in enumerate(others, 1):
        if not torch.equal(first, other):
            raise MergeError(
                f"{name!r} holds whole numbers ({first.dtype}), which have no average, and model {at} differs."
            )
    return first.detach().clone()


def slerp(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
    """The tensor at ``t`` on the arc from ``a`` (0) to ``b`` (1), both seen as one vector.

    Source: Shoemake 1985. Where the two are parallel, opposite or zero there is no arc, and the line is taken.
    """
    lengths = [float(torch.linalg.vector_norm(side)) for side in (a, b)]
    if min(lengths) == 0 or t in (0.0, 1.0):
        return (1 - t) * a + t * b
    cosine = float((a.conj() * b).real.sum()) / (lengths[0] * lengths[1])
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < PARALLEL:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def _carried(back: Alignment, name: str, base: Tensor, tuned: Tensor, target: Tensor, scale: float) -> Tensor:
    if not _is_number(target):
        return target.detach().clone()
    device = target.device
    delta = _wide(tuned.detach(), device) - _wide(base.detach(), device)
    moved = _wide(target.detach(), device) + scale * back.apply_tensor(name, delta)
    if name.endswith("running_var"):
        moved = torch.where(moved > 0, moved, _wide(target.detach(), device))
    return moved.to(target.dtype)


def _all_names(graph: GraphStructure, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[first] for name, first in graph.first_names.items()}
