"""The alignment objective on doubly stochastic matrices: values, gradients and exact steps for Frank-Wolfe.

The relaxed variable of a group is its *mass*: the shares of B's units (columns) at A's places (rows), over all parents,
``[units, units]``. Masses of the elements of a tree of families are the corners of a convex set, and a linear function
of masses is maximised over it by nested assignment. Along a line of masses the objective is a polynomial of low degree.

Example, carried through this module: a tensor of layout ``"(heads d[heads]) model"`` with 2 heads of 2 units. With
``H`` the matrix of ``heads``, ``D`` that of ``d`` and ``M`` that of ``model``, its term of the objective is ::

    <A, P # B> = sum A[p, i, m] H[p, q] D[p, q, i, j] M[m, n] B[q, j, n]    over places p, i, m and sources q, j, n

The mass of ``d`` is ``H[p, q] D[p, q, i, j]``, a ``[4, 4]`` matrix with row ``2 p + i`` and column ``2 q + j``; the
masses of ``heads`` and ``model`` are ``H`` and ``M``. The term is linear in the masses of ``d`` and of ``model``:
its degree is 2.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.checkpoints.fit import is_number
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.layout import Block
from alignkit.graph.parts import Network, as_tensors, parts_of_block
from alignkit.graph.symmetry_graph import Pair
from alignkit.graph.uses import Use, uses_of_block
from alignkit.matching.families import split_pairs, unit_masses
from alignkit.matching.objective import divided
from alignkit.matching.products import Product
from alignkit.matching.soft_alignment import SoftAlignment

Masses: TypeAlias = Mapping[str, Float[Tensor, "units units"]]
"""For each group the shares of B's units at A's places, over all parents."""

SAMPLES = 6
"""Degree of the polynomial that stands in for the objective where branches of a family meet; there it is rational."""
_NO_SHARE = 1e-12
"""Shares below this are none: what is divided by them would be rounding."""


@dataclass(frozen=True, eq=False)
class Term:
    """One block of one tensor."""

    tensor: str
    block: Block

    @cached_property
    def uses(self) -> tuple[tuple[Use, int], ...]:
        """Where groups act, each with the sign of its derivative; uses of sign 0 are left out.

        The sign is 1 where nothing is nested in the use, and ``1 - k`` where ``k`` branches of a family start, because
        each of them counts the mass of the parent: with two, ``x`` and ``y``, the term holds
        ``H D_x D_y = X Y / H`` in the masses ``X = H D_x`` and ``Y = H D_y``; its derivative by ``H`` is
        ``-X Y / H^2``. In the example ``k`` is 1 for ``heads``, and only ``d`` and ``model`` are left.
        """
        branches = Counter(dim.ancestors[-1] for dim in self.block.dims if dim.ancestors)
        uses = uses_of_block(self.tensor, self.block)
        return tuple((use, 1 - branches[use.at]) for use in uses if branches[use.at] != 1)

    @cached_property
    def leaves(self) -> tuple[Use, ...]:
        """Uses in which nothing is nested."""
        return tuple(use for use, sign in self.uses if sign > 0)

    @cached_property
    def degree(self) -> int | None:
        """Degree of the term in the masses; None where branches of a family meet."""
        return len(self.leaves) if len(self.leaves) == len(self.uses) else None


@dataclass(frozen=True, eq=False)
class Point:
    """A point of the relaxed set: matrices as in `SoftAlignment`, and the masses that they amount to."""

    matrices: Mapping[str, Tensor]
    masses: Masses


@dataclass(frozen=True, eq=False)
class Gradient:
    """The objective at a point, and its derivative by the mass of every group."""

    values: Float[Tensor, 2]
    """``<A, P # B>`` over the terms that are parabolas along a line, and over the others; they stay on the device."""
    groups: Mapping[str, Float[Tensor, "units units"]]
    """Zeros for a group that acts only through its children."""
    parabolas: Mapping[str, Float[Tensor, "units units"]]
    """The part of ``groups`` that comes from the first kind of terms."""

    @property
    def value(self) -> float:
        """``<A, P # B>`` over all tensors on which groups act."""
        return float(self.values.sum())


class Relaxation:
    """``<A, P # B>`` of one pair for soft ``P``; ``dtype`` is that of the products, sums over tensors are float64.

    Both networks are divided by ``scale``, such as `Objective.scale`; values are then in squares of it.
    """

    def __init__(
        self,
        bound: Pair,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        scale: float = 1.0,
    ) -> None:
        self.bound, self.graph = bound, bound.graph
        self.device, self.dtype, self.scale = torch.device(device), dtype, scale
        self.a, self.b = (as_tensors(side, self.device) for side in (bound.a, bound.b))
        moved = [node for node in self.graph.tensors.values() if node.groups and is_number(self.a.dtype(node.name))]
        self.terms = tuple(Term(node.name, block) for node in moved for block in node.blocks if block.groups)
        self._constant: dict[Use, Tensor] = {}

    def facing(self, a: Mapping[str, Tensor]) -> Relaxation:
        """Return the same B against other tensors in place of A, already on this device and of this type."""
        other = copy.copy(self)
        other.a, other._constant = as_tensors(a, self.device), {}
        return other

    def _factor(self, part: Tensor, _side: int) -> Tensor:
        """Bring a part of A or B to the type of the products."""
        return divided(part, self.scale, self.dtype)

    @cached_property
    def scales(self) -> dict[str, float]:
        """For each group, the size of what two of its units can contribute: ``mean |a_i| * mean |b_j|``."""
        squares = {
            name: torch.zeros(2, self.graph.unit_count(name), dtype=torch.float64, device=self.device)
            for name in self.graph.groups
        }
        for term in self.terms:
            for at, places, parts in parts_of_block(term.tensor, term.block, [(self.a, {}), (self.b, {})]):
                for sums, part in zip(range(2), parts, strict=True):
                    values = self._factor(part, sums).square()
                    for use in term.leaves:
                        use.add_sums(squares[use.group][sums], at, places, values)
        sizes = torch.stack([each.sqrt().mean(1).prod() for each in squares.values()]).cpu().tolist() if squares else []
        return dict(zip(squares, sizes, strict=True))

    def point(self, soft: SoftAlignment) -> Point:
        """Return the point of a soft alignment."""
        matrices = {n: m.detach().to(self.device, self.dtype) for n, m in soft.matrices.items()}
        return Point(matrices, unit_masses(self.graph, matrices))

    def corner(self, elements: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "units units"]]:
        """Return the masses of an alignment, given by its elements: for indices 1 where a unit goes, 0 elsewhere."""
        return dict(self.point(SoftAlignment.from_alignment(Alignment(self.graph, elements))).masses)

    def between(self, start: Point, end: Masses, step: float) -> Point:
        """Return the point with masses ``(1 - step) * start + step * end``.

        The matrices of a family follow by division, ``D[p, q, i, j] = mass[p i, q j] / H[p, q]``.
        """
        masses = {n: torch.lerp(mass, end[n], step) for n, mass in start.masses.items()}
        matrices = {}
        for name, group in self.graph.groups.items():
            if group.parent is None:
                matrices[name] = masses[name]
                continue
            share = masses[group.parent][:, :, None, None]
            blended = split_pairs(masses[name], group.size) / share.clamp_min(_NO_SHARE)
            # A pair of parents without any share keeps the order of units that it had.
            matrices[name] = torch.where(share > _NO_SHARE, blended, start.matrices[name])
        return Point(matrices, masses)

    @cached_property
    def higher(self) -> tuple[Term, ...]:
        """Terms that are no parabolas along a line of masses."""
        return tuple(term for term in self.terms if term.degree not in (1, 2))

    def gradient(self, point: Point) -> Gradient:
        """Compute value and derivative at a point; the value is that of any one innermost use with its mass."""
        values = torch.zeros(2, dtype=torch.float64, device=self.device)
        groups = {name: torch.zeros_like(mass) for name, mass in point.masses.items()}
        parabolas = {name: torch.zeros_like(mass) for name, mass in groups.items()} if self.higher else groups
        for term in self.terms:
            is_higher = term in self.higher
            for use, sign in term.uses:
                derivative = self._derivative(use, point)
                groups[use.group].add_(derivative, alpha=sign)
                if self.higher and not is_higher:
                    parabolas[use.group].add_(derivative, alpha=sign)
                if use is term.leaves[0]:
                    values[int(is_higher)] += sign * _dot(derivative, point.masses[use.group])
        return Gradient(values, groups, parabolas)

    def _derivative(self, use: Use, point: Point) -> Float[Tensor, "units units"]:
        """Compute the derivative of a term by the mass of a group: the product of its units at one use.

        It is the sum of `alignkit.matching.soft_products`, with the example of this module.
        """
        if use in self._constant:
            return self._constant[use]
        product = Product(use, point.matrices, within_parents=False)
        total = torch.zeros(1, use.unit_count, use.unit_count, dtype=self.dtype, device=self.device)
        derivative = product.add_to(total, (self.a, self.b), self._factor)[0]
        if not product.is_soft:
            self._constant[use] = derivative
        return derivative

    def along(
        self, start: Point, end: Masses, elements: Mapping[str, Tensor], at_start: Gradient
    ) -> np.polynomial.Polynomial:
        """Return the objective from a point to a corner as a polynomial of the step in ``[0, 1]``.

        Terms of degree 1 or 2 follow from their value and slope at the start, and their value at the corner::

            f(step) = f(0) + f'(0) step + (f(1) - f(0) - f'(0)) step^2,   f'(0) = sum_groups <derivative, end - start>

        Terms of higher degree are interpolated at Chebyshev points: exact, except where branches of a family meet.
        ``end`` holds the masses of the corner and ``elements`` its indices; ``at_start`` is the gradient at ``start``.
        """
        slopes = [_dot(slope, end[name] - start.masses[name]) for name, slope in at_start.parabolas.items()]
        final = torch.zeros((), dtype=torch.float64, device=self.device)
        for term in self.terms:
            networks: list[Network] = [(self.a, {}), (self.b, elements)]
            for _, _, (a, b) in parts_of_block(term.tensor, term.block, networks) if term not in self.higher else ():
                final += _dot(self._factor(a, 0), self._factor(b, 1))
        zero = torch.zeros_like(final)
        value, slope, last = torch.stack([at_start.values[0], sum(slopes, zero), final]).cpu().tolist()
        polynomial = np.polynomial.Polynomial([value, slope, last - value - slope])
        if self.higher:
            degree = max(SAMPLES if term.degree is None else term.degree for term in self.higher)
            nodes = 0.5 - 0.5 * np.cos(np.pi * np.arange(degree + 1) / degree)
            samples = []
            for node in nodes:
                point = self.between(start, end, float(node))
                leaves = (term.leaves[0] for term in self.higher)
                values = [_dot(self._derivative(use, point), point.masses[use.group]) for use in leaves]
                samples.append(torch.stack(values).sum())
            polynomial += np.polynomial.Polynomial.fit(
                nodes, torch.stack(samples).cpu().tolist(), degree, domain=[0, 1]
            ).convert()
        return polynomial


def best_step(polynomial: np.polynomial.Polynomial) -> float:
    """Return where a polynomial is largest on ``[0, 1]``: at an end, or where its derivative is 0."""
    roots = [complex(root) for root in np.atleast_1d(polynomial.deriv().roots())]
    inner = [root.real for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1]
    return max((0.0, *inner, 1.0), key=lambda step: float(polynomial(step)))


def _dot(left: Tensor, right: Tensor) -> Float[Tensor, ""]:
    """Return the inner product in float64, on the device."""
    return (left * right).sum(dtype=torch.float64)
