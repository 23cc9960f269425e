"""Weights that a run multiplies with nothing but one value everywhere: the state of zeros from which a loop starts.

A recurrent cell written by hand returns the units that its weights read. A run of one step does not show it: there they
multiply zeros, which any order leaves as they are. So what such a product writes stays where it is. A run of two steps
multiplies the same weights with a state that has units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignkit.tracing.labels.constraints import Cause, Constraints
from alignkit.tracing.labels.tensor_labels import IntArray, Labels
from alignkit.tracing.recording.recorder import OpRecord, TensorRef

_PRODUCTS = {"mm", "bmm", "matmul", "mv", "dot", "addmm", "baddbmm", "addmv"}


@dataclass(frozen=True, eq=False)
class _Product:
    """Atoms of the positions of a weight that a product sums over, which of them met a constant, and the result."""

    atoms: IntArray
    constant: npt.NDArray[np.bool_]
    result: Labels
    cause: Cause


@dataclass
class Constants:
    """Collects, for each storage of a weight, what it was multiplied with."""

    _products: dict[int, list[_Product]] = field(default_factory=lambda: defaultdict(list))

    def note(self, c: Constraints, step: OpRecord, labels_of: Callable[[TensorRef], Labels], result: Labels) -> None:
        """Record the factors of a product."""
        for (factor, dim), (other, other_dim) in _factors(step):
            owner = labels_of(factor).owner.get(dim)
            if owner is not None:
                atoms = np.moveaxis(owner.atoms, owner.span.index(dim), -1)
                constant = _is_constant(c, labels_of(other), other_dim)
                in_groups = constant.size not in (1, atoms.shape[-1])  # each filter sees the channels of its group
                constant = np.broadcast_to(constant.all() if in_groups else constant, atoms.shape)
                self._products[factor.storage].append(_Product(atoms, constant, result, c.causes[-1]))

    def fix_results(self, c: Constraints, storages: set[int]) -> IntArray:
        """Fix what weights of these storages write that met nothing but constants; return the atoms that met them."""
        only: list[IntArray] = [np.zeros(0, np.int64)]
        for storage in sorted(storages & self._products.keys()):
            products = self._products[storage]
            others = np.concatenate([product.atoms[~product.constant] for product in products])
            for product in products:
                met = np.setdiff1d(product.atoms[product.constant], others)
                if len(met):
                    only.append(met)
                    c.blame(product.cause.op, product.cause.where)
                    c.fix(met)
                    c.fix_labels(product.result)
        return np.unique(np.concatenate(only))


def _factors(step: OpRecord) -> Iterator[tuple[tuple[TensorRef, int], tuple[TensorRef, int]]]:
    """Yield each factor of a product with the dimension that is summed over, and the same of the other factor."""
    name = step.op.split("::")[1]
    tensors = step.inputs
    if name in _PRODUCTS:
        a, b = tensors[-2:]
        pair = (a, len(a.shape) - 1), (b, max(len(b.shape) - 2, 0))
    elif name == "linear":
        pair = (tensors[0], len(tensors[0].shape) - 1), (tensors[1], 1)
    elif name == "convolution":
        transposed = bool(step.args[6])
        pair = (tensors[0], 1), (tensors[1], 0 if transposed else 1)
    else:
        return
    yield pair
    yield pair[::-1]


def _is_constant(c: Constraints, labels: Labels, dim: int) -> npt.NDArray[np.bool_]:
    """Return for each position along a dimension whether it holds a constant."""
    owner = labels.owner.get(dim)
    if labels.shape[dim] > 1 and owner is not None and owner.dims == (dim,) and not owner.context:
        return np.isin(owner.atoms, c.constants)
    return np.array(labels.shape[dim] > 1 and labels.uniform[dim])
