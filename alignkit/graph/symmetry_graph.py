"""What users hold: `SymmetryGraph`, the symmetries of an architecture, and `Pair`, two networks on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from networkx import MultiDiGraph
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints.staging import staged
from alignkit.checkpoints.writer import OnProgress
from alignkit.errors import BindError, GraphError, MissingExtraError
from alignkit.graph.bind import WeightsSource, fit_models
from alignkit.graph.description import describe, group_table
from alignkit.graph.drawing import diagrams
from alignkit.graph.nodes import Provenance
from alignkit.graph.owned import ReadOnly
from alignkit.graph.proof.verify import Verification, verify
from alignkit.graph.rewrites import AnyBalance, Blocked, Fold
from alignkit.graph.serial import build_network, graph_from_json, graph_to_json
from alignkit.graph.spec import Like, read_spec, write_spec
from alignkit.graph.stored.budget import Budget
from alignkit.graph.stored.network import StoredNetwork
from alignkit.graph.stored.opening import open_stored
from alignkit.graph.structure import GraphStructure
from alignkit.text import html_table, install_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SymmetryGraph(GraphStructure):
    """The symmetries of an architecture.

    An immutable value: groups, tensors, and the layout of every axis. The same facts are a networkx `MultiDiGraph` in
    `nx`: an edge tensor -> group says where the group acts, an edge child -> parent that units are nested in units.

    Args:
        tensors: Tensor nodes with resolved layouts.
        groups: The groups that the layouts mention, by name.
        provenance: Where the graph comes from.
        folds: What has to be done to weights before the graph holds for them.
        balances: Spaces whose scales or matrices may be moved from one side to the other, and phases of sines.
        blocked: Parameters that cannot be folded.

    Raises:
        GraphError: An invariant is broken; the message names tensor, axis and group.
    """

    @classmethod
    @check_arguments
    def from_spec(
        cls,
        spec: Mapping[str, str],
        like: Like,
        *,
        sizes: Mapping[str, int] | None = None,
        provenance: Provenance | None = None,
        folds: Sequence[Fold] = (),
        balances: Sequence[AnyBalance] = (),
        blocked: Sequence[Blocked] = (),
    ) -> SymmetryGraph:
        """Build a graph from the notation.

        Args:
            spec: Layout of each tensor, for example ``{"fc1.weight": "h1 ."}``. Of tied tensors one name is enough;
                tensors without axes may be left out.
            like: The module, state dict or mapping of shapes that the spec is written for.
            sizes: Sizes of groups that the shapes leave open, for example ``{"heads": 12}``.
            provenance: Where the spec comes from.
            folds: What has to be done to weights first; the layouts are those of folded weights.
            balances: Spaces whose scales or matrices may be moved from one side to the other, and phases of sines.
            blocked: Parameters that cannot be folded.

        Raises:
            SpecError: A layout cannot be read, or the names in the spec are not those of ``like``.
            ShapeMismatchError: Layouts contradict shapes.
            GraphError: Another invariant is broken.
        """
        return cls(*read_spec(spec, like, sizes or {}), provenance, folds, balances, blocked)

    def spec(self) -> dict[str, str]:
        """Write the notation of every tensor, sizes only where shapes leave them open; `from_spec` reads it back."""
        return write_spec(self)

    @cached_property
    def nx(self) -> MultiDiGraph:
        """The graph as a frozen networkx `MultiDiGraph`; nodes are named by tensor and group."""
        return build_network(self)

    @check_arguments
    def bind(
        self,
        a: WeightsSource,
        b: WeightsSource,
        *,
        memory: int | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Pair:
        """Hold the weights of two models against the graph.

        Args:
            a: Reference model: a module, a state dict, a `Checkpoint`, or the path of a checkpoint file or folder.
            b: Model to be aligned.
            memory: What may be used beyond what the process takes anyway: bytes, or text such as ``"2GB"``. Both
                checkpoints stay on disk then, and are read in parts when a solver or a job needs them. It has to hold
                two square float64 matrices of the largest group, and some parts of tensors.
            on_progress: Called while weight matching sweeps over the groups: how far the sweep has come, how long it
                takes at this pace, and with ``memory`` the bytes that were read.

        Returns:
            The pair. Tensors are detached, not copied.

        Raises:
            BindError: Names, shapes, dtypes or values do not fit, or a model is not folded as the graph needs it; the
                message lists every mismatch of both models. Values on disk are looked at by what reads them first.
            SolverError: The memory does not suffice.
            WeightsError: A file cannot be read.
        """
        kept = next((side.budget.memory for side in (a, b) if isinstance(side, StoredNetwork)), None)
        if (limit := kept if memory is None else memory) is not None:
            stored_a, stored_b = open_stored(self, {"A": a, "B": b}, Budget.of(self, limit))
            return Pair(self, stored_a, stored_b, on_progress=on_progress)
        side_a, side_b = fit_models(self, {"A": a, "B": b}, BindError, "the weights do not fit the graph")
        module_a, module_b = (source if isinstance(source, nn.Module) else None for source in (a, b))
        return Pair(self, side_a, side_b, module_a, module_b, on_progress)

    @check_arguments
    def verify(self, model: nn.Module, *args: Any, **kwargs: Any) -> Verification:
        """Prove on real weights that symmetries keep the outputs; see `alignkit.graph.proof.verify.verify`."""
        return verify(self, model, *args, **kwargs)

    def report(self) -> str:
        """Describe groups, families and what is fixed in words; see `alignkit.graph.description.describe`."""
        return describe(self)

    def mermaid(self) -> str:
        """Write the graph as Mermaid text."""
        return diagrams.mermaid(self)

    def dot(self) -> str:
        """Write the graph as Graphviz text."""
        return diagrams.graphviz(self)

    @check_arguments
    def draw(self, path: str | Path | None = None) -> Figure:
        """Draw the graph as a picture; see `alignkit.graph.drawing.picture.paint` for how to read it.

        Args:
            path: Where to write the picture; its suffix says the format, for example ``.png``, ``.svg`` or ``.pdf``.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
            GraphError: The suffix is not a format of pictures.
            WeightsError: The file cannot be written.
        """
        try:
            from alignkit.graph.drawing.picture import paint
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            raise MissingExtraError(f"drawing needs matplotlib: {install_extra('plot')}.") from error
        figure = paint(self)
        if path is not None:
            form = Path(path).suffix.removeprefix(".").lower()
            if form not in figure.canvas.get_supported_filetypes():
                raise GraphError(f"{path}: cannot tell the format of the picture. End its name in .png, .svg or .pdf.")
            with staged(Path(path)) as temporary:
                figure.savefig(temporary, format=form)
        return figure

    def to_json(self) -> str:
        """Write versioned JSON in networkx's node-link form, with everything that `from_json` needs."""
        return graph_to_json(self)

    @classmethod
    @check_arguments
    def from_json(cls, text: str) -> SymmetryGraph:
        """Read what `to_json` wrote; `SpecError` if it is not a graph of a version that this release reads."""
        return graph_from_json(text, cls)

    def _repr_html_(self) -> str:
        return html_table(("group", "units", "acts on"), group_table(self), self.summary)


@dataclass(frozen=True, eq=False)
class Pair:
    """A graph with the weights of two models, checked to fit.

    ``a`` are those of the reference model, by the first name of each tensor, ``b`` those of the model to be aligned;
    ``module_a`` and ``module_b`` are the modules that they came from, None for weights given otherwise. The mappings
    are the pair's own and cannot be written to; the tensors in them are the caller's, and are not copied.
    """

    graph: SymmetryGraph
    a: Mapping[str, Tensor] = field(repr=False)
    b: Mapping[str, Tensor] = field(repr=False)
    module_a: nn.Module | None = field(default=None, repr=False)
    module_b: nn.Module | None = field(default=None, repr=False)
    on_progress: OnProgress | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for side in ("a", "b"):
            tensors = getattr(self, side)
            if isinstance(tensors, dict | MappingProxyType):  # other mappings read their tensors from disk when asked
                object.__setattr__(self, side, ReadOnly(tensors))

    @property
    def device(self) -> torch.device:
        """Device of A's first tensor: where jobs work unless another is given."""
        if isinstance(self.a, StoredNetwork):
            return self.a.device
        return next((tensor.device for tensor in self.a.values()), torch.device("cpu"))

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Dtype of each tensor of A."""
        a = self.a
        return {name: a.dtype(name) if isinstance(a, StoredNetwork) else a[name].dtype for name in a}

    @property
    def is_stored(self) -> bool:
        """Whether a network stays on disk."""
        return isinstance(self.a, StoredNetwork) or isinstance(self.b, StoredNetwork)

    @check_arguments
    def leaving(self, own: int, owner: str) -> Pair:
        """Return the same pair on disk with ``own`` bytes less for its parts, which a solver keeps for itself.

        Raises:
            SolverError: What is left does not suffice.
        """

        def left(side: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            if not isinstance(side, StoredNetwork):
                return side
            return side.within(Budget.of(self.graph, side.budget.memory, own, owner))

        return replace(self, a=left(self.a), b=left(self.b)) if own else self

    def swapped(self) -> Pair:
        """Return the same pair with the roles of A and B exchanged."""
        return replace(self, a=self.b, b=self.a, module_a=self.module_b, module_b=self.module_a)

    def _repr_html_(self) -> str:
        return html_table(("group", "units", "acts on"), group_table(self.graph), f"Two networks on {self.graph!r}")
