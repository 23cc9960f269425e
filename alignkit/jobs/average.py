"""`average`: one network between several whose units are in the same order.

It takes weights as they stand. `alignkit.merge` aligns first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints.dtypes import FloatDtype, Rounding, length, read_dtype
from alignkit.checkpoints.fit import Fit, first_names, is_counter, is_number
from alignkit.errors import MergeError
from alignkit.graph.bind import LazyWeights, StateDict, Weights, weights_of
from alignkit.graph.hidden_state import check_hidden_state
from alignkit.graph.layout import Block
from alignkit.graph.module_copy import copy_module
from alignkit.graph.parts import Places
from alignkit.graph.stored import StoredNetwork
from alignkit.jobs.mergekit_methods import Mergekit, find_mergekit
from alignkit.jobs.running_statistics import is_statistic
from alignkit.jobs.shares import Shares, SharesByPattern, factors_of, read_patterns, shares_by_name, shares_of
from alignkit.jobs.task_vectors import TASK_METHODS, check_density, combine
from alignkit.text import dtype_name, plural

Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)

WHOLE: Mapping[str, int] = {"slerp": 5, "ties": 9, "dare": 6}
"""Methods that look at whole tensors, and copies in 64 bits of each network's that may be alive, as measured."""
STRAIGHT = 0.9995
"""Above this cosine, of either sign, two tensors are almost parallel and slerp is the straight line, as in mergekit.
The two differ by 1.3e-4 of their length at most."""


@dataclass(frozen=True)
class Averaging:
    """How networks are averaged, and what was lost when averages were rounded.

    Attributes:
        shares: Share of each network, which add up to 1; for task vectors the factor of each network but the first.
        patterns: The same for tensors whose names match a pattern.
        by_name: The same for every tensor by its names, once they are known; see `on`.
        method: As `average` takes it.
        density: Share of the entries of a task vector that TIES and DARE keep.
        seed: Seed of the entries that DARE drops.
        dtype: Floating-point dtype of the average; None: those of the first network.
        rounding: Every average that is computed is counted there.
    """

    shares: list[float]
    method: Method = "linear"
    dtype: torch.dtype | None = None
    density: float = 0.5
    seed: int = 0
    rounding: Rounding = field(default_factory=Rounding)
    patterns: Mapping[str, list[float]] = field(default_factory=dict)
    by_name: Mapping[str, list[float]] = field(default_factory=dict)

    @classmethod
    @check_arguments
    def of(
        cls,
        count: int,
        weights: SharesByPattern = None,
        method: Method = "linear",
        dtype: FloatDtype | None = None,
        density: float = 0.5,
        seed: int = 0,
    ) -> Averaging:
        """Return how ``count`` networks are averaged; see `average`. `MergeError` for what does not fit them."""
        check_method(method, count)
        check_density(density)

        def read(one: Shares) -> list[float]:
            return factors_of(one, count - 1) if method in TASK_METHODS else shares_of(one, count)

        shares, patterns = read_patterns(weights, read)
        return cls(shares, method, None if dtype is None else read_dtype(dtype), density, seed, patterns=patterns)

    def on(self, first_names: Mapping[str, str]) -> Averaging:
        """Return the same for networks whose tensors are known: the first name of each by every name that it has.

        Raises:
            MergeError: No tensor is left for a pattern, or the names of tied tensors have different shares.
        """
        if not self.patterns or self.by_name:
            return self
        return replace(self, by_name=shares_by_name(self.patterns, self.shares, first_names))

    @property
    def keeps_one(self) -> bool:
        """Whether the average is one of the networks, because the others have no share in any tensor."""
        return all(shares == self.shares for shares in self.by_name.values()) and max(self.shares) == 1

    def parents(self, name: str | None = None) -> list[float]:
        """Return the share of each network in statistics, which have no direction: not negative, adding up to 1.

        Args:
            name: Name of a tensor; None for those that have no weights of their own.
        """
        shares = self.by_name.get(name or "", self.shares)
        if self.method not in TASK_METHODS:
            return list(shares)
        sizes = [abs(share) for share in shares]
        return [0.0, *(size / sum(sizes) for size in sizes)] if any(sizes) else [1.0, *sizes]

    def of_tensors(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """Return the average of one tensor, or a part of it, on the device of the first."""
        first = tensors[0]
        if not is_number(first):
            return _common_value(name, tensors)
        shares = self.by_name.get(name, self.shares)
        wide = [widen(tensor, first.device) for tensor in tensors]
        if is_statistic(name) or self.method == "linear":  # statistics have no direction
            total = torch.zeros_like(wide[0])
            for part, share in zip(wide, self.parents(name), strict=True):
                total += share * part
        elif self.method == "slerp":
            total = slerp(wide[0], wide[1], shares[1])
        else:
            vectors = [part - wide[0] for part in wide[1:]]
            total = wide[0] + combine(self.method, vectors, shares, self.density, self.seed, name)
        return self.rounding.narrow(total, self.dtype_of(first.dtype), name, MergeError)

    def of_networks(self, models: Sequence[Weights]) -> Weights:
        """Return the average of networks, as `average` does."""
        modules = [isinstance(model, nn.Module) for model in models]
        if any(modules) and not all(modules):
            kinds = ", ".join("a module" if module else "a mapping" for module in modules)
            raise MergeError(f"models are all modules or all state dicts, found {kinds}.")
        check_method(self.method, len(models))
        first = models[0]
        if stored := [model for model in models if isinstance(model, StoredNetwork)]:
            if len(stored) != len(models):
                raise MergeError("networks on disk are averaged with each other: give all of them as paths.")
            return AverageNetwork(stored, self.on(stored[0].graph.first_names))
        sides = [weights_of(model) for model in models]
        labels = [f"model {at}" for at in range(len(sides))]
        fitting = check_alike(sides, labels)
        check_hidden_state(dict(zip(labels, models, strict=True)), MergeError)
        averaging = self.on(first_names(sides[0]))
        tied = {name: averaging.of_tensors(name, [side[name] for side in fitting]) for name in fitting[0]}
        averages = {name: tied[kept] for name, kept in first_names(sides[0]).items()}
        return with_tensors(first, averages) if isinstance(first, nn.Module) else averages

    def takes_whole(self, name: str, dtype: torch.dtype) -> bool:
        """Tell whether a tensor is averaged as a whole: what is made of an entry depends on all others."""
        return self.method in WHOLE and is_number(dtype) and not is_statistic(name)

    def check_memory(self, networks: Sequence[StoredNetwork]) -> None:
        """Raise a `MergeError` if tensors that are averaged as a whole do not fit the limit of networks on disk."""
        first, sizes = networks[0], {name: prod(node.shape) for name, node in networks[0].graph.tensors.items()}
        whole = [name for name in sizes if self.takes_whole(name, first.dtype(name))]
        if not whole:
            return
        largest = max(whole, key=sizes.__getitem__)
        needed = 8 * WHOLE[self.method] * len(networks) * sizes[largest]
        if (limit := first.budget.memory) < needed:
            raise MergeError(
                f"the limit of memory does not suffice: method={self.method!r} looks at all of {largest!r} at once, in "
                f"{WHOLE[self.method] * len(networks)} copies of 64 bits. Give {math.ceil((needed - limit) / 1e6)} MB "
                "more; 'linear' and 'task_arithmetic' take a few rows at a time."
            )

    def dtype_of(self, own: torch.dtype) -> torch.dtype:
        """Return the dtype in which an average is kept, where the first network has ``own``."""
        return self.dtype if self.dtype is not None and own.is_floating_point else own


@overload
def average(
    models: Sequence[ModuleT],
    weights: SharesByPattern = None,
    method: Method = "linear",
    dtype: FloatDtype | None = None,
    *,
    density: float = 0.5,
    seed: int = 0,
) -> ModuleT: ...
@overload
def average(  # type: ignore[overload-overlap]
    models: Sequence[LazyWeights],
    weights: SharesByPattern = None,
    method: Method = "linear",
    dtype: FloatDtype | None = None,
    *,
    density: float = 0.5,
    seed: int = 0,
) -> LazyWeights: ...
@overload
def average(
    models: Sequence[StateDict],
    weights: SharesByPattern = None,
    method: Method = "linear",
    dtype: FloatDtype | None = None,
    *,
    density: float = 0.5,
    seed: int = 0,
) -> dict[str, Tensor]: ...
@check_arguments
def average(
    models: Sequence[Weights],
    weights: SharesByPattern = None,
    method: Method = "linear",
    dtype: FloatDtype | None = None,
    *,
    density: float = 0.5,
    seed: int = 0,
) -> Weights:
    """Average networks whose units are in the same order.

    Args:
        models: Modules, or state dicts, of one architecture and in one basis. They are left as they are.
        weights: Share of each model: not negative, divided by their sum. None: equal shares. For task vectors the
            factor of each model but the first, of any sign and not divided; None: 1 / their number. A mapping gives
            other weights to tensors by patterns of their names, ``{"*.layers.3.*": [1, 0], "*": [1, 1]}``: the first
            that matches counts, and ``"*"`` is for all others. Names of tied tensors need the same.
        method: ``"linear"``, the weighted average of every tensor; or ``"slerp"``, for two models: each tensor turns
            from the first to the second at constant speed, so that its length does not shrink in between (Shoemake,
            "Animating rotation with quaternion curves", 1985). Running statistics are averaged in any case. Or
            ``"task_arithmetic"``, ``"ties"``, ``"dare"``: the first model is the base, and what the others have beyond
            it is put together and added to it; see `alignkit.jobs.task_vectors` for the papers.
        dtype: Floating-point dtype of the average, such as ``torch.bfloat16`` or ``"bf16"``. None: those of the first
            model. Models may have different ones.
        density: Share of the entries of each task vector that ``"ties"`` keeps, the largest, or ``"dare"``, at random.
        seed: Seed of what ``"dare"`` drops.

    Returns:
        A module where modules were given (a copy of the first with new values; tied tensors stay tied), a dict where
        mappings were given; of networks that stay on disk, one that is read and averaged when it is asked for a tensor.
        Devices are those of the first model; sums are taken in float64 and rounded once. Whole numbers and truth values
        have no average: they have to be equal, only counters (``num_batches_tracked``) become the
        largest. The running statistics of a merged network do not fit it: ``network =
        alignkit.reset_batchnorm(network, batches)`` computes them anew.

    Raises:
        MergeError: Models differ in names, shapes, ties or whole numbers (model and tensor are named), hold NaN or
            infinity, an average overflows the dtype of the first model, shares or method are wrong, or no tensor has
            a name that a pattern matches.
    """
    return Averaging.of(len(models), weights, method, dtype, density, seed).of_networks(models)


class AverageNetwork(StoredNetwork):
    """The average of networks on one graph that stay on disk, made when it is asked for a tensor; the last is kept."""

    def __init__(self, networks: Sequence[StoredNetwork], averaging: Averaging) -> None:
        super().__init__(networks[0].graph, networks[0].budget)
        if any(network.graph != networks[0].graph for network in networks):
            raise MergeError("the networks were bound to different graphs.")
        averaging.check_memory(networks)
        self._networks, self._averaging = tuple(networks), averaging
        self._whole: dict[str, Tensor] = {}

    @classmethod
    def of(cls, networks: Sequence[StoredNetwork], weights: Shares = None) -> AverageNetwork:
        """Return the average of networks whose units are in the same order; weights are those of `average`."""
        return cls(networks, Averaging(shares_of(weights, len(networks))))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor: that of the first network, unless another is wanted."""
        return self._averaging.dtype_of(self._networks[0].dtype(name))

    def rows(self, name: str, places: Places) -> Tensor:
        """Read some rows of a tensor; of one without axes all of it."""
        if not self._averaging.takes_whole(name, self._networks[0].dtype(name)):
            return self._averaging.of_tensors(name, [network.rows(name, places) for network in self._networks])
        if name not in self._whole:
            self._whole.clear()
            self._whole[name] = self._averaging.of_tensors(name, [network[name] for network in self._networks])
            self.release()
        return self._whole[name][places] if self._whole[name].ndim else self._whole[name]

    def part(self, name: str, block: Block, at: int, places: Places) -> Tensor:
        """Read some units of the first dim of a block."""
        if self._averaging.takes_whole(name, self._networks[0].dtype(name)):
            return super().part(name, block, at, places)
        parts = [network.part(name, block, at, places) for network in self._networks]
        return self._averaging.of_tensors(name, parts)


def _common_value(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """Return the whole numbers, or truth values, that all models have; the largest of a counter."""
    first, *others = tensors
    if is_counter(name):
        # torch cannot compare all unsigned numbers.
        largest = np.asarray(np.stack([tensor.detach().cpu().numpy() for tensor in tensors]).max(0))
        return torch.from_numpy(largest).to(first)
    differs = [at for at, other in enumerate(others, 1) if not torch.equal(first, other.to(first.device))]
    if differs:
        kind = "truth values" if first.dtype == torch.bool else "whole numbers"
        raise MergeError(
            f"{name!r} holds {kind} ({dtype_name(first.dtype)}), which have no average, and model {differs[0]} differs "
            "from model 0. Make them equal, or floats if they are quantised weights."
        )
    return first.detach().clone()


def with_tensors(module: ModuleT, tensors: Mapping[str, Tensor]) -> ModuleT:
    """Return a deep copy of a module with new values, and their dtypes, for its parameters and buffers."""
    copied = copy_module(module)
    own = copied.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in own.keys() & tensors.keys():
            if own[name].dtype == tensors[name].dtype:
                own[name].data.copy_(tensors[name])
            else:
                own[name].data = tensors[name].detach().to(own[name].device, copy=True)
    return copied


def check_method(method: str, count: int) -> None:
    """Refuse, by a `MergeError`, a method that cannot take ``count`` models."""
    if method == "slerp" and count != 2:
        raise MergeError(f"method='slerp' turns from one model to another, found {plural(count, 'model')}.")
    if method in TASK_METHODS and count < 2:
        raise MergeError(f"method={method!r} takes a base and at least one model beyond it: give both.")


def check_alike(sides: Sequence[Mapping[str, Tensor]], labels: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return the tensors of each model by the first name of tied ones, held against those of the first model.

    Raises:
        MergeError: Names, shapes, kinds, ties or values do not fit; every mismatch is listed by model and tensor.
    """
    names, expected = first_names(sides[0]), sides[0]
    fit = Fit({name: tuple(expected[name].shape) for name in names.values()}, names, labels[0])
    fitting = [fit.check_tensors(side, label) for label, side in zip(labels, sides, strict=True)]
    fit.problems += [
        f"{name!r} is {tensor.dtype} in {label} but {expected[name].dtype} in {labels[0]}"
        for label, side in zip(labels, fitting, strict=True)
        for name, tensor in side.items()
        if (is_number(tensor), tensor.is_complex()) != (is_number(expected[name]), expected[name].is_complex())
    ]
    fit.raise_if_any(MergeError, "the models do not fit each other")
    return fitting


def widen(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor in float64, or complex128, on a device."""
    return tensor.detach().to(device, torch.complex128 if tensor.is_complex() else torch.float64)


def slerp(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
    """Return the tensor at ``t`` on the arc from ``a`` (0) to ``b`` (1), both seen as one vector.

    Source: Shoemake 1985. Where the two are almost parallel or opposite, or zero, the line is taken. Where mergekit is
    installed its function is called.
    """
    lengths, mergekit = (length(a), length(b)), find_mergekit()
    if min(lengths) == 0 or t in (0.0, 1.0):
        return (1 - t) * a + t * b
    if isinstance(mergekit, Mergekit) and not a.is_complex() and all(1e-7 < size < 1e100 for size in lengths):
        return mergekit.slerp(a, b, t)  # beyond these lengths its squares overflow, or count as zero
    cosine = float(((a / lengths[0]).conj() * (b / lengths[1])).real.sum())
    if abs(cosine) > STRAIGHT:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
