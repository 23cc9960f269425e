"""`Alignment`: one element of a graph's symmetry group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints.dense import why_no_values
from alignkit.checkpoints.documents import Content, Format
from alignkit.checkpoints.dtypes import narrow
from alignkit.checkpoints.fit import is_number
from alignkit.errors import AlignmentError
from alignkit.graph.bind import LazyWeights, fit_of, weights_of
from alignkit.graph.description import group_table
from alignkit.graph.elements.action import act_on_blocks, change_signs
from alignkit.graph.elements.element import (
    as_matrix,
    compose_elements,
    flipped,
    identity_element,
    invert_element,
    order_of,
    random_element,
)
from alignkit.graph.elements.rotations import TOLERANCE, why_no_rotation
from alignkit.graph.folded import check_folded
from alignkit.graph.hidden_state import check_constants
from alignkit.graph.kinds import KINDS
from alignkit.graph.module_copy import copy_module
from alignkit.graph.nodes import TensorNode
from alignkit.graph.owned import Owned
from alignkit.graph.structure import GraphStructure
from alignkit.text import did_you_mean, dtype_name, html_table, list_some, plural


class _AlignmentContent(Content):
    graph: str


FORMAT = Format("alignkit.alignment", "alignment", "Alignment.save", AlignmentError, _AlignmentContent)
ModuleT = TypeVar("ModuleT", bound=nn.Module)
WHOLE = frozenset(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))
"""Dtypes of indices."""


class Alignment:
    """Where each unit goes: one index vector for a root group, one for each parent unit of a family.

    Gather convention: place ``i`` of the aligned network holds unit ``element[i]`` of the network that is aligned.
    For a family, ``element[p, i]`` is the unit, within the parent unit that was moved to place ``p``, that comes to
    place ``i``.

    In a group with signs the index ``~j`` (``-j - 1``) brings unit ``j`` with its sign changed. A group that rotates
    has matrices in place of indices: place ``i`` holds ``sum_j element[i, j] * unit j``.

    An alignment never changes: it holds copies of its elements, and ``elements`` hands out copies. Two are equal if
    their indices are, and if no entry of their matrices differs by more than 1e-9.

    Args:
        graph: The graph whose symmetry group the alignment belongs to.
        elements: For each group indices (int64) or a matrix (float64), of shape ``graph.element_shape(group)``: the
            sizes of the group's ancestors (none for a root), then its own size, which stands twice for a matrix.

    Raises:
        AlignmentError: A group is missing, or its indices have the wrong shape or are not a permutation, or its matrix
            is not a rotation of its kind; the message says how far it is off.
    """

    @check_arguments
    def __init__(self, graph: GraphStructure, elements: Mapping[str, Tensor]) -> None:
        if unknown := [name for name in elements if name not in graph.groups]:
            raise AlignmentError(f"the graph has no groups {list_some([repr(name) for name in unknown], 5)}.")
        checked = {}
        for name in graph.groups:
            if name not in elements:
                raise AlignmentError(f"group {name!r} has no {'matrix' if graph.rotates(name) else 'indices'}.")
            checked[name] = checked_element(graph, name, elements[name])
        self._graph, self._elements = graph, Owned(checked)

    @classmethod
    def _of_valid(cls, graph: GraphStructure, elements: Mapping[str, Tensor]) -> Alignment:
        """Return the alignment of elements that are valid by how they were made, one for each group: not checked."""
        alignment = cls.__new__(cls)
        alignment._graph, alignment._elements = graph, Owned(elements)
        return alignment

    @property
    def graph(self) -> GraphStructure:
        """The graph whose symmetry group the alignment belongs to."""
        return self._graph

    @property
    def elements(self) -> Mapping[str, Tensor]:
        """For each group a copy of its indices, int64, or of its matrix, float64; on the CPU."""
        return self._elements

    @classmethod
    @check_arguments
    def identity(cls, graph: GraphStructure) -> Alignment:
        """Return the alignment that moves nothing."""
        groups = graph.groups.items()
        return cls._of_valid(graph, {n: identity_element(group.kind, graph.unit_shape(n)) for n, group in groups})

    @classmethod
    @check_arguments
    def random(cls, graph: GraphStructure, seed: int = 0) -> Alignment:
        """Draw an element of the symmetry group uniformly; the same seed gives the same element."""
        generator = torch.Generator().manual_seed(seed)
        groups = graph.groups.items()
        return cls(graph, {n: random_element(group.kind, graph.unit_shape(n), generator) for n, group in groups})

    @check_arguments
    def flat(self, group: str) -> Tensor:
        """Return where every unit comes from, over all parents: int64 of shape ``[instances * size]``, row-major.

        As in ``elements``, ``~j`` is unit ``j`` with its sign changed. `AlignmentError` for a group that rotates: its
        units come from many.
        """
        if group not in self.graph.groups:
            raise AlignmentError(f"the graph has no group {group!r}.{did_you_mean(group, self.graph.groups)}")
        if self.graph.rotates(group):
            raise AlignmentError(f"the units of group {group!r} are rotated: they do not come from one unit each.")
        if self.graph.groups[group].parent is None:
            return self.elements[group]
        element = self._by_parent(group)
        start = self._parents(group)[:, None] * element.shape[-1]
        return torch.where(flipped(element), element - start, element + start).reshape(-1)

    @check_arguments
    def move_units(self, group: str, values: Tensor) -> Tensor:
        """Bring one value of each unit of a group, ``[..., units over all parents]``, to the places of the units."""
        if not self.graph.rotates(group):
            order = self.flat(group).to(values.device)
            return change_signs(values[..., order_of(order)], flipped(order))
        matrices = self._by_parent(group).to(values)
        parted = values.reshape(*values.shape[:-1], len(matrices), -1)[..., self._parents(group).to(values.device), :]
        return torch.einsum("pij,...pj->...pi", matrices, parted).flatten(-2)

    def _parents(self, group: str) -> Tensor:
        """Return which unit of the parent comes to each place, over all ancestors; ``[0]`` for a root."""
        parent = self.graph.groups[group].parent
        return torch.zeros(1, dtype=torch.int64) if parent is None else self.flat(parent)

    def _by_parent(self, group: str) -> Tensor:
        """Return the element of a group with one dimension for all its ancestors."""
        own = 2 if self.graph.rotates(group) else 1
        return self.elements[group].flatten(0, -1 - own) if self.graph.ancestors(group) else self.elements[group][None]

    def _with(self, by_parent: Mapping[str, Tensor]) -> Alignment:
        """Return an alignment of the same graph, from elements as `_by_parent` gives them."""
        return Alignment(self.graph, {n: e.reshape(self.graph.element_shape(n)) for n, e in by_parent.items()})

    def inverse(self) -> Alignment:
        """Return the alignment that undoes this one."""
        # What acts at place p, on what comes from s, is undone at place s.
        return self._with(
            {n: invert_element(self._by_parent(n))[self._parents(n).argsort()] for n in self.graph.groups}
        )

    def __matmul__(self, other: Alignment) -> Alignment:
        """Compose two alignments: ``(g @ h).apply(w)`` equals ``g.apply(h.apply(w))``."""
        if not isinstance(other, Alignment):
            return NotImplemented
        if self.graph != other.graph:
            raise AlignmentError("the two alignments belong to different graphs, so they cannot be composed.")
        # What comes from place s was moved there before by the other.
        products = {
            name: compose_elements(self._by_parent(name), other._by_parent(name)[self._parents(name)])
            for name in self.graph.groups
        }
        return self._with(products)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Alignment) or self.graph != other.graph:
            return False
        return all(_is_same(element, other.elements[name]) for name, element in self.elements.items())

    def __hash__(self) -> int:
        # Matrices have a tolerance, so that they cannot take part.
        whole = (element for element in self.elements.values() if not element.is_floating_point())
        return hash((self.graph, *(tuple(element.reshape(-1).tolist()) for element in whole)))

    @property
    def is_identity(self) -> bool:
        """Whether no unit moves, changes its sign or is rotated."""
        return not any(self.moved().values())

    def moved(self) -> dict[str, int]:
        """Count the units of each group that change their place or sign or are rotated, over all parents."""
        counts = {}
        for name, group in self.graph.groups.items():
            element, parents = self._by_parent(name), self._parents(name)
            same = identity_element(group.kind, (group.size,))
            moved = (element - same).abs().amax(-1) > TOLERANCE if self.graph.rotates(name) else element != same
            counts[name] = int((moved | (parents != torch.arange(len(parents)))[:, None]).sum())
        return counts

    def as_matrices(self) -> dict[str, Tensor]:
        """Return each element as a matrix: ``[n, n]`` for a root, ``[*ancestors, n, n]`` for a family.

        The matrix times B's units gives the aligned units. Row ``i`` of a permutation has its one at column
        ``element[i]``, or minus one where the sign changes; it is float32. Rotations are float64, as they stand.
        """
        return {n: e if e.is_floating_point() else as_matrix(e) for n, e in self.elements.items()}

    @property
    def summary(self) -> str:
        """Numbers of groups, of units, and of units that move, in one line."""
        total = sum(self.graph.unit_count(name) for name in self.graph.groups)
        return f"{plural(len(self.elements), 'group')}, {sum(self.moved().values())} of {total} units moved"

    def __repr__(self) -> str:
        return f"Alignment({self.summary})"

    def _repr_html_(self) -> str:
        moved = self.moved()
        table = zip(self.graph.parents_first, group_table(self.graph), strict=True)
        rows = [(text, units, str(moved[name])) for name, (text, units, _) in table]
        return html_table(("group", "units", "moved"), rows, f"Alignment: {self.summary}")

    @overload
    def apply(self, weights: ModuleT) -> ModuleT: ...
    @overload
    def apply(self, weights: LazyWeights) -> LazyWeights: ...  # type: ignore[overload-overlap]
    @overload
    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    @check_arguments
    def apply(self, weights: nn.Module | Mapping[str, Tensor]) -> nn.Module | Mapping[str, Tensor]:
        """Move weights. The input is left as it is.

        Permutations and changes of signs are exact in every bit. Rotations are computed in float64 and rounded once, to
        the dtype of the tensor.

        Args:
            weights: A module (a moved deep copy comes back) or a mapping of tensors (a dict comes back, with the same
                names, dtypes and devices). Of a network that stays on disk one comes back that is read, and moved,
                when it is asked for a tensor.

        Raises:
            AlignmentError: Names or shapes are not those of the graph; every mismatch is listed. Or the weights are
                not folded as the graph needs them, or a module holds several values in a buffer that was one value
                where the graph was traced. Or signs or rotations act on whole numbers, or make values that the dtype
                of their tensor cannot hold.
        """
        if isinstance(weights, LazyWeights):
            if weights.graph != self.graph:
                raise AlignmentError("the weights were bound to another graph than that of the alignment.")
            return weights.under(self.elements)
        fit = fit_of(self.graph)
        tensors = fit.check_tensors(weights_of(weights), "the weights", values=False)
        fit.raise_if_any(AlignmentError, "the weights do not fit the alignment's graph")
        check_folded(self.graph, {"the weights": tensors}, AlignmentError)
        check_constants(self.graph.provenance.constant, {"the model": weights}, AlignmentError)
        first = self.graph.first_names
        if not isinstance(weights, nn.Module):
            moved = {name: self.apply_tensor(name, tensor) for name, tensor in tensors.items()}
            return {name: moved[first[name]] for name in weights}
        module = copy_module(weights)
        with torch.no_grad():
            for name, tensor in module.state_dict(keep_vars=True).items():
                if name in first and self.graph.tensors[first[name]].groups:
                    tensor.data.copy_(self.apply_tensor(first[name], tensors[first[name]]))
        return module

    @check_arguments
    def apply_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Move one tensor of the graph, given by its first name; a new tensor comes back."""
        node, tensor = find_node(self.graph, name, tensor), tensor.detach()
        if not node.groups:
            return tensor.clone()
        kinds = {KINDS[self.graph.groups[group].kind] for group in node.groups}
        moving = [facts for facts in kinds if facts.mark]
        if moving and not is_number(tensor):
            held = f"tensor {name!r} holds {dtype_name(tensor.dtype)}"
            raise AlignmentError(f"{held}, which cannot be {moving[0].words}. Only permutations act on whole numbers.")
        if not any(facts.rotates for facts in moving):
            return act_on_blocks(node.blocks, tensor, self.elements)
        wide = act_on_blocks(node.blocks, tensor.to(torch.promote_types(tensor.dtype, torch.float64)), self.elements)
        return narrow(wide, tensor.dtype, name, AlignmentError)

    @check_arguments
    def save(self, path: str | Path) -> None:
        """Write a ``.safetensors`` file that belongs to the graph, in place of one that is there.

        Raises:
            WeightsError: The name ends in something else, or the file cannot be written: then nothing changes.
        """
        FORMAT.write_tensors(Path(path), self.elements, {"graph": self.graph.fingerprint})

    @classmethod
    @check_arguments
    def load(cls, path: str | Path, graph: GraphStructure) -> Alignment:
        """Read an alignment that was saved for the same graph.

        Raises:
            AlignmentError: The file is damaged, is not an alignment, or belongs to another graph.
        """
        content, elements = FORMAT.read_tensors(Path(path))
        check_same_graph(path, content.graph, graph)
        with FORMAT.rebuilding(path):
            return cls(graph, elements)


def _is_same(left: Tensor, right: Tensor) -> bool:
    if left.is_floating_point():
        return bool(((left - right).abs() <= TOLERANCE).all())
    return torch.equal(left, right)


def checked_element(graph: GraphStructure, group: str, given: object) -> Tensor:
    """Return the element of a group on the CPU, as int64 or float64; raise `AlignmentError` unless it is one."""
    kind, shape, rotates = graph.groups[group].kind, graph.element_shape(group), graph.rotates(group)
    needed = f"group {group!r} needs {'float64 numbers' if rotates else 'whole numbers'} of shape {shape}"
    try:
        values = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise AlignmentError(f"{needed}, found {type(given).__name__}.") from error
    if (why := why_no_values(values)) is not None:
        raise AlignmentError(f"{needed}, found one {why}.")
    is_fitting = values.is_floating_point() if rotates else values.dtype in WHOLE
    if not is_fitting or tuple(values.shape) != shape:
        raise AlignmentError(f"{needed}, found {values.dtype} of shape {tuple(values.shape)}.")
    values = values.detach().to("cpu", torch.float64 if rotates else torch.int64)
    if rotates:
        if problem := why_no_rotation(kind, values):
            raise AlignmentError(f"the matrix of group {group!r} {problem}. The group is {KINDS[kind]}.")
        return values
    order = order_of(values) if kind == "signed" else values
    if not (np.sort(order.numpy()) == np.arange(shape[-1])).all():
        problem = f"the indices of group {group!r} are not a permutation of 0 .. {shape[-1] - 1}"
        raise AlignmentError(f"{problem}: an index is missing or there twice.")
    return values


def find_node(graph: GraphStructure, name: str, tensor: Tensor) -> TensorNode:
    """Return the node of a tensor given by its first name; `AlignmentError` where name or shape are not the graph's."""
    if name not in graph.tensors:
        raise AlignmentError(f"the graph has no tensor {name!r}.{did_you_mean(name, graph.tensors)}")
    if tensor.shape != (shape := graph.tensors[name].shape):
        raise AlignmentError(f"tensor {name!r} has shape {tuple(tensor.shape)}, the graph says {shape}.")
    return graph.tensors[name]


def check_same_graph(path: str | Path, fingerprint: object, graph: GraphStructure) -> None:
    """Raise AlignmentError where the fingerprint in a file is not that of the graph that it is loaded with."""
    if fingerprint != graph.fingerprint:
        both = f"fingerprint {fingerprint}, not {graph.fingerprint}"
        raise AlignmentError(f"{path} belongs to another graph ({both}). Load it with the graph that it was made for.")
