"""`FoldedNetwork`: a network that stays on disk, folded and balanced when it is asked for a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from alignkit.checkpoints import Checkpoint, open_checkpoint, write_weights
from alignkit.checkpoints.fit import all_finite, is_number
from alignkit.errors import FoldError
from alignkit.graph.parts import Places
from alignkit.graph.rewrites import AnyBalance, Fold, Mean, SpaceKind, Through, Zero, untied_heads
from alignkit.graph.stored import StoredNetwork
from alignkit.graph.stored.network import read_rows
from alignkit.rewriting.balancing import balance_weights, follow_balances
from alignkit.rewriting.components import Component, components_of, tensors_of
from alignkit.rewriting.folding import Taken, fold_weights
from alignkit.rewriting.spaces import BalancedSpace
from alignkit.rewriting.wide import WideWeights
from alignkit.text import list_some

KEPT = 2
"""So many of the largest components, or more of smaller ones, are kept once they are rewritten: files hold queries,
keys, values and outputs in turn."""
COPIES: Mapping[SpaceKind, int] = {
    "scaled": 5,
    "monomial": 4,
    "complex_planes": 7,
    "invertible": 7,
    "half_periods": 3,
}
"""Copies in 64 bits of a component that may be alive at once while its spaces are balanced, as measured; folds alone
take three."""


class FoldedNetwork(StoredNetwork):
    """Another stored network, folded and balanced: each part that folds and balances do not link is rewritten alone.

    Every number is that which `fold_weights` and `balance_weights` give for the whole network.

    Args:
        source: The network as it is given.
        balances: The spaces that are balanced.
        like: How they were balanced in the base of the network, where it is a fine-tune.
        dtype: Floating-point dtype of narrower tensors; None: their own.
        scratch: A folder for what was rewritten, so that nothing is twice. None: it is rewritten when it is asked for.
    """

    def __init__(
        self,
        source: StoredNetwork,
        balances: Iterable[AnyBalance] = (),
        like: Iterable[BalancedSpace] | None = None,
        dtype: torch.dtype | None = None,
        scratch: Path | None = None,
    ) -> None:
        super().__init__(source.graph, source.budget)
        self.source, self.widened = source, dtype
        self.like = None if like is None else {space.balance: space for space in like}
        self.balances = tuple(balances if self.like is None else self.like)
        self.components = components_of(self.graph, self.balances)
        self._component_of = {name: part for part in self.components for name in part.tensors}
        self._kept: dict[tuple[str, ...], Mapping[str, Tensor]] = {}
        self._room = KEPT * max((part.numbers(self.graph) for part in self.components if part.is_rewritten), default=0)
        """How many numbers are kept."""
        self.scratch = scratch

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        own = self.source.dtype(name)
        if self.widened is None or not is_number(own) or own.itemsize >= self.widened.itemsize:
            return own
        return self.widened

    def rows(self, name: str, places: Places) -> Tensor:
        """Rewrite some rows of a tensor, alone where that can be; of one without axes all of it."""
        component = self._component_of[name]
        if not component.is_rewritten:
            rows = self._given(name, places)
        elif component.by_rows:
            wide = WideWeights({name: self._given(name, places)} | self._vectors(component))
            fold_weights(wide, component.folds)
            rows = wide.rounded()[name]
        else:
            rewritten = self._rewritten(component)
            if isinstance(rewritten, Checkpoint):
                rows = read_rows(rewritten, name, places)
            else:
                rows = rewritten[name][places] if rewritten[name].ndim else rewritten[name]
        if self.on_read is not None:
            self.on_read(rows.nbytes)
        return rows

    def _vectors(self, component: Component) -> dict[str, Tensor]:
        return {name: self._given(name) for name in component.vectors}

    def _given(self, name: str, places: Places = slice(None)) -> Tensor:
        rows = self.source.rows(name, places).to(self.dtype(name))
        if not all_finite(rows):
            raise FoldError(f"{name!r} holds NaN or infinity.")
        return rows

    def _rewritten(self, component: Component) -> Mapping[str, Tensor]:
        """Return the tensors of a component, rewritten; the last ones are kept, or all in files."""
        if component.tensors not in self._kept:
            self._keep(component, self._rewrite(component)[0])
            self.release()
        return self._kept[component.tensors]

    def _keep(self, component: Component, rewritten: dict[str, Tensor]) -> None:
        if self.scratch is not None:
            path = self.scratch / f"{len(list(self.scratch.iterdir()))}.safetensors"
            write_weights(path, rewritten)
            self._kept[component.tensors] = open_checkpoint(path)
            return
        self._kept[component.tensors] = rewritten
        while sum(tensor.numel() for kept in self._kept.values() for tensor in kept.values()) > self._room:
            del self._kept[next(iter(self._kept))]

    def _rewrite(self, component: Component) -> tuple[dict[str, Tensor], Taken, list[BalancedSpace]]:
        """Rewrite a component, and return its tensors, what its folds took out and how its spaces were balanced."""
        wide = WideWeights({name: self._given(name) for name in component.tensors} | self._vectors(component))
        taken = fold_weights(wide, component.folds)
        if self.like is None:
            spaces = balance_weights(wide, self.graph, component.balances)
        else:
            spaces = follow_balances(wide, self.graph, [self.like[balance] for balance in component.balances])
        rounded = wide.rounded()
        return {name: rounded[name] for name in component.tensors}, taken, spaces

    @cached_property
    def _changes(self) -> tuple[dict[object, tuple[Tensor, ...]], dict[AnyBalance, BalancedSpace]]:
        """What folds took out, and how spaces were balanced; all that is not rewritten by rows is rewritten for it."""
        taken: dict[object, tuple[Tensor, ...]] = {}
        spaces: dict[AnyBalance, BalancedSpace] = {}
        for component in self.components:
            if component.is_rewritten and not component.by_rows:
                rewritten, old, balanced = self._rewrite(component)
                if self.scratch is not None:
                    self._keep(component, rewritten)
                taken |= {_what(fold): vectors for fold, vectors in old if not isinstance(fold, Mean)}
                spaces |= {space.balance: space for space in balanced}
                self.release()
        return taken, spaces

    @property
    def spaces(self) -> tuple[BalancedSpace, ...]:
        """How each space was balanced."""
        return tuple(self._changes[1][balance] for balance in self.balances)

    @property
    def taken(self) -> Taken:
        """The vectors that folds took out; nothing for means, which have a number for each row of a tensor."""
        return tuple((fold, self._changes[0].get(_what(fold), ())) for fold in self.graph.folds)

    @cached_property
    def untied(self) -> dict[str, str]:
        """Heads that the source has tied to an embedding, whose name stands beside them."""
        source = self.source
        return {
            head: tied
            for head, tied in untied_heads(self.graph.folds).items()
            if all(torch.equal(source.rows(head, span), source.rows(tied, span)) for span in source.spans(head))
        }


def _what(fold: Fold) -> object:
    """Return what a fold takes out, by which it is known when it is restricted to some tensors."""
    return type(fold), next(tensors_of(fold)), fold.bias if isinstance(fold, Zero | Through) else None


def folding_bytes(networks: Sequence[StoredNetwork], balances: Sequence[AnyBalance]) -> int:
    """Return the bytes that rewriting networks of one graph takes, beside what reads them.

    Raises:
        FoldError: That is more than their limit of memory. The message names the tensors that are rewritten together.
    """
    graph, limit = networks[0].graph, networks[0].budget.memory
    whole = [part for part in components_of(graph, balances) if part.is_rewritten and not part.by_rows]
    wide = {part: 8 * part.numbers(graph) * max([COPIES[b.kind] for b in part.balances], default=3) for part in whole}
    worst = max(whole, key=wide.__getitem__, default=Component(()))
    largest = max([part.numbers(graph) for part in whole], default=0)
    kept = sum(max(network.dtype(name).itemsize for name in graph.tensors) for network in networks)
    sizes = [(graph.instances(b.group), graph.groups[b.group].size, b.kind == "invertible") for b in balances]
    factors = 16 * len(networks) * sum(count * units ** (2 if is_matrix else 1) for count, units, is_matrix in sizes)
    needed = wide.get(worst, 0) + KEPT * kept * largest + factors
    if limit < needed:
        names = list_some([repr(name) for name in worst.tensors], 4)
        raise FoldError(
            f"memory={limit} bytes do not suffice: {names} are folded together, in several copies of 64 bits. Give at "
            f"least {math.ceil(needed / 1e6)} MB."
        )
    return needed
