"""The alignment objective on doubly stochastic matrices: values, gradients and exact steps for Frank-Wolfe.

The relaxed variable of a group is its *mass*: the shares of B's units (columns) at A's places (rows), over all parents,
``[units, units]``. Masses of the elements of a tree of families are the corners of a convex set, and a linear function
of masses is maximised over it by nested assignment. Along a line of masses the objective is a polynomial of low degree.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.graph.elements.action import act_on_block
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.layout import Block
from alignkit.graph.symmetry_graph import Pair
from alignkit.graph.uses import Use, uses_of_block
from alignkit.matching.families import split_pairs, unit_masses
from alignkit.matching.soft_alignment import SoftAlignment

Masses: TypeAlias = Mapping[str, Float[Tensor, "units units"]]
"""For each group the shares of B's units at A's places, over all parents."""

SAMPLES = 6
"""Degree of the polynomial that stands in for the objective where branches of a family meet; there it is rational."""

_NO_SHARE = 1e-12


@dataclass(frozen=True, eq=False)
class Term:
    """One block of one tensor.

    Attributes:
        tensor: Name of the tensor.
        block: The block.
    """

    tensor: str
    block: Block

    @cached_property
    def uses(self) -> tuple[tuple[Use, int], ...]:
        """Where groups act, each with the sign of its derivative; uses of sign 0 are left out.

        The sign is 1 where nothing is nested in the use, and ``1 - k`` where ``k`` branches of a family start, because
        each of them counts the mass of the parent.
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
    """The objective at a point, and its derivative by every mass.

    Attributes:
        values: ``<A, P # B>`` of each term, in squared units of the weights.
        places: The derivative at each place where a group acts.
        groups: The sum over the places of each group; zeros for a group that acts only through its children.
    """

    values: Mapping[Term, float]
    places: Mapping[Use, Float[Tensor, "units units"]]
    groups: Mapping[str, Float[Tensor, "units units"]]

    @property
    def value(self) -> float:
        """``<A, P # B>`` over all tensors on which groups act."""
        return sum(self.values.values())


class Relaxation:
    """``<A, P # B>`` of one pair for soft ``P``.

    Args:
        bound: The pair.
        device: Where products are computed.
        dtype: Type of the products; sums over tensors are float64.
    """

    def __init__(self, bound: Pair, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.graph, self.device, self.dtype = bound.graph, torch.device(device), dtype
        moved = [name for name, node in self.graph.tensors.items() if node.groups]
        self.a = {name: bound.a[name].detach().to(self.device, dtype).contiguous() for name in moved}
        self.b = {name: bound.b[name].detach().to(self.device, dtype).contiguous() for name in moved}
        self.terms = tuple(
            Term(name, block) for name in moved for block in self.graph.tensors[name].blocks if block.groups
        )
        self._constant: dict[Use, Tensor] = {}

    def facing(self, a: Mapping[str, Tensor]) -> Relaxation:
        """The same B against other tensors in place of A, already on this device and of this type."""
        other = copy.copy(self)
        other.a, other._constant = dict(a), {}
        return other

    @cached_property
    def scales(self) -> dict[str, float]:
        """For each group, the size of what two of its units can contribute: ``mean |a_i| * mean |b_j|``."""
        squares: dict[str, list[Tensor]] = {name: [] for name in self.graph.groups}
        for term in self.terms:
            for use in term.leaves:
                sides = [use.block.view(side[use.tensor]).square() for side in (self.a, self.b)]
                summed = [side.sum(use.rest) if use.rest else side for side in sides]
                squares[use.group].append(torch.stack(summed).flatten(1))
        norms = {name: sum(found).sqrt().double().mean(1) for name, found in squares.items() if found}  # type: ignore[union-attr]
        return {name: float(norms[name].prod()) if name in norms else 0.0 for name in squares}

    # ---------------------------------------------------------------- points

    def point(self, soft: SoftAlignment) -> Point:
        """The point of a soft alignment."""
        matrices = {n: m.detach().to(self.device, self.dtype) for n, m in soft.matrices.items()}
        return Point(matrices, unit_masses(self.graph, matrices))

    def corner(self, elements: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "units units"]]:
        """The masses of an alignment, given by its indices."""
        alignment = Alignment(self.graph, elements)
        flats = {name: alignment.flat(name).to(self.device) for name in self.graph.groups}
        return {n: torch.nn.functional.one_hot(flat, len(flat)).to(self.dtype) for n, flat in flats.items()}

    def between(self, start: Point, end: Masses, step: float) -> Point:
        """The point with masses ``(1 - step) * start + step * end``."""
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

    # ---------------------------------------------------------------- values and derivatives

    def gradient(self, point: Point) -> Gradient:
        """Value and derivative at a point."""
        values: dict[Term, float] = {}
        places: dict[Use, Tensor] = {}
        groups = {name: torch.zeros_like(mass) for name, mass in point.masses.items()}
        for term in self.terms:
            for use, sign in term.uses:
                name = use.group
                places[use] = sign * self._derivative(use, point)
                groups[name] += places[use]
                if use is term.leaves[0]:
                    values[term] = _dot(places[use], point.masses[name])
        return Gradient(values, places, groups)

    def _derivative(self, use: Use, point: Point) -> Float[Tensor, "units units"]:
        """``unfold(A) @ unfold(others applied to B)^T`` over all pairs of units, others being soft."""
        if use in self._constant:
            return self._constant[use]
        block = use.block
        a, b = (block.view(side[use.tensor]) for side in (self.a, self.b))
        found = torch.einsum(*_derivative_operands(use, a, b, point))
        found = found.reshape(use.unit_count, use.unit_count)
        if all(dim.group is None or at in use.chain for at, dim in enumerate(block.dims)):
            self._constant[use] = found
        return found

    def _term_value(self, term: Term, point: Point) -> float:
        use = term.leaves[0]
        return _dot(self._derivative(use, point), point.masses[use.group])

    def _corner_value(self, term: Term, elements: Mapping[str, Tensor]) -> float:
        moved = act_on_block(term.block, term.block.view(self.b[term.tensor]), elements)
        return float((term.block.view(self.a[term.tensor]) * moved).sum(dtype=torch.float64))

    # ---------------------------------------------------------------- along a line

    def along(
        self, start: Point, end: Masses, elements: Mapping[str, Tensor], at_start: Gradient
    ) -> np.polynomial.Polynomial:
        """The objective from a point to a corner as a polynomial of the step in ``[0, 1]``.

        Exact for every degree, except where branches of a family meet: there it interpolates.

        Args:
            start: The point.
            end: The masses of the corner.
            elements: Its indices.
            at_start: Value and derivative at ``start``.
        """
        coefficients = np.zeros(3)
        sampled: list[Term] = []
        for term in self.terms:
            value = at_start.values[term]
            slope = sum(self._slope(use, start, end, at_start) for use, _ in term.uses)
            if term.degree == 1:
                coefficients += (value, slope, 0.0)
            elif term.degree == 2:
                coefficients += (value, slope, self._corner_value(term, elements) - value - slope)
            else:
                sampled.append(term)
        polynomial = np.polynomial.Polynomial(coefficients)
        if sampled:
            degree = max(SAMPLES if term.degree is None else term.degree for term in sampled)
            polynomial += self._interpolated(degree, lambda p: sum(self._term_value(t, p) for t in sampled), start, end)
        return polynomial

    def _slope(self, use: Use, start: Point, end: Masses, at_start: Gradient) -> float:
        name = use.group
        place = at_start.places[use]
        return _dot(place, end[name]) - _dot(place, start.masses[name])

    def _interpolated(
        self, degree: int, value: Callable[[Point], float], start: Point, end: Masses
    ) -> np.polynomial.Polynomial:
        nodes = 0.5 - 0.5 * np.cos(np.pi * np.arange(degree + 1) / degree)
        values = [value(self.between(start, end, float(node))) for node in nodes]
        fitted = np.polynomial.Polynomial.fit(nodes, values, degree, domain=[0, 1])
        return fitted.convert()


def best_step(polynomial: np.polynomial.Polynomial) -> float:
    """Where a polynomial is largest on ``[0, 1]``."""
    roots = [complex(root) for root in np.atleast_1d(polynomial.deriv().roots())]
    inner = [root.real for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1]
    return max((0.0, *inner, 1.0), key=lambda step: float(polynomial(step)))


def _derivative_operands(use: Use, a: Tensor, b: Tensor, point: Point) -> list[Tensor | list[int]]:
    """Operands of the einsum, in an order in which each product is small: B, one branch after the other, A last."""
    dims = use.block.dims
    count = len(dims)

    def place(at: int) -> int:
        return at if dims[at].group is None else count + at

    operands: list[Tensor | list[int]] = [b, list(range(count))]
    for at, dim in enumerate(dims):
        if dim.group is None or at in use.chain:
            continue
        ancestors = dim.ancestors
        sizes = [dims[i].size for i in ancestors]
        matrix = point.matrices[dim.group].reshape(*sizes, *sizes, dim.size, dim.size)
        operands += [matrix, [*map(place, ancestors), *ancestors, place(at), at]]
    operands += [a, [place(i) for i in range(count)]]
    operands.append([*map(place, use.chain), *use.chain])
    return operands


def _dot(left: Tensor, right: Tensor) -> float:
    return float((left * right).sum(dtype=torch.float64))
