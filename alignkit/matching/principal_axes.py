"""The form of a network that does not depend on which of all its equals is given, nor on another network.

Permuted units are sorted by numbers that no symmetry of the network changes. Spaces that rotate are brought to their
principal axes: the eigenvectors of the sum of ``W W^T`` over all weights of the space, which turns with the space and
with nothing else. Signs of units and of axes, and phases of planes, are left then. They are chosen such that more of
the weight of a unit is positive, group by group, from the weights between groups whose signs are settled.

Units whose numbers, axes whose variances, and signs whose sides are alike have no such form: they are counted as tied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.checkpoints.fit import is_number
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.elements.element import identity_element
from alignkit.graph.elements.rotations import ones_first, plane_matrices, planes_of
from alignkit.graph.kinds import FULL, PLANES
from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import Use
from alignkit.matching.canonical_order import unit_numbers
from alignkit.matching.families import read_off

NEGLIGIBLE = 1e-20
"""Weights whose squares are below this share of those of their unit are rounding of zeros."""


@dataclass
class CanonicalForm:
    """A network on its way to its form.

    Attributes:
        weights: Its tensors by first name, as far as it has come.
        alignment: What brought it there.
        tolerance: Numbers that differ by less than this share of the largest are alike.
        ties: How many units of each group have no form.
    """

    graph: GraphStructure
    weights: Mapping[str, Tensor]
    alignment: Alignment
    tolerance: float
    ties: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: GraphStructure, weights: Mapping[str, Tensor], tolerance: float) -> CanonicalForm:
        """Bring a network, given by first names, to its form."""
        wide = {n: t.detach().cpu().double() if is_number(t) and not t.is_complex() else t for n, t in weights.items()}
        form = cls(graph, wide, Alignment.identity(graph), tolerance)
        form._sort()
        form._move({name: form._axes(name) for name, group in graph.groups.items() if group.kind in FULL})
        form._settle_signs()
        return form

    def _move(self, elements: Mapping[str, Tensor]) -> None:
        """Move some groups."""
        step = Alignment(self.graph, {**Alignment.identity(self.graph).elements, **elements})
        self.weights = {name: step.apply_tensor(name, tensor) for name, tensor in self.weights.items()}
        self.alignment = step @ self.alignment

    def _tie(self, group: str, count: int) -> None:
        if count:
            self.ties[group] = self.ties.get(group, 0) + count

    def _parts(self, uses: Iterable[Use]) -> Iterator[Float[Tensor, "instances units rest"]]:
        """Yield the weights of each unit at some uses."""
        for use in uses:
            tensor = self.weights[use.tensor]
            if is_number(tensor) and not tensor.is_complex():
                yield use.unfold(use.block.view(tensor))

    def _sort(self) -> None:
        """Sort the units of permuted and signed groups by numbers that no symmetry changes."""
        pairs = {}
        for name, numbers in unit_numbers(self.graph, self.weights).items():
            group, count = self.graph.groups[name], self.graph.instances(name)
            if group.kind in ("permutation", "signed"):
                values, order = numbers.sort(dim=-1, stable=True)
                self._tie(name, _close(values, self.tolerance))
                pairs[name] = order.expand(count, *order.shape)
            else:
                pairs[name] = identity_element(group.kind, (count, count, group.size))
        self._move(read_off(self.graph, self.graph.parents_first, pairs))

    def _axes(self, group: str) -> Tensor:
        """Return the rotation to the principal axes of a space, largest first, with signs that are not chosen yet."""
        size = self.graph.groups[group].size
        shape = self.graph.instances(group), size, size
        spread = torch.zeros(shape, dtype=torch.float64)
        for part in self._parts(self.graph.uses[group]):
            spread += part @ part.mT
        if self.graph.groups[group].kind != "centred":
            values, vectors = torch.linalg.eigh(spread)
            self._tie(group, _close(values, self.tolerance))
            axes: Tensor = vectors.flip(-1).mT
            return axes.reshape(self.graph.element_shape(group))
        mirror = ones_first(size)  # the direction of ones comes first, and stays
        turned = mirror @ spread @ mirror
        values, vectors = torch.linalg.eigh(turned[:, 1:, 1:])
        self._tie(group, _close(values, self.tolerance))
        whole = torch.eye(size, dtype=torch.float64).repeat(shape[0], 1, 1)
        whole[:, 1:, 1:] = vectors.flip(-1).mT
        rotation: Tensor = mirror @ whole @ mirror
        return rotation.reshape(self.graph.element_shape(group))

    def _settle_signs(self) -> None:
        """Choose signs and phases, where weights between a group and settled ones tell them; the others are tied."""
        open_groups = [name for name, group in self.graph.groups.items() if group.kind != "permutation"]
        while open_groups:
            telling = {name: self._telling(name, open_groups) for name in open_groups}
            # Those all of whose units are told come first: others may be told by what is settled then.
            ready = [name for name, uses in telling.items() if self._tells_all(name, uses)]
            ready = ready or [name for name, uses in telling.items() if uses]
            if not ready:
                break
            self._move({name: self._signs(name, telling[name]) for name in ready})
            open_groups = [name for name in open_groups if name not in ready]
        for name in open_groups:
            self._tie(name, self.graph.unit_count(name))

    def _telling(self, group: str, open_groups: Iterable[str]) -> list[Use]:
        """Return the uses of a group in blocks on which no other group acts whose signs are open, and it acts once."""
        others = set(open_groups) - {group}
        uses = self.graph.uses[group]
        return [
            use
            for use in uses
            if others.isdisjoint(use.block.groups) and sum(name == group for _, name in use.block.moving) == 1
        ]

    def _tells_all(self, group: str, uses: Iterable[Use]) -> bool:
        """Tell whether each unit of a group has weights at some uses that count beside all that it has."""

        def squares(uses: Iterable[Use]) -> Tensor:
            zero = torch.zeros(self.graph.instances(group), self.graph.groups[group].size, dtype=torch.float64)
            return sum((part.square().sum(-1) for part in self._parts(uses)), start=zero)

        return bool((squares(uses) > NEGLIGIBLE * squares(self.graph.uses[group])).all())

    def _signs(self, group: str, uses: Iterable[Use]) -> Tensor:
        """Return the element that makes more of the weight of each unit, axis or plane positive."""
        kind, size = self.graph.groups[group].kind, self.graph.groups[group].size
        shape, count = self.graph.element_shape(group), self.graph.instances(group)
        if kind == "centred":
            mirror = ones_first(size)
            parts = [(mirror @ part)[:, 1:] for part in self._parts(uses)]
        else:
            parts = list(self._parts(uses))
        if not parts:
            self._tie(group, self.graph.unit_count(group))
            return identity_element(kind, self.graph.unit_shape(group))
        values = torch.cat(parts, -1)
        if kind in PLANES:
            first, second = planes_of(kind, size)
            turning = torch.complex(values[:, first], values[:, second])
            leaning, weight = (turning * turning.abs()).sum(-1), turning.abs().square().sum(-1)
            tied = leaning.abs() <= self.tolerance * weight
            self._tie(group, 2 * int(tied.sum()))
            phases = torch.where(tied, 1.0, leaning.conj() / torch.where(tied, 1.0, leaning.abs()))
            return plane_matrices(kind, phases).reshape(shape)
        leaning, weight = (values * values.abs()).sum(-1), values.square().sum(-1)
        self._tie(group, int((leaning.abs() <= self.tolerance * weight).sum()))
        if kind == "signed":
            units = torch.arange(size).expand(count, size)
            return torch.where(leaning < 0, ~units, units).reshape(shape)
        signs = 1.0 - 2.0 * (leaning < 0)
        if kind == "centred":
            whole = torch.diag_embed(torch.cat([torch.ones(count, 1, dtype=torch.float64), signs.double()], -1))
            return (mirror @ whole @ mirror).reshape(shape)
        return torch.diag_embed(signs.double()).reshape(shape)


def _close(values: Float[Tensor, "instances units"], tolerance: float) -> int:
    """Count values, in ascending order, that are alike."""
    if values.shape[-1] < 2:
        return 0
    near = values.diff(dim=-1) <= tolerance * values.abs().amax(-1, keepdim=True)
    edge = torch.zeros(len(values), 1, dtype=torch.bool)
    return int((torch.cat([edge, near], -1) | torch.cat([near, edge], -1)).sum())
