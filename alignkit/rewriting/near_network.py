"""`NearNetwork`: a network that stays on disk, its phases brought near those of another one when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod

import torch
from networkx import Graph, connected_components
from torch import Tensor

from alignkit.errors import FoldError
from alignkit.graph.parts import Places
from alignkit.graph.phases import phases_in
from alignkit.graph.stored import StoredNetwork
from alignkit.rewriting.near_phases import bring_near
from alignkit.rewriting.wide import WideWeights
from alignkit.text import list_some

COPIES = 5
"""Copies in 64 bits of tensors whose units are moved together that may be alive at once."""


class NearNetwork(StoredNetwork):
    """Another stored network whose biases are moved by the half periods that bring it nearest to a reference.

    Tensors on which units act whose biases move are held together; every number is that which `bring_near` gives for
    the whole network.

    Args:
        source: A network whose units are in the order of the reference.
        reference: The network to which it is brought near.

    Raises:
        FoldError: The limit of memory does not suffice.
    """

    def __init__(self, source: StoredNetwork, reference: StoredNetwork) -> None:
        super().__init__(source.graph, source.budget)
        self.source, self.reference = source, reference
        links: Graph = Graph()
        for phase in phases_in(self.graph):
            names = list(self.graph.tensors_of(phase.group))
            links.add_nodes_from(names)
            links.add_edges_from(pairwise([*names, *phase.factors]))
        parts = [frozenset(part) for part in connected_components(links)]
        self._part_of: dict[str, frozenset[str]] = {str(name): part for part in parts for name in part}
        self._kept: tuple[frozenset[str], Mapping[str, Tensor]] = (frozenset(), {})
        for part in parts:
            needed = 8 * COPIES * sum(prod(self.graph.tensors[name].shape) for name in part)
            if needed > self.budget.memory:
                listed = list_some([repr(name) for name in sorted(part)], 4)
                raise FoldError(
                    f"memory={self.budget.memory} bytes do not suffice: phases of {listed} are brought near those of "
                    f"the first network together, in several copies of 64 bits. Give at least {needed / 1e6:.2g} MB."
                )

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self.source.dtype(name)

    def rows(self, name: str, places: Places) -> Tensor:
        """Return some rows of a tensor; of one without axes all of it."""
        part = self._part_of.get(name)
        if part is None:
            return self.source.rows(name, places)
        if self._kept[0] != part:
            wide = WideWeights({other: self.source[other] for other in sorted(part)})
            phases = [phase for phase in phases_in(self.graph) if phase.bias.tensor in part]
            bring_near(wide, self.graph, {other: self.reference[other] for other in sorted(part)}, phases)
            self._kept = part, wide.rounded()
            self.release()
        kept = self._kept[1][name]
        return kept[places] if kept.ndim else kept
