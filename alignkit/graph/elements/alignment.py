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
from alignkit.errors import AlignmentError
from alignkit.graph.bind import LazyWeights, fit_of, weights_of
from alignkit.graph.description import group_table
from alignkit.graph.elements.action import act_on_blocks
from alignkit.graph.folded import check_folded
from alignkit.graph.hidden_state import check_constants
from alignkit.graph.module_copy import copy_module
from alignkit.graph.nodes import TensorNode
from alignkit.graph.owned import Owned
from alignkit.graph.structure import GraphStructure
from alignkit.text import did_you_mean, html_table, list_some, plural


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

    An alignment never changes: it holds copies of its indices, and ``elements`` hands out copies.

    Args:
        graph: The graph whose symmetry group the alignment belongs to.
        elements: int64 indices for each group, of shape ``graph.element_shape(group)``: the sizes of the group's
            ancestors (none for a root), then its own size.

    Raises:
        AlignmentError: A group is missing, or its indices have the wrong shape or are not a permutation.
    """

    @check_arguments
    def __init__(self, graph: GraphStructure, elements: Mapping[str, Tensor]) -> None:
        if unknown := [name for name in elements if name not in graph.groups]:
            raise AlignmentError(f"the graph has no groups {list_some([repr(name) for name in unknown], 5)}.")
        checked = {}
        for name in graph.groups:
            if name not in elements:
                raise AlignmentError(f"group {name!r} has no indices.")
            checked[name] = _checked_indices(name, elements[name], graph.element_shape(name))
        self._graph, self._elements = graph, Owned(checked)

    @property
    def graph(self) -> GraphStructure:
        """The graph whose symmetry group the alignment belongs to."""
        return self._graph

    @property
    def elements(self) -> Mapping[str, Tensor]:
        """For each group a copy of its indices, int64 on the CPU."""
        return self._elements

    @classmethod
    @check_arguments
    def identity(cls, graph: GraphStructure) -> Alignment:
        """Return the alignment that moves nothing."""
        shapes = {name: graph.element_shape(name) for name in graph.groups}
        return cls(graph, {name: torch.arange(shape[-1]).expand(shape).contiguous() for name, shape in shapes.items()})

    @classmethod
    @check_arguments
    def random(cls, graph: GraphStructure, seed: int = 0) -> Alignment:
        """Draw an element of the symmetry group uniformly; the same seed gives the same element."""
        generator = torch.Generator().manual_seed(seed)
        draws = {n: torch.rand(graph.element_shape(n), generator=generator, dtype=torch.float64) for n in graph.groups}
        return cls(graph, {name: draw.argsort(-1) for name, draw in draws.items()})

    @check_arguments
    def flat(self, group: str) -> Tensor:
        """Return where every unit comes from, over all parents: int64 of shape ``[instances * size]``, row-major."""
        if group not in self.graph.groups:
            raise AlignmentError(f"the graph has no group {group!r}.{did_you_mean(group, self.graph.groups)}")
        parent = self.graph.groups[group].parent
        element = self.elements[group]
        if parent is None:
            return element
        return (self.flat(parent)[:, None] * element.shape[-1] + element.reshape(-1, element.shape[-1])).reshape(-1)

    def _from_flat(self, flats: Mapping[str, Tensor]) -> Alignment:
        # The place within the parent is the remainder; the parent's own vector says the rest.
        shapes = {name: self.graph.element_shape(name) for name in flats}
        return Alignment(self.graph, {n: (flat % shapes[n][-1]).reshape(shapes[n]) for n, flat in flats.items()})

    def inverse(self) -> Alignment:
        """Return the alignment that undoes this one."""
        return self._from_flat({name: self.flat(name).argsort() for name in self.graph.groups})

    def __matmul__(self, other: Alignment) -> Alignment:
        """Compose two alignments: ``(g @ h).apply(w)`` equals ``g.apply(h.apply(w))``."""
        if not isinstance(other, Alignment):
            return NotImplemented
        if self.graph != other.graph:
            raise AlignmentError("the two alignments belong to different graphs, so they cannot be composed.")
        return self._from_flat({name: other.flat(name)[self.flat(name)] for name in self.graph.groups})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Alignment) or self.graph != other.graph:
            return False
        return all(torch.equal(element, other.elements[name]) for name, element in self.elements.items())

    def __hash__(self) -> int:
        return hash((self.graph, *(tuple(element.reshape(-1).tolist()) for element in self.elements.values())))

    @property
    def is_identity(self) -> bool:
        """Whether no unit moves."""
        return not any(self.moved().values())

    def moved(self) -> dict[str, int]:
        """Count the units of each group that change their place, over all parents."""
        return {n: int((self.flat(n) != torch.arange(self.flat(n).numel())).sum()) for n in self.graph.groups}

    def as_matrices(self) -> dict[str, Tensor]:
        """Return permutation matrices: float32 ``[n, n]`` for a root, ``[*ancestors, n, n]`` for a family.

        Row ``i`` has its one at column ``element[i]``, so that the matrix times B's units gives the aligned units.
        """
        return {n: nn.functional.one_hot(element, element.shape[-1]).float() for n, element in self.elements.items()}

    @property
    def summary(self) -> str:
        """Numbers of groups, of units, and of units that move, in one line."""
        total = sum(self.graph.unit_count(name) for name in self.graph.groups)
        return f"{plural(len(self.elements), 'group')}, {sum(self.moved().values())} of {total} units moved"

    def __repr__(self) -> str:
        return f"Alignment({self.summary})"

    def _repr_html_(self) -> str:
        moved = self.moved()
        rows = [(name, units, str(moved[name.strip()])) for name, units, _ in group_table(self.graph)]
        return html_table(("group", "units", "moved"), rows, f"Alignment: {self.summary}")

    @overload
    def apply(self, weights: ModuleT) -> ModuleT: ...
    @overload
    def apply(self, weights: LazyWeights) -> LazyWeights: ...  # type: ignore[overload-overlap]
    @overload
    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    @check_arguments
    def apply(self, weights: nn.Module | Mapping[str, Tensor]) -> nn.Module | Mapping[str, Tensor]:
        """Permute weights. The input is left as it is.

        Args:
            weights: A module (a permuted deep copy comes back) or a mapping of tensors (a dict comes back, with the
                same names, dtypes and devices). Of a network that stays on disk one comes back that is read, and
                permuted, when it is asked for a tensor.

        Raises:
            AlignmentError: Names or shapes are not those of the graph; every mismatch is listed. Or the weights are
                not folded as the graph needs them, or a module holds several values in a buffer that was one value
                where the graph was traced.
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
            permuted = {name: self.apply_tensor(name, tensor) for name, tensor in tensors.items()}
            return {name: permuted[first[name]] for name in weights}
        module = copy_module(weights)
        with torch.no_grad():
            for name, tensor in module.state_dict(keep_vars=True).items():
                if name in first and self.graph.tensors[first[name]].groups:
                    tensor.data.copy_(self.apply_tensor(first[name], tensors[first[name]]))
        return module

    @check_arguments
    def apply_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Permute one tensor of the graph, given by its first name; a new tensor comes back."""
        node = find_node(self.graph, name, tensor)
        if not node.groups:
            return tensor.detach().clone()
        return act_on_blocks(node.blocks, tensor.detach(), self.elements)

    @check_arguments
    def save(self, path: str | Path) -> None:
        """Write a safetensors file, bound to the graph by its fingerprint, whole or not at all (`WeightsError`)."""
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


def _checked_indices(group: str, given: object, shape: tuple[int, ...]) -> Tensor:
    """Return the indices of a group as int64 on the CPU; raise `AlignmentError` unless they are permutations."""
    needed = f"group {group!r} needs whole numbers of shape {shape}"
    try:
        indices = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise AlignmentError(f"{needed}, found {type(given).__name__}.") from error
    if (kind := why_no_values(indices)) is not None:
        raise AlignmentError(f"{needed}, found one {kind}.")
    if indices.dtype not in WHOLE or tuple(indices.shape) != shape:
        raise AlignmentError(f"{needed}, found {indices.dtype} of shape {tuple(indices.shape)}.")
    whole = indices.detach().to("cpu", torch.int64)
    if not np.array_equal(np.sort(whole.numpy()), np.broadcast_to(np.arange(shape[-1]), shape)):
        problem = f"the indices of group {group!r} are not a permutation of 0 .. {shape[-1] - 1}"
        raise AlignmentError(f"{problem}: an index is missing or there twice.")
    return whole


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
