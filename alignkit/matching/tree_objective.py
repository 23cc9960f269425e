"""Similarities of a whole tree of groups: parents together with the units inside them.

Moving a parent unit carries its children along, so the similarity of two parents is the value of the best assignment
of their children. This module collects the similarities of every pair of units in a tree and solves them from the
inside out. Where two children of one parent meet in one block (a grouped convolution: outputs and inputs of a group),
the inner problem is bilinear: each child is assigned given the others, twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.elements.action import act_on_block
from alignkit.graph.uses import Use
from alignkit.matching.assignment import assignment_value, linear_assignment
from alignkit.matching.families import read_off, split_pairs
from alignkit.matching.objective import Elements, Objective, unknown_dims


class TreeObjective:
    """The update of one tree of groups, all groups outside it being fixed.

    Args:
        objective: The objective of the pair.
        root: A group without a parent.
    """

    def __init__(self, objective: Objective, root: str) -> None:
        self.objective, self.graph, self.root = objective, objective.graph, root
        self.members = frozenset(self.graph.tree(root))
        self.plain: dict[str, list[Use]] = {name: [] for name in self.members}
        self.coupled: dict[str, list[Use]] = {name: [] for name in self.members}
        for name in self.members:
            for use in self.graph.uses[name]:
                if not use.is_innermost:
                    continue  # A deeper group of the tree speaks for this use.
                (self.coupled if self.branches(use) else self.plain)[name].append(use)

    def branches(self, use: Use) -> tuple[int, ...]:
        """Positions off the chain of dims that are nested in a unit on the chain."""
        dims = use.block.dims
        return tuple(i for i in use.rest if set(dims[i].ancestors) & set(use.chain))

    def propose(self, elements: Elements) -> dict[str, Tensor]:
        """The best element of the tree, given indices for the groups outside it; None counts as unknown.

        Exact when no two groups of the tree meet off a chain; a heuristic, to be checked by value, otherwise.
        """
        solving = _Solving(self, elements)
        solving.solve_root()
        return read_off(self.graph, self.root, solving.pairs)

    def pair_similarity(self, use: Use, elements: Elements) -> Float[Tensor, "units units"]:
        """Similarities over all pairs of units at one place; what branches off the chain is averaged."""
        a, b = self._sides(use, elements, average=self.branches(use))
        return a.reshape(use.unit_count, -1) @ b.reshape(use.unit_count, -1).mT

    def coupled_similarity(self, use: Use, elements: Elements, pairs: dict[str, Tensor]) -> Float[Tensor, "p p n n"]:
        """Similarities for each pair of parents, siblings at the same place being ordered as ``pairs`` says."""
        dims = use.block.dims
        siblings = [i for i in self.branches(use) if dims[i].ancestors == dims[use.at].ancestors]
        average = tuple(i for i in self.branches(use) if i not in siblings)
        a, b = self._sides(use, elements, average)
        parents = prod(d.size for d in (dims[i] for i in dims[use.at].ancestors))
        a, b = (side.reshape(parents, *side.shape[len(use.chain) - 1 :]) for side in (a, b))
        rows = []
        for parent in range(parents):
            ordered = b
            for i in siblings:
                at = 2 + use.rest.index(i)
                shape = [1] * ordered.ndim
                shape[0], shape[at] = ordered.shape[0], ordered.shape[at]
                index = pairs[str(dims[i].group)][parent].to(b.device).reshape(shape)
                ordered = torch.take_along_dim(ordered, index, at)
            rows.append(torch.einsum("nr,pmr->pnm", a[parent].flatten(1), ordered.flatten(2)))
        return torch.stack(rows)

    def _sides(self, use: Use, elements: Elements, average: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """A and B at one place, the chain first and unordered; ``average`` and unknown dims are averaged, kept as 1."""
        dims = use.block.dims
        branches = frozenset(self.branches(use))
        averaged = frozenset(average) | (unknown_dims(use, elements) - branches)
        known = {
            d.group: elements[d.group]
            for i, d in enumerate(dims)
            if d.group and i in use.rest and i not in averaged | branches
        }
        a = use.block.view(self.objective.a[use.tensor])
        b = use.block.view(self.objective.b[use.tensor])
        b = act_on_block(use.block, b, known, skip=averaged | branches | set(use.chain))  # type: ignore[arg-type]
        if averaged:
            a, b = a.sum(tuple(averaged), keepdim=True), b.mean(tuple(averaged), keepdim=True)
        order = (*use.chain, *use.rest)
        return a.permute(order), b.permute(order)


@dataclass
class _Solving:
    """One pass from the leaves to the root; ``pairs`` collects the assignments for every pair of parents."""

    tree: TreeObjective
    elements: Elements
    pairs: dict[str, Tensor] = field(default_factory=dict)

    def solve_root(self) -> None:
        """Assign every group of the tree."""
        self.pairs[self.tree.root] = linear_assignment(self.matrices(self.tree.root))

    def matrices(self, name: str) -> Float[Tensor, "p p n n"]:
        """Similarities of a group's units, by their own weights and by the best order of what they contain."""
        graph = self.tree.graph
        units = graph.unit_count(name)
        total = self.values_of_children(name) + torch.zeros(units, units, dtype=torch.float64)
        for use in self.tree.plain[name]:
            total += self.tree.pair_similarity(use, self.elements).cpu().double()
        return split_pairs(total, graph.groups[name].size)

    def values_of_children(self, parent: str) -> Float[Tensor, "units units"]:
        """Assign the children of each pair of the parent's units; the sum of their values, 0 without children."""
        children = self.tree.graph.children(parent)
        plain = {name: self.matrices(name) for name in children}
        for name in children:
            averaged = [self.tree.pair_similarity(use, self.elements) for use in self.tree.coupled[name]]
            size = self.tree.graph.groups[name].size
            extra = sum((split_pairs(m.cpu().double(), size) for m in averaged), start=torch.zeros(()))
            self.pairs[name] = linear_assignment(plain[name] + extra)
        values = torch.zeros((), dtype=torch.float64)
        for at, name in enumerate(children):
            matrices = owned = plain[name]
            for use in self.tree.coupled[name]:
                extra = self.tree.coupled_similarity(use, self.elements, self.pairs).cpu().double()
                matrices = matrices + extra
                # A place where siblings meet counts once: for the last of them, when all others are settled.
                met = {use.block.dims[i].group for i in self.tree.branches(use)}
                owned = owned if met & set(children[at + 1 :]) else owned + extra
            if self.tree.coupled[name]:
                self.pairs[name] = linear_assignment(matrices)
            values = values + assignment_value(owned, self.pairs[name])
        return values
