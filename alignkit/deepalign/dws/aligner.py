"""The aligner of [Navon24] on any graph: an equivariant weight-space encoder, unit features, cosines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignkit.checkpoints.documents import without_digest
from alignkit.deepalign.aligner import Aligner, AlignerInput, Schedule
from alignkit.deepalign.dws.domains import find_incidences
from alignkit.deepalign.dws.layers import Affine, DwsLayer, Features, Lift, spread_out
from alignkit.deepalign.scores import cosines
from alignkit.errors import AlignmentError
from alignkit.graph import SymmetryGraph


class DwsAligner(Aligner):
    """Aligns networks of one graph from their weights alone; the same encoder sees both.

    After [Navon24]: an encoder of affine equivariant layers ([Navon23]) and pointwise functions, features of every
    unit of every group, cosines of the features. The layers follow from the incidences of the graph, so that any graph
    is served. Features are spread out over units before every function and before the cosines, which keeps apart what
    an untrained encoder maps close together. Parameters grow with the tensors and with the fixed positions of their
    blocks, not with the number of units; the time grows with the number of weights that connect groups.

    Args:
        graph: The graph whose networks are aligned.
        hidden: Channels of each unit of a group.
        edges: Channels of each weight between groups.
        output: Channels of each unit that are compared.
        layers: Number of hidden layers.
        lifted: Maximum number of fixed positions (inputs, outputs, kernel) of a block that get weights of their own.
            More are hashed into that many.
        seed: Seed of the parameters.

    Raises:
        AlignmentError: The graph has no groups.
    """

    encoder: ClassVar[str] = "dws"
    needs_probes: ClassVar[bool] = False
    schedule = Schedule(rounds=0, steps=0)

    def __init__(
        self,
        graph: SymmetryGraph,
        hidden: int = 64,
        edges: int = 16,
        output: int = 64,
        layers: int = 3,
        lifted: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not graph.groups:
            raise AlignmentError("the graph has no groups, so there is nothing to align.")
        self.graph = graph
        self._settings = {
            "hidden": hidden, "edges": edges, "output": output, "layers": layers, "lifted": lifted, "seed": seed
        }  # fmt: skip
        self.facts = find_incidences(graph)
        widths = [hidden if domain.is_group else edges for domain in self.facts.domains]
        generator = torch.Generator().manual_seed(seed)
        self.lift = Lift(self.facts, widths, lifted, generator)
        before = [self.lift.widths, *[widths] * layers]
        self.layers = nn.ModuleList(DwsLayer(self.facts, before[i], widths, generator) for i in range(layers))
        self.read = nn.ModuleList(
            Affine(self.facts, number, before[-1], output, generator) for number in self.facts.units.values()
        )

    def settings(self) -> dict[str, Any]:
        """Return the settings and the graph, as JSON can hold them."""
        document = without_digest(json.loads(self.graph.to_json()))  # the aligner's file has one of its own
        return {"graph": json.dumps(document, separators=(",", ":")), **self._settings}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Make an aligner from its settings, with fresh parameters."""
        rest = {name: value for name, value in settings.items() if name != "graph"}
        return cls(SymmetryGraph.from_json(settings["graph"]), **rest)

    def fits(self, graph: SymmetryGraph) -> str | None:
        """Return None for the graph that the aligner was made for, else why it does not serve this one."""
        if graph == self.graph:
            return None
        return (
            f"an aligner with encoder 'dws' serves one graph only: it was made for {self.graph!r} "
            f"(fingerprint {self.graph.fingerprint}), and this is {graph!r} (fingerprint {graph.fingerprint}). Train "
            "one for this graph, or take encoder 'learned' or 'probes', which serve any graph"
        )

    def forward(self, pair: AlignerInput) -> dict[str, Float[Tensor, "units units"]]:
        """Score one pair, in float64; see `Aligner.forward`.

        Raises:
            AlignmentError: The pair belongs to another graph.
        """
        if (reason := self.fits(pair.graph)) is not None:
            raise AlignmentError(f"{reason}.")
        a, b = ({name: tensor[None] for name, tensor in side.items()} for side in (pair.a, pair.b))
        return {group: matrix[0] for group, matrix in self.scores(a, b).items()}

    def scores(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "pairs units units"]]:
        """Score several pairs at once.

        Args:
            a: Weights of the networks A, each tensor stacked along a new first axis.
            b: Weights of the networks B.
        """
        count = len(next(iter(a.values())))
        features = self.encode({name: torch.cat((a[name], b[name])) for name in a})
        # In float64: close units differ by less than float32 shows.
        spread = {group: spread_out(x.double()).mT for group, x in features.items()}
        return {group: cosines(x[:count], x[count:]) for group, x in spread.items()}

    def encode(self, weights: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "networks output units"]]:
        """Compute features of the units of each group, over all parents, of networks stacked along a first axis."""
        used = {placed.tensor: self.graph.tensors[placed.tensor].names for placed in self.facts.placements}
        tensors = {first: next(weights[name] for name in names if name in weights) for first, names in used.items()}
        features: Features = self.lift(tensors, self.log_sharpness.dtype)
        for layer in self.layers:
            features = layer(features)
        return {group: read(features).flatten(2) for group, read in zip(self.facts.units, self.read, strict=True)}
