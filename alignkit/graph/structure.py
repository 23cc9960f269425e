"""The plain value of a graph: tensors, groups, and the facts that follow from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from types import MappingProxyType
from typing import Any

from networkx import Graph, connected_components

from alignkit.arguments import check_arguments
from alignkit.errors import AlignkitError, GraphError, ShapeMismatchError
from alignkit.graph.kinds import KINDS, PLANES, GroupKind, component_count, dimension, log10_component_count
from alignkit.graph.layout import StackPlaces, Units, factor_size
from alignkit.graph.nodes import Group, Provenance, TensorNode
from alignkit.graph.notation import format_layout, is_group_name
from alignkit.graph.rewrite_checks import check_rewrites
from alignkit.graph.rewrites import AnyBalance, Blocked, Fold, in_order
from alignkit.graph.uses import Use, uses_of_block
from alignkit.text import plural, show_value

DEEPEST = 32
"""Maximum number of groups that are nested in one another; networks have two or three."""
_NUMBERS = ("float", "bfloat", "complex")
"""How names of dtypes begin that hold numbers with a sign and with fractions."""


class GraphStructure:
    """The symmetries of an architecture as an immutable value: groups, tensors, and the layout of every axis.

    Everything in `alignkit` that reads a graph takes this type. `SymmetryGraph`, which users make and get, takes the
    same arguments, holds the same invariants, and adds what one does with a graph: bind, verify, draw, write.
    """

    @check_arguments
    def __init__(
        self,
        tensors: Mapping[str, TensorNode],
        groups: Mapping[str, Group],
        provenance: Provenance | None = None,
        folds: Sequence[Fold] = (),
        balances: Sequence[AnyBalance] = (),
        blocked: Sequence[Blocked] = (),
    ) -> None:
        for values, kind in ((tensors, TensorNode), (groups, Group)):
            for name, value in values.items():
                if not isinstance(name, str) or not isinstance(value, kind):
                    found = f"{show_value(name)}: {show_value(value)}"
                    raise GraphError(f"a graph is made of a {kind.__name__} for each name, found {found}.")
        self._tensors = MappingProxyType(dict(tensors))
        self._groups = MappingProxyType(dict(groups))
        self._provenance = provenance or Provenance()
        self._folds, self._balances, self._blocked = in_order(folds), tuple(balances), tuple(blocked)
        for name, group in groups.items():
            if not is_group_name(name):
                rule = "letters, digits and '_.-/' are allowed, and not digits alone. '__metadata__' is reserved"
                raise GraphError(f"{name!r} is not a name for a group: {rule}.")
            if group.size < 1:
                raise GraphError(f"group {name!r} has {group.size} units. Leave an empty group out.")
            if group.parent is not None and group.parent not in groups:
                raise GraphError(f"group {name!r} is nested in {group.parent!r}, which is not a group of this graph.")
            if name in tensors:
                raise GraphError(f"{name!r} is the name of a group and of a tensor. Rename the group.")
            self._check_kind(group)
        self._mentions: dict[str, Units] = {}
        self._children: dict[str, tuple[str, ...]] = {}
        for name, group in groups.items():
            if group.parent is not None:
                self._children[group.parent] = (*self._children.get(group.parent, ()), name)
            chain = [name]
            while (parent := groups[chain[-1]].parent) is not None:
                if parent in chain:
                    raise GraphError(f"groups {' -> '.join((*chain, parent))} are nested in a circle.")
                chain.append(parent)
                check_depth(chain)
        for node in tensors.values():
            self._check_layout(node)
        check_rewrites(tensors, groups, self._folds, self._balances)

    @property
    def tensors(self) -> Mapping[str, TensorNode]:
        """Tensor nodes with resolved layouts, by their first names."""
        return self._tensors

    @property
    def groups(self) -> Mapping[str, Group]:
        """The groups, by name."""
        return self._groups

    @property
    def mentions(self) -> Mapping[str, Units]:
        """What the layouts mention, by name: groups, stacks, and families of which each place of a stack has a copy."""
        return MappingProxyType(self._mentions)

    @property
    def provenance(self) -> Provenance:
        """Where the graph comes from."""
        return self._provenance

    @property
    def folds(self) -> tuple[Fold, ...]:
        """What has to be done to weights before the graph holds for them, in order; see `alignkit.fold`."""
        return self._folds

    @property
    def balances(self) -> tuple[AnyBalance, ...]:
        """Spaces with scales or matrices that `alignkit.fold` brings to one place in every network."""
        return self._balances

    @property
    def blocked(self) -> tuple[Blocked, ...]:
        """Parameters that cannot be folded, each with the reason."""
        return self._blocked

    def _check_kind(self, group: Group) -> None:
        """Check that a group is of a kind that there is, and that its size and its parent go with it."""
        if group.kind not in KINDS:
            raise GraphError(f"group {group.name!r} is of kind {group.kind!r}. The kinds are {', '.join(KINDS)}.")
        if group.kind in PLANES and group.size % 2:
            units = f"group {group.name!r} is {KINDS[group.kind]}, but has {group.size} units"
            raise GraphError(f"{units}: their number has to be even.")
        if group.parent is not None and self.groups[group.parent].kind != "permutation":
            parent = f"{group.parent!r}, which is {KINDS[self.groups[group.parent].kind]}"
            raise GraphError(f"group {group.name!r} is nested in {parent}. Only units that are permuted own others.")

    def _check_layout(self, node: TensorNode) -> None:
        """Check the layout of a tensor against its shape and the groups."""
        for index, unit in ((i, unit) for i, axis in enumerate(node.layout) for unit in axis.units()):
            where = f"tensor {node.name!r}, axis {index}"
            for name, parent in node.mentions.get(unit.group, {}).items():
                group = self.groups.get(name)
                if group is None:
                    problem = f"mentions group {name!r}, which is not a group of this graph"
                    raise GraphError(f"tensor {node.name!r} {problem}.")
                if unit.kind != group.kind:
                    here = f"group {name!r} is {KINDS[unit.kind]} here, but {KINDS[group.kind]} in the graph"
                    raise GraphError(f"{where}: {here}. Write the same mark everywhere.")
                if group.kind != "permutation" and node.dtype and not node.dtype.startswith(_NUMBERS):
                    moved = f"group {name!r} is {KINDS[group.kind]}, but the tensor holds {node.dtype}"
                    raise GraphError(f"{where}: {moved}. Only permutations act on whole numbers.")
                if (unit.size, parent) != (group.size, group.parent):
                    here = f"{unit.size} units and the parent {parent!r} here"
                    there = f"{group.size} and {group.parent!r}"
                    raise GraphError(f"{where}: group {name!r} has {here}, but the graph says {there}.")
            if (known := self._mentions.setdefault(unit.group, unit)) != unit:
                raise GraphError(f"{where}: {unit.group!r} is {unit} here, but {known} elsewhere. Use another name.")
            if isinstance(unit, StackPlaces) and unit.group in {*self.groups, *self.tensors}:
                raise GraphError(f"{where}: {unit.group!r} is the name of a stack and of a group or tensor. Rename it.")
        if (sizes := tuple(map(factor_size, node.layout))) != node.shape:
            raise ShapeMismatchError(f"tensor {node.name!r} has shape {node.shape}, but its layout makes {sizes}.")

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Groups without a parent; each root and its descendants form a tree."""
        return tuple(name for name, group in self.groups.items() if group.parent is None)

    def children(self, group: str) -> tuple[str, ...]:
        """List the groups whose parent is ``group``."""
        return self._children.get(group, ())

    def ancestors(self, group: str) -> tuple[str, ...]:
        """List the parents of a group, outermost first."""
        parent = self.groups[group].parent
        return () if parent is None else (*self.ancestors(parent), parent)

    def tree(self, root: str) -> tuple[str, ...]:
        """Walk a group and its descendants, parents before children; reversed, children before parents."""
        return (root, *(name for child in self.children(root) for name in self.tree(child)))

    @cached_property
    def parents_first(self) -> tuple[str, ...]:
        """All groups, one tree after the other, parents before children."""
        return tuple(name for root in self.roots for name in self.tree(root))

    def element_shape(self, group: str) -> tuple[int, ...]:
        """Return the shape of a group's element in an alignment: the sizes of its ancestors, then its own.

        Its own stands twice where the element is a matrix.
        """
        return (*self.unit_shape(group), *[self.groups[group].size] * self.rotates(group))

    def unit_shape(self, group: str) -> tuple[int, ...]:
        """Return the shape of one number for each unit of a group: the sizes of its ancestors, then its own."""
        return (*(self.groups[name].size for name in self.ancestors(group)), self.groups[group].size)

    def instances(self, group: str) -> int:
        """Return the number of copies of the group: the number of units of its parent, 1 for a root."""
        return math.prod(self.unit_shape(group)[:-1])

    def unit_count(self, group: str) -> int:
        """Return the number of units of a group over all parents."""
        return math.prod(self.unit_shape(group))

    @cached_property
    def order(self) -> int:
        """Number of connected parts of the symmetry group, exactly: of its elements where no group rotates."""
        return math.prod(component_count(g.kind, g.size) ** self.instances(n) for n, g in self.groups.items())

    @cached_property
    def log10_order(self) -> float:
        """Decimal logarithm of `order`; 0 for a graph without groups."""
        return sum(self.instances(n) * log10_component_count(g.kind, g.size) for n, g in self.groups.items())

    @cached_property
    def dimension(self) -> int:
        """Dimension of the symmetry group: the number of its free continuous parameters, 0 where no group rotates."""
        return sum(self.instances(name) * dimension(g.kind, g.size) for name, g in self.groups.items())

    def rotates(self, group: str) -> bool:
        """Tell whether the elements of a group are matrices, see `alignkit.graph.kinds`."""
        return KINDS[self.groups[group].kind].rotates

    def check_kinds(
        self,
        who: str,
        error: type[AlignkitError],
        advice: str = "Take a graph of permutations alone.",
        kinds: Collection[GroupKind] = frozenset({"permutation"}),
    ) -> None:
        """Raise an error of a class where a group is of none of some kinds; ``who`` begins its sentence."""
        for group in self.groups.values():
            if group.kind not in kinds:
                raise error(f"{who} cannot take group {group.name!r}, which is {KINDS[group.kind]}. {advice}")

    @cached_property
    def first_names(self) -> Mapping[str, str]:
        """The first name of each tensor by every name that it has: tied tensors share one."""
        return MappingProxyType({name: node.name for node in self.tensors.values() for name in node.names})

    @cached_property
    def uses(self) -> Mapping[str, tuple[Use, ...]]:
        """Where each group acts, block by block; see `alignkit.graph.uses`."""
        uses: dict[str, list[Use]] = {name: [] for name in self.groups}
        for name, block in ((node.name, block) for node in self.tensors.values() for block in node.blocks):
            for use in uses_of_block(name, block):
                uses[use.group].append(use)
        return MappingProxyType({name: tuple(of_group) for name, of_group in uses.items()})

    @cached_property
    def copies(self) -> Mapping[str, tuple[str, ...]]:
        """The groups that each name in the layouts stands for: itself, or one group for each place of its stack."""
        nodes = self.tensors.values()
        return MappingProxyType({name: tuple(groups) for node in nodes for name, groups in node.mentions.items()})

    def tensors_of(self, group: str) -> tuple[str, ...]:
        """List the names of the tensors on which a group acts."""
        return tuple(name for name, node in self.tensors.items() if group in node.groups)

    @cached_property
    def uncovered(self) -> tuple[str, ...]:
        """Names of the tensors, scalars left out, on which no group acts."""
        return tuple(name for name, node in self.tensors.items() if node.shape and not node.groups)

    @cached_property
    def _adjacency(self) -> Mapping[str, tuple[str, ...]]:
        """Groups that meet in one block. Groups in different segments of one axis do not meet."""
        others = {name: {other for use in uses for other in use.others} for name, uses in self.uses.items()}
        return {name: tuple(sorted(met - {name})) for name, met in others.items()}

    def neighbours(self, group: str) -> tuple[str, ...]:
        """List groups that meet ``group`` in a block; groups that do not meet can be updated at the same time."""
        return self._adjacency[group]

    def components(self) -> tuple[frozenset[str], ...]:
        """List independent subproblems: sets of groups that no tensor couples with the rest."""
        return tuple(frozenset(names) for names in connected_components(Graph(self._adjacency)))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of groups and layouts: equal for two graphs exactly when alignments can be exchanged."""
        facts: dict[str, Any] = {
            "groups": sorted((g.name, g.size, g.parent, g.kind) for g in self.groups.values()),
            "tensors": sorted((sorted(t.names), list(t.shape), format_layout(t.layout)) for t in self.tensors.values()),
        }
        rewrites = {"folds": self.folds, "balances": self.balances}
        # Left out where there are none, so that alignments that earlier releases saved fit their graphs.
        facts |= {key: [[type(r).__name__, asdict(r)] for r in listed] for key, listed in rewrites.items() if listed}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GraphStructure) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        # Mapping proxies cannot be pickled; the constructor makes them anew.
        rewrites = (self.folds, self.balances, self.blocked)
        return (type(self), (dict(self.tensors), dict(self.groups), self.provenance, *rewrites))

    @property
    def summary(self) -> str:
        """Numbers of tensors, groups, families and symmetries, in one line."""
        families = plural(len(self.groups) - len(self.roots), "family", "families")
        counts = f"{plural(len(self.tensors), 'tensor')}, {plural(len(self.roots), 'group')}, {families}"
        return f"{counts}, {self.extent}"

    @property
    def extent(self) -> str:
        """Number of symmetries, and dimension where groups rotate, as words."""
        rotations = f" of {plural(self.dimension, 'dimension')}" if self.dimension else ""
        return f"10^{self.log10_order:.1f} symmetries{rotations}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary})"


def check_depth(chain: Sequence[str]) -> None:
    """Raise `GraphError` for a group and its ancestors that are nested deeper than any network needs."""
    if len(chain) > DEEPEST:
        raise GraphError(f"group {chain[0]!r} is nested in more than {DEEPEST - 1} others, one in another.")
