"""`merge_adapters`: LoRA adapters of one base, averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.dtypes import narrow
from alignkit.errors import MergeError
from alignkit.jobs.adapters import Adapter
from alignkit.jobs.shares import Shares, shares_of
from alignkit.reports import Facts, Report, Section, Table
from alignkit.reports.sections import facts_section
from alignkit.rewriting.balancing import balanced_matrices
from alignkit.text import Explained, list_some, plural

AdapterMethod = Literal["products", "factors"]
Reads: TypeAlias = Float[Tensor, "rank inputs"]
Writes: TypeAlias = Float[Tensor, "outputs rank"]


@dataclass(frozen=True, eq=False, repr=False)
class MergedAdapters(Explained):
    """LoRA adapters of one base, averaged.

    Attributes:
        adapter: The average; its ``write`` makes a folder that peft loads.
        method: How it was averaged.
        apart: By module how far the average is from the average of what the adapters add to the weight, relative to its
            size. The mean of products has a larger rank than the adapter can hold, and the product of mean factors is
            another matrix.
    """

    adapter: Adapter
    method: AdapterMethod
    apart: Mapping[str, float]

    def __repr__(self) -> str:
        return f"MergedAdapters({plural(len(self.apart), 'weight')}, {self.method})"

    def explain(self) -> str:
        """Say in a few lines what was averaged, and what is lost."""
        lost = [f"{100 * share:.2g} %" for share in (min(self.apart.values()), max(self.apart.values()))]
        how = {
            "products": "what the adapters add to each weight was averaged, and brought back to its rank",
            "factors": "factors were balanced, brought to one basis, and averaged",
        }[self.method]
        apart = f"The average of what the adapters add is {lost[0]} to {lost[1]} of its size away"
        return f"{plural(len(self.apart), 'weight')}: {how}. {apart}."

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        return {"method": self.method, "apart": dict(self.apart)}

    @check_arguments
    def report(self, title: str = "Merged adapters", *, facts: Facts = None) -> Report:
        """List the weights, and how far each is from the average of products."""
        rows = tuple((name, str(self.adapter.rank(name)), f"{share:.3g}") for name, share in self.apart.items())
        table = Section("Weights", (Table(("weight", "rank", "from the average of products"), rows),))
        return Report(title, (facts_section({**(facts or {}), "method": self.method}), table))


@check_arguments
def merge_adapters(
    adapters: Sequence[Adapter | str | Path], weights: Shares = None, method: AdapterMethod = "products"
) -> MergedAdapters:
    """Average LoRA adapters of one base.

    The factors of an adapter are known up to an invertible matrix between them. So averages of the factors as they are
    stored have no meaning; neither method depends on it.

    Args:
        adapters: Two adapters or more, or the folders in which peft saved them. `alignkit.transport_adapter` brings
            those of another base to this one.
        weights: Share of each: not negative, divided by their sum. None: equal shares.
        method: ``"products"``: the average of what the adapters add to each weight, of which the best approximation of
            the rank of the first is kept (a truncated singular value decomposition). ``"factors"``: the factors are
            balanced, so that they are known up to a rotation, those of each adapter are rotated to those of the first,
            and averaged.

    Returns:
        The average, with the configuration of the first adapter.

    Raises:
        MergeError: An adapter is not one of LoRA, they adapt other weights or other shapes, ranks differ with
            ``method="factors"``, shares are wrong, or a number overflows its dtype.
        WeightsError: A file cannot be read.
    """
    given = [adapter if isinstance(adapter, Adapter) else Adapter.read(adapter) for adapter in adapters]
    if len(given) < 2:
        raise MergeError(f"merge_adapters() needs at least two adapters, found {len(given)}.")
    shares, first = shares_of(weights, len(given)), given[0]
    for other in given[1:]:
        _check_alike(first, other, method)
    tensors, apart = {name: first.tensors[name] for name in first.base_weights}, {}
    for module, names in first.factors.items():
        sides = [adapter.matrices(module) for adapter in given]
        rank, scale = first.rank(module), first.scale(module)
        if scale == 0:
            raise MergeError(f"{first.label}: lora_alpha of {module!r} is 0, so that the adapter adds nothing.")
        a, b = _products(sides, shares, rank) if method == "products" else _factors(sides, shares)
        # Factors of the average of products, side by side: their difference from the result has a small rank.
        left = torch.cat([share * side[1] for share, side in zip(shares, sides, strict=True)], 1)
        right = torch.cat([side[0] for side in sides])
        size = _size(left, right)
        apart[module] = _size(torch.cat([left, -b], 1), torch.cat([right, a])) / size if size else 0.0
        root = abs(scale) ** 0.5
        for name, values in ((names.a, a / root), (names.b, b / (root if scale > 0 else -root))):
            like = first.tensors[name]
            tensors[name] = narrow(values.reshape(like.shape), like.dtype, name, MergeError).to(like.device)
        if names.bias in first.tensors:
            terms = [
                share * adapter.scale(module) / scale * adapter.tensors[adapter.factors[module].bias].cpu().double()
                for share, adapter in zip(shares, given, strict=True)
            ]
            like = first.tensors[names.bias]
            total = torch.stack(terms).sum(0)
            tensors[names.bias] = narrow(total, like.dtype, names.bias, MergeError).to(like.device)
    return MergedAdapters(Adapter(first.config, tensors, "the average"), method, apart)


def _check_alike(first: Adapter, other: Adapter, method: AdapterMethod) -> None:
    """Refuse an adapter that does not adapt the same weights as the first."""
    both = f"{first.label} and {other.label}"
    if different := sorted(first.factors.keys() ^ other.factors.keys()):
        raise MergeError(f"{both} do not adapt the same weights: {list_some(different, 5)} in one of them only.")
    for name in first.base_weights:
        if name not in other.tensors or not torch.equal(first.tensors[name], other.tensors[name]):
            raise MergeError(f"{both} bring different weights {name!r}: they are not adapters of one base.")
    for module, names in first.factors.items():
        others = other.factors[module]
        if (names.bias in first.tensors) != (others.bias in other.tensors):
            raise MergeError(f"{both}: only one of them has a bias for {module!r}.")
        for side, own, of_other in (("reads", names.a, others.a), ("writes", names.b, others.b)):
            shapes = [list(tensors[name].shape) for tensors, name in ((first.tensors, own), (other.tensors, of_other))]
            sizes = [shape[1:] if side == "reads" else [shape[0], *shape[2:]] for shape in shapes]
            if sizes[0] != sizes[1]:
                raise MergeError(f"{both}: what {side} {module!r} has shapes {shapes[0]} and {shapes[1]}.")
        if method == "factors" and first.rank(module) != other.rank(module):
            ranks = f"{first.rank(module)} and {other.rank(module)}"
            raise MergeError(f"{both}: {module!r} has the ranks {ranks}. method='products' takes any.")


def _products(sides: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float], rank: int) -> tuple[Reads, Writes]:
    """Return balanced factors of some rank of the average of products, which is never formed."""
    left = torch.cat([share * b for share, (_, b) in zip(shares, sides, strict=True)], 1)
    right = torch.cat([a for a, _ in sides])
    (basis_b, small_b), (basis_a, small_a) = torch.linalg.qr(left), torch.linalg.qr(right.mT)
    u, values, v = torch.linalg.svd(small_b @ small_a.mT)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    a, b = root[:, None] * (v[:kept] @ basis_a.mT), (basis_b @ u[:, :kept]) * root
    missing = rank - kept  # a rank that is larger than the matrix
    return torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))


def _factors(sides: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float]) -> tuple[Reads, Writes]:
    """Return the average of balanced factors, those of each adapter rotated to those of the first."""
    balanced = [balanced_matrices(b.mT[None], a[None])[:2] for a, b in sides]
    pairs = [(y[0], x[0]) for x, y in balanced]  # what reads [rank, inputs], what writes [rank, outputs]
    first_a, first_b = pairs[0]
    total_a, total_b = torch.zeros_like(first_a), torch.zeros_like(first_b)
    for share, (a, b) in zip(shares, pairs, strict=True):
        left, _, right = torch.linalg.svd(first_a @ a.mT + first_b @ b.mT)
        total_a += share * (left @ right @ a)
        total_b += share * (left @ right @ b)
    return total_a, total_b.mT


def _size(b: Writes, a: Reads) -> float:
    """Return the Frobenius norm of a product, which is not formed."""
    return float(torch.linalg.matrix_norm(torch.linalg.qr(b).R @ torch.linalg.qr(a.mT).R.mT))
