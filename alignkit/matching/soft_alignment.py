"""`SoftAlignment`: a doubly stochastic relaxation of an alignment, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.dense import why_no_values
from alignkit.checkpoints.fit import is_number
from alignkit.errors import AlignmentError
from alignkit.graph.description import group_table
from alignkit.graph.elements.action import act_on_block
from alignkit.graph.elements.alignment import Alignment, find_node
from alignkit.graph.nodes import TensorNode
from alignkit.graph.owned import Owned, ReadOnly
from alignkit.graph.structure import GraphStructure
from alignkit.matching.families import best_element, unit_masses
from alignkit.matching.hulls import brought_inside, centre_of, why_outside
from alignkit.text import html_table, plural


class SoftAlignment:
    """Where each unit goes, in parts: a doubly stochastic matrix in place of each index vector.

    Row ``i`` holds the shares of B's units at place ``i``. Groups of other kinds have a mean of some of their elements:
    a matrix that makes no vector longer, where units rotate. A family has one matrix for each pair of parents: how the
    units are moved if the parent at one place is the parent from another. It holds copies of its matrices, and
    ``matrices`` hands out copies.

    Args:
        graph: The graph.
        matrices: Floating-point ``[n, n]`` for a root and ``[p, p, n, n]`` for a family, where ``p`` counts the parent
            units over all ancestors (places first, sources second). Gradients flow through them.

    Raises:
        AlignmentError: A group is missing, or a matrix has the wrong shape, is not doubly stochastic, or is not in the
            convex hull of another kind of elements.
    """

    @check_arguments
    def __init__(self, graph: GraphStructure, matrices: Mapping[str, Tensor], tolerance: float = 1e-2) -> None:
        for name in graph.groups:
            matrix, shape = matrices.get(name), matrix_shape(graph, name)
            if (kind := why_no_values(matrix)) is not None:
                raise AlignmentError(f"group {name!r} has no matrix, found one {kind}.")
            assert matrix is not None
            if tuple(matrix.shape) != shape or not matrix.is_floating_point():
                needed = f"group {name!r} needs a floating-point matrix of shape {shape}"
                raise AlignmentError(f"{needed}, found {matrix.dtype} of shape {tuple(matrix.shape)}.")
            if problem := why_outside(graph.groups[name].kind, matrix.detach().double(), tolerance):
                raise AlignmentError(f"the matrix of group {name!r} {problem}.")
        self._graph = graph
        self._matrices: ReadOnly[Tensor] = Owned({name: matrices[name] for name in graph.groups})

    @property
    def graph(self) -> GraphStructure:
        """The graph."""
        return self._graph

    @property
    def matrices(self) -> Mapping[str, Tensor]:
        """For each group a copy of its matrix."""
        return self._matrices

    @classmethod
    @check_arguments
    def centre(cls, graph: GraphStructure) -> SoftAlignment:
        """Return the mean of the whole symmetry group: every unit is everywhere in equal parts, or 0 for most kinds."""
        return cls(graph, {n: centre_of(group.kind, matrix_shape(graph, n)) for n, group in graph.groups.items()})

    @classmethod
    @check_arguments
    def from_alignment(cls, alignment: Alignment) -> SoftAlignment:
        """Return an alignment as matrices; where a pair of parents is not matched, the centre."""
        matrices = {}
        for name, hard in alignment.as_matrices().items():
            group = alignment.graph.groups[name]
            if group.parent is None:
                matrices[name] = hard
                continue
            matrices[name] = centre_of(group.kind, matrix_shape(alignment.graph, name)).to(hard)
            hard = hard.reshape(-1, group.size, group.size)
            matrices[name][torch.arange(len(hard)), alignment.flat(group.parent)] = hard
        return cls(alignment.graph, matrices)

    @check_arguments
    def apply_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Move one floating-point or complex tensor of the graph, given by its first name; differentiable."""
        return act_softly(find_node(self.graph, name, tensor), tensor, self.matrices)

    @check_arguments
    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move every floating-point or complex tensor that a group acts on; others are passed on as they are."""
        first = self.graph.first_names
        moved = {n for n, t in weights.items() if n in first and isinstance(t, Tensor) and is_number(t)}
        return {n: self.apply_tensor(first[n], t) if n in moved else t for n, t in weights.items()}

    @check_arguments
    def completed(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SoftAlignment:
        """Return a copy without gradients whose matrices are in the convex hulls to rounding, as solvers need them.

        Args:
            device: Where the matrices go; None leaves each where it is.
            dtype: Their floating-point dtype; None leaves each as it is.
        """
        inside = {}
        for name, matrix in self.matrices.items():
            exact = brought_inside(self.graph.groups[name].kind, matrix.detach().double())
            inside[name] = exact.to(device=device, dtype=dtype or matrix.dtype)
        return SoftAlignment(self.graph, inside)

    def round(self) -> Alignment:
        """Find the alignment that overlaps most, by the oracle of each kind, families from the inside out."""
        matrices = {name: matrix.detach().double() for name, matrix in self.matrices.items()}
        return Alignment(self.graph, best_element(self.graph, unit_masses(self.graph, matrices)))

    def __getstate__(self) -> dict[str, Any]:
        # Tensors inside a computation of gradients cannot be pickled or copied.
        return {"graph": self.graph, "matrices": {name: matrix.detach() for name, matrix in self.matrices.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._graph, self._matrices = state["graph"], Owned(state["matrices"])

    def _certainty(self) -> dict[str, float]:
        """Mean of the largest share of every row, for each group: 1 where a matrix is hard."""
        return {name: float(matrix.detach().amax(-1).mean()) for name, matrix in self.matrices.items()}

    def __repr__(self) -> str:
        certainty = self._certainty().values()
        mean = sum(certainty) / max(len(certainty), 1)
        return f"SoftAlignment({plural(len(certainty), 'group')}, mean largest share {mean:.2f})"

    def _repr_html_(self) -> str:
        certainty = self._certainty()
        table = zip(self.graph.parents_first, group_table(self.graph), strict=True)
        rows = [(text, units, f"{certainty[name]:.2f}") for name, (text, units, _) in table]
        return html_table(("group", "units", "mean largest share"), rows, repr(self))


class ProjectedAlignment(SoftAlignment):
    """A soft alignment whose matrices come from the Sinkhorn operator: they are neither checked nor copied again.

    A group whose matrix is missing or None is at the centre. Matrices are turned into ``dtype`` unless it is None.
    """

    @check_arguments
    def __init__(
        self, graph: GraphStructure, matrices: Mapping[str, Tensor | None], dtype: torch.dtype | None = None
    ) -> None:
        filled = {}
        for name, group in graph.groups.items():
            matrix = matrices.get(name)
            matrix = centre_of(group.kind, matrix_shape(graph, name)) if matrix is None else matrix
            filled[name] = matrix if dtype is None else matrix.to(dtype)
        self._graph, self._matrices = graph, ReadOnly(filled)


def matrix_shape(graph: GraphStructure, group: str) -> tuple[int, ...]:
    """Return the shape of a group's matrix in a `SoftAlignment`."""
    size, parents = graph.groups[group].size, graph.instances(group)
    return (size, size) if graph.groups[group].parent is None else (parents, parents, size, size)


def act_softly(node: TensorNode, tensor: Tensor, elements: Mapping[str, Tensor]) -> Tensor:
    """Move a tensor by the matrices, or indices, of its groups; unlike `act_on_blocks` it is differentiable."""
    if not node.groups:
        return tensor
    blocks = node.blocks
    if len(blocks) == 1:
        sizes = [dim.size for dim in blocks[0].dims]
        return act_on_block(blocks[0], tensor.reshape(sizes), elements).reshape(tensor.shape)
    result = torch.zeros_like(tensor)
    for block in blocks:
        part = act_on_block(block, block.view(tensor), elements)
        # The blocks are disjoint, so adding each to zeros puts the tensor together and keeps gradients.
        place = torch.zeros_like(tensor)
        view = block.view(place)
        result = result + torch.as_strided_scatter(place, part, view.shape, view.stride(), view.storage_offset())
    return result
