"""Where the features of a weight-space network live, and how they meet: facts that follow from a graph alone.

A domain is a set of combinations of units: the units of one group, or all pairs of units that a weight matrix
connects. Blocks of tensors with the same units share a domain; what no group moves becomes channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import prod

from torch import Tensor

from alignkit.graph import Block, Dim, SymmetryGraph


@dataclass(frozen=True)
class Domain:
    """Combinations of units, one dimension for each mention of a group.

    Attributes:
        groups: The group of each dimension.
        ancestors: For each dimension the positions of the dimensions of its group's parents, outermost first.
        sizes: Number of units along each dimension.
    """

    groups: tuple[str, ...]
    ancestors: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]

    def chain(self, at: int) -> tuple[int, ...]:
        """Return the positions of the parents of a dimension, and of the dimension itself."""
        return (*self.ancestors[at], at)

    @property
    def is_group(self) -> bool:
        """Whether its combinations are the units of one group, over all parents."""
        return self.chain(len(self.groups) - 1) == tuple(range(len(self.groups)))


@dataclass(frozen=True)
class FeaturePlacement:
    """A part of a tensor whose elements are features on a domain.

    Attributes:
        tensor: Name of the tensor.
        block: The part.
        domain: Number of the domain.
    """

    tensor: str
    block: Block
    domain: int

    @cached_property
    def fixed(self) -> tuple[int, ...]:
        """Positions of the dims that no group moves."""
        return tuple(i for i, dim in enumerate(self.block.dims) if dim.group is None)

    @property
    def channels(self) -> int:
        """Number of features of one combination of units."""
        return prod(self.block.dims[i].size for i in self.fixed)

    def features(self, tensor: Tensor) -> Tensor:
        """Read the features, ``[batch, channels, *sizes]``, of tensors stacked along a first axis."""
        dims = (Dim(0, len(tensor), 1), *(Dim(d.axis + 1, d.size, d.stride) for d in self.block.dims))
        part = Block((0, *self.block.offsets), dims).view(tensor)
        moved = [i + 1 for i in range(len(self.block.dims)) if i not in self.fixed]
        part = part.permute(0, *(i + 1 for i in self.fixed), *moved)
        return part.reshape(len(tensor), self.channels, *part.shape[len(self.fixed) + 1 :])


@dataclass(frozen=True)
class Incidence:
    """The units of a group as a face of a larger domain: features are averaged onto it and broadcast from it.

    Attributes:
        domain: Number of the larger domain.
        group: Number of the domain of the group's units.
        chain: Positions, in the larger domain, of the group and its parents.
        tied: Pairs of positions that have to agree; empty, or the diagonal of a domain that mentions a group twice.
    """

    domain: int
    group: int
    chain: tuple[int, ...]
    tied: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Incidences:
    """All domains of a graph and how they meet.

    Attributes:
        domains: The domains; that of each group is among them.
        units: For each group the number of its domain.
        placements: What is read from tensors.
        faces: Where groups meet larger domains, diagonals included.
        swaps: For each domain the exchanges of dimensions, as orders of all dimensions, that commute with the group.
    """

    domains: tuple[Domain, ...]
    units: dict[str, int]
    placements: tuple[FeaturePlacement, ...]
    faces: tuple[Incidence, ...]
    swaps: tuple[tuple[tuple[int, ...], ...], ...]


def find_incidences(graph: SymmetryGraph) -> Incidences:
    """Find the domains of a graph and how they meet.

    Example: ``fc2.weight`` with layout ``"h2 h1"`` gives one domain of pairs ``(h2, h1)`` beside the domains of the two
    groups. Its faces are ``h2`` with ``chain = (0,)`` and ``h1`` with ``chain = (1,)``: features of pairs are averaged
    over ``h1`` to become features of ``h2``, and the other way round.

    With own features, faces and swaps they span, for two different groups on a block, all affine equivariant maps up
    to invariant terms ([Navon23], the layers of DWSNets); for a group that meets itself the transpose and the
    diagonal come on top, and more than two dims or families get the part of the span that passes through single groups.
    """
    numbers: dict[Domain, int] = {}
    units = {}
    for name in graph.groups:
        chain = (*graph.ancestors(name), name)
        domain = Domain(chain, tuple(tuple(range(i)) for i in range(len(chain))), graph.element_shape(name))
        units[name] = numbers.setdefault(domain, len(numbers))
    placements = []
    for name, block in ((name, block) for name, node in graph.tensors.items() for block in node.blocks if block.groups):
        moved = [i for i, dim in enumerate(block.dims) if dim.group is not None]
        dims = [block.dims[i] for i in moved]
        ancestors = tuple(tuple(moved.index(a) for a in dim.ancestors) for dim in dims)
        domain = Domain(tuple(str(dim.group) for dim in dims), ancestors, tuple(dim.size for dim in dims))
        placements.append(FeaturePlacement(name, block, numbers.setdefault(domain, len(numbers))))
    meetings = [_meet(number, domain, units) for domain, number in numbers.items()]
    faces = tuple(face for own, _ in meetings for face in own)
    return Incidences(tuple(numbers), units, tuple(placements), faces, tuple(swaps for _, swaps in meetings))


def _meet(number: int, domain: Domain, units: dict[str, int]) -> tuple[list[Incidence], tuple[tuple[int, ...], ...]]:
    """Find the faces of a domain, and the exchanges of its dimensions that commute with the group."""
    count = len(domain.groups)
    chains = [domain.chain(at) for at in range(count)]
    faces = [Incidence(number, units[domain.groups[at]], chains[at]) for at in range(count) if len(chains[at]) < count]
    swaps = []
    for left, right in combinations(range(count), 2):
        if domain.groups[left] != domain.groups[right]:
            continue
        pairs = tuple(zip(chains[left], chains[right], strict=True))
        faces.append(
            Incidence(number, units[domain.groups[left]], chains[left], tuple(p for p in pairs if p[0] != p[1]))
        )
        order = list(range(count))
        for u, v in pairs:
            order[u], order[v] = v, u
        # Children have to go with their parents, or the exchange would tear units out of them.
        if all(domain.ancestors[o] == tuple(order[a] for a in domain.ancestors[i]) for i, o in enumerate(order)):
            swaps.append(tuple(order))
    return faces, tuple(dict.fromkeys(swaps))
