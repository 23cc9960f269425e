"""What folds and balances did to the axes of a network's tensors, done to other tensors that have such axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alignkit.errors import FoldError
from alignkit.graph.nodes import TensorNode
from alignkit.graph.rewrites import AxisOf, Fold, Gain, Mean, OutputScale, Shift, Through, uses_at
from alignkit.graph.uses import Use
from alignkit.rewriting.balancing import multiply_units
from alignkit.rewriting.folding import Taken, repeated
from alignkit.rewriting.spaces import BalancedSpace
from alignkit.rewriting.wide import WideWeights

Likes = Mapping[int, tuple[str, int]]
"""For axes of a tensor the tensor of the network, by first name, and its axis, that they are like."""


@dataclass(frozen=True)
class AxisChanges:
    """What rewriting one network did to each axis of its tensors, as linear maps.

    ``taken`` is what its folds took out, ``spaces`` are its balanced spaces.
    """

    taken: Taken = ()
    spaces: Sequence[BalancedSpace] = ()

    def do(self, node: TensorNode, tensor: Tensor, likes: Likes) -> Tensor:
        """Change the axes of a tensor as those of the network were changed that they are like; a new tensor comes back.

        Args:
            node: The layout of the tensor.
            tensor: Its values, float64.
            likes: What its axes are like; the others stay.
        """
        wide = WideWeights({node.name: tensor})
        for fold, old in self.taken:
            for place, factor in _factors(fold, old):
                for own in _own_places(node, place, likes):
                    wide.put(own, wide.take(own) * factor.flatten())
            for own in _means(fold, node, likes):
                values = wide.take(own)
                wide.put(own, values - values.mean(-1, keepdim=True))
        for space in self.spaces:
            for use, reads in _uses(space, node, likes):
                multiply_units(wide[node.name], use, space.read if reads else space.write)
        return wide[node.name]

    def mean_share(self, node: TensorNode, tensor: Tensor, likes: Likes) -> float:
        """Return the part of a tensor's size that is a mean which folds subtract: nothing in the network reads it."""
        size, wide = float(torch.linalg.vector_norm(tensor)), WideWeights({node.name: tensor})
        shares = [0.0]
        for fold, _ in self.taken:
            for own in _means(fold, node, likes):
                values = wide.take(own)
                length = float(torch.linalg.vector_norm(values.mean(-1))) * values.shape[-1] ** 0.5
                shares.append(length / size if size else 0.0)
        return max(shares)

    def constant(self, node: TensorNode, tensor: Tensor, axis: int, like: tuple[str, int]) -> Tensor | None:
        """Return what a tensor reads that is the same for all inputs: the tensor without the axis that reads.

        That is the shift of a norm that folds take out, or the bias of values. None where the axis reads neither.
        """
        wide = WideWeights({node.name: tensor})
        for fold, old in self.taken:
            for place in _shifted(fold):
                for own in _own_places(node, place, {axis: like}):
                    values = wide.take(own)
                    heads = fold.heads if isinstance(fold, Through) else 1
                    return values @ repeated(old[0].cpu().flatten(), heads, values.shape[-1])
        return None

    def undo(self, node: TensorNode, tensor: Tensor, likes: Likes) -> Tensor:
        """Change axes back; a mean that was subtracted stays so, since nothing reads it.

        Raises:
            FoldError: A gain or a scale of the network is 0, which nothing can be divided by.
        """
        wide = WideWeights({node.name: tensor})
        for space in reversed(self.spaces):
            is_matrix = space.balance.kind == "invertible"
            for use, reads in _uses(space, node, likes):
                if is_matrix:  # of the two matrices, each is the inverse of the other, transposed
                    factor = (space.write if reads else space.read).mT
                else:
                    own = space.read if reads else space.write
                    factor = torch.where(own == 0, 0.0, 1 / torch.where(own == 0, 1.0, own))
                multiply_units(wide[node.name], use, factor)
        for fold, old in reversed(self.taken):
            for place, factor in _factors(fold, old):
                for target in _own_places(node, place, likes):
                    if bool((factor == 0).any()):
                        raise FoldError(f"{fold}: a number of it is 0, so that {node.name!r} cannot be brought there.")
                    wide.put(target, wide.take(target) / factor.flatten())
        return wide[node.name]


def _factors(fold: Fold, old: Sequence[Tensor]) -> Iterator[tuple[AxisOf, Tensor]]:
    """Yield what a fold multiplied axes by."""
    if isinstance(fold, OutputScale):
        yield from ((place, old[0].cpu()) for place in fold.writers)
    elif isinstance(fold, Gain):
        yield from ((place, old[0].cpu() + fold.offset) for place in fold.readers)


def _means(fold: Fold, node: TensorNode, likes: Likes) -> Iterator[AxisOf]:
    """Yield the positions on the axes of a tensor whose mean a fold subtracts."""
    if isinstance(fold, Mean):
        for place in (*fold.writers, *fold.readers):
            yield from _own_places(node, place, likes)


def _shifted(fold: Fold) -> Sequence[AxisOf]:
    """List the axes that read what a fold takes out of a shift or a bias."""
    if isinstance(fold, Shift):
        return [reader for reader, _ in fold.readers]
    return [fold.reader] if isinstance(fold, Through) else []


def _own_places(node: TensorNode, place: AxisOf, likes: Likes) -> Iterator[AxisOf]:
    """Yield the positions of a place on the axes of a tensor that are like its axis."""
    for axis, like in likes.items():
        if like == (place.tensor, place.axis):
            yield replace(place, tensor=node.name, axis=axis)


def _uses(space: BalancedSpace, node: TensorNode, likes: Likes) -> Iterator[tuple[Use, bool]]:
    """Yield where a balanced space lies on the axes of a tensor, and whether they are like those that read it."""
    for places, reads in ((space.balance.writes, False), (space.balance.reads, True)):
        for place in places:
            for own in _own_places(node, place, likes):
                yield from ((use, reads) for use in uses_at(node, space.balance.group, own))
