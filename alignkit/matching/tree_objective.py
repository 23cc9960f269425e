"""Similarities of a whole tree of groups: parents together with the units inside them.

Moving a parent unit carries its children along, so the similarity of two parents is the value of the best assignment
of their children. This module collects the similarities of every pair of units in a tree and solves them from the
inside out (`alignkit.matching.families` has an example with 2 heads of 2 units).

Where two children of one parent meet in one block, as inputs and outputs of a grouped convolution do, the inner
problem is bilinear. Example: ``"(g o[g]) i[g] ."`` with 2 groups of 2 outputs and 2 inputs. For group ``p`` of A and
``q`` of B the value ``sum A[p, o, i, r] O[o, o'] I[i, i'] B[q, o', i', r]`` holds a product of both orders. Each child
is assigned given the others, twice: first with the others averaged, then with the others in the order just found.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.elements.element import as_matrix
from alignkit.graph.uses import Use
from alignkit.matching.families import read_off, split_pairs
from alignkit.matching.objective import Elements, Objective
from alignkit.matching.oracles import best_of_kind, value_of


class TreeObjective:
    """The update of the tree of groups under a root, all groups outside it being fixed."""

    def __init__(self, objective: Objective, root: str) -> None:
        self.objective, self.graph, self.root = objective, objective.graph, root
        self.members = frozenset(self.graph.tree(root))
        self.plain: dict[str, list[Use]] = {name: [] for name in self.members}
        """Uses of each group where nothing of the tree but its ancestors acts."""
        self.coupled: dict[str, list[Use]] = {name: [] for name in self.members}
        """Uses of each group where it meets what is nested in the same parents."""
        for name in self.members:
            for use in objective.uses[name]:
                if not use.is_innermost:
                    continue  # A deeper group of the tree speaks for this use.
                (self.coupled if use.branches else self.plain)[name].append(use)

    def propose(self, elements: Elements) -> dict[str, Tensor]:
        """Find the best element of the tree, given indices for the groups outside it; None counts as unknown.

        Exact when no two groups of the tree meet off a chain; a heuristic, to be checked by value, otherwise.
        """
        return read_off(self.graph, self.graph.tree(self.root), self.best_pairs(elements))

    def best_pairs(self, elements: Elements) -> dict[str, Tensor]:
        """Find the best element of each group for every pair of parents, ``[p, p, n]``; matrices ``[p, p, n, n]``."""
        pairs: dict[str, Tensor] = {}
        pairs[self.root] = self._best(self.root, self._matrices(self.root, elements, pairs))
        return pairs

    def _best(self, name: str, matrices: Float[Tensor, "p p n n"]) -> Tensor:
        return best_of_kind(self.graph.groups[name].kind, matrices)

    def _matrices(self, name: str, elements: Elements, pairs: dict[str, Tensor]) -> Float[Tensor, "p p n n"]:
        """Similarities of a group's units, by their own weights and by the best order of what they contain."""
        units = self.graph.unit_count(name)
        total = self._values_of_children(name, elements, pairs) + torch.zeros(units, units, dtype=torch.float64)
        if self.plain[name]:
            total += self.objective.plain_similarity(name, elements).cpu()
        return split_pairs(total, self.graph.groups[name].size)

    def _values_of_children(self, parent: str, elements: Elements, pairs: dict[str, Tensor]) -> Tensor:
        """Assign the children of each pair of the parent's units, into ``pairs``; the sum of their values."""
        children, outside = self.graph.children(parent), {**elements, **dict.fromkeys(self.members)}
        plain = {name: self._matrices(name, elements, pairs) for name in children}
        for name in children:
            averaged = [self.objective.pair_similarity(use, outside) for use in self.coupled[name]]
            size = self.graph.groups[name].size
            extra = sum((split_pairs(m.cpu().double(), size) for m in averaged), start=torch.zeros(()))
            pairs[name] = self._best(name, plain[name] + extra)
        values = torch.zeros((), dtype=torch.float64)
        for at, name in enumerate(children):
            matrices = owned = plain[name]
            for use in self.coupled[name]:
                extra = self._coupled_similarity(use, elements, pairs).cpu().double()
                matrices = matrices + extra
                # A use where siblings meet counts once: for the last of them, when all others are settled.
                met = {use.block.dims[i].group for i in use.branches}
                owned = owned if met & set(children[at + 1 :]) else owned + extra
            if self.coupled[name]:
                pairs[name] = self._best(name, matrices)
            values = values + value_of(self.graph.groups[name].kind, owned, pairs[name])
        return values

    def _coupled_similarity(self, use: Use, elements: Elements, pairs: dict[str, Tensor]) -> Float[Tensor, "p p n n"]:
        """Return similarities for each pair of parents, siblings in the block being ordered as ``pairs`` says.

        In the example, for ``o`` with ``I`` of ``pairs["i"][p, q]``::

            similarity[p, q, o, o'] = sum_ir A[p, o, i, r] B[q, o', I[i], r]

        An element that depends on both parents is a matrix for each pair of them; what is nested deeper than a sibling
        is averaged.
        """
        dims = use.block.dims
        siblings = {str(dims[i].group) for i in use.branches if dims[i].ancestors == dims[use.at].ancestors}
        orders = {name: pairs[name] if pairs[name].is_floating_point() else as_matrix(pairs[name]) for name in siblings}
        given = {**elements, **dict.fromkeys(self.members), **orders}
        return split_pairs(self.objective.pair_similarity(use, given), dims[use.at].size)
