"""The universal encoder: units described by what they do on probes, and by messages from their neighbours.

A unit's feature is a set over probes, with a few channels for each: its values, its gradients, and what rounds of
messages along the weights add to them. Every parameter is shared by all units, groups, tensors and probes, so that one
small network serves any graph, and nothing can be learned about one architecture's axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from alignkit.activations.readings import Reading
from alignkit.deepalign.aligner import Aligner, AlignerInput, Probing, aligner_kind
from alignkit.deepalign.probes import Response, channels, respond, standardised
from alignkit.deepalign.wiring import ALIKE, Wiring, find_wiring
from alignkit.errors import SolverError

SIGNALS = 5
"""Channels of a unit on a probe: value read, value written, gradient, value times gradient, share of positives."""
STATISTICS = 4
"""Numbers of a unit: bias, scale, norms of the weights that write it and of those that read it."""
ROLES = ("pre", "post", "both")
FLOOR = 1e-12

UnitFeatures = Float[Tensor, "units probes channels"]


@aligner_kind
class ProbeEncoder(Aligner):
    """Messages over units and probes, after [Navon24] with weights shared by role.

    Args:
        channels: Learned channels of a unit on a probe.
        rounds: Rounds of messages.
        probes: Most probes that messages are passed on; the plain channels use all.
    """

    encoder: ClassVar[str] = "learned"
    needs_probes: ClassVar[bool] = True

    def __init__(self, channels: int = 8, rounds: int = 2, probes: int = 64) -> None:
        super().__init__()
        self.channels, self.rounds, self.probes = channels, rounds, probes
        self.mix = nn.Parameter(torch.ones(len(ROLES), 3))
        self.learned = nn.Parameter(torch.tensor(0.1))
        self.layers = nn.ModuleList(Messages(channels) for _ in range(rounds))
        self.read_out = nn.Linear(SIGNALS + channels, channels)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"channels": self.channels, "rounds": self.rounds, "probes": self.probes}

    def forward(self, pair: AlignerInput) -> dict[str, Tensor]:
        """Scores of every group whose units are seen; see `Aligner`."""
        probing = pair.probing
        if probing is None:
            raise SolverError("the learned encoder runs both networks: give a task, or bind modules with known inputs.")
        flat = list(dict.fromkeys(r for places in probing.readings.values() for r in places))
        sides = [respond(probing.model, flat, side, probing.batch, pair.seed) for side in (pair.a, pair.b)]
        wiring = find_wiring(pair.graph, probing.model)
        names = pair.graph.first_names
        weights = [{names.get(n, n): t for n, t in side.items()} for side in (pair.a, pair.b)]
        a, b = (self._encoded(probing, wiring, *both) for both in zip(sides, weights, strict=True))
        scores = {}
        for group, places in probing.readings.items():
            plain = self._mixed(places, *sides)
            if group in a and group in b:
                added = self.learned * standardised(_cosines(a[group], b[group]))
                plain = added if plain is None else plain + added.to(plain.dtype)
            if plain is not None:
                scores[group] = plain
        return scores

    def _mixed(
        self, places: list[Reading], a: Mapping[Reading, list[Response]], b: Mapping[Reading, list[Response]]
    ) -> Tensor | None:
        """Mean of the plain channels over all readings, weighted by their kind."""
        total, count = None, 0
        for reading in places:
            row = self.mix[ROLES.index(reading.place.when)]
            for one, other in zip(a[reading], b[reading], strict=True):
                for weight, channel in zip(row, channels(one, other), strict=False):
                    part = weight * standardised(channel)
                    total = part if total is None else total + part
                    count += 1
        return None if total is None else total / count

    def _encoded(
        self,
        probing: Probing,
        wiring: Wiring,
        responses: Mapping[Reading, list[Response]],
        weights: Mapping[str, Tensor],
    ) -> dict[str, UnitFeatures]:
        """Features of the units of one network, centred over probes."""
        kept = min(self.probes, probing.batch.size)
        seen = {group: signals(places, responses, probing.batch.size) for group, places in probing.readings.items()}
        dtype = self.read_out.weight.dtype
        base = {group: found[:, :kept].to(dtype) for group, found in seen.items() if found is not None}
        weights = {name: tensor.to(dtype) for name, tensor in weights.items() if tensor.is_floating_point()}
        matrices = {c: c.matrix(weights) for c in wiring.connections if {c.source, c.target} <= base.keys()}
        numbers = {group: unit_statistics(wiring, group, weights, len(found)) for group, found in base.items()}
        state = {group: found.new_zeros(*found.shape[:2], self.channels) for group, found in base.items()}
        for layer in cast(Iterable[Messages], self.layers):
            full = {group: torch.cat([found, state[group]], -1) for group, found in base.items()}
            forward, backward = layer.gathered(full, matrices)
            state = {g: layer(full[g], state[g], forward[g], backward[g], numbers[g]) for g in base}
        read = {group: self.read_out(torch.cat([found, state[group]], -1)) for group, found in base.items()}
        return {group: found - found.mean(1, keepdim=True) for group, found in read.items()}


class Messages(nn.Module):
    """One round: what the units before and behind send, what a unit does on all probes, and its own state.

    Args:
        channels: Learned channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = SIGNALS + channels
        self.before = nn.Linear(width, channels, bias=False)
        self.behind = nn.Linear(width, channels, bias=False)
        self.pool = nn.Linear(2 * width, channels)
        self.hidden = nn.Linear(3 * channels + width + STATISTICS, 4 * channels)
        self.change = nn.Linear(4 * channels, channels)

    def gathered(
        self, full: Mapping[str, UnitFeatures], matrices: Mapping[Any, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Means of the messages that reach each group, along the weights and against them."""
        found: list[dict[str, list[Tensor]]] = [{group: [] for group in full} for _ in range(2)]
        before = {group: self.before(features) for group, features in full.items()}
        behind = {group: self.behind(features) for group, features in full.items()}
        for connection, matrix in matrices.items():
            turned = matrix.T * (matrix.shape[1] / matrix.shape[0]) ** 0.5
            found[0][connection.target].append(_sent(matrix, before[connection.source]))
            found[1][connection.source].append(_sent(turned, behind[connection.target]))
        forward, backward = (
            {g: torch.stack(parts).mean(0) if parts else torch.zeros_like(before[g]) for g, parts in side.items()}
            for side in found
        )
        return forward, backward

    def forward(
        self, full: UnitFeatures, state: UnitFeatures, forward: Tensor, backward: Tensor, numbers: Tensor
    ) -> UnitFeatures:
        """The next state, of root mean square about 1 over the group."""
        probes = full.shape[1]
        pooled = self.pool(torch.cat([full.mean(1), full.square().mean(1)], -1))[:, None].expand(-1, probes, -1)
        inputs = torch.cat([forward, backward, pooled, full, numbers[:, None].expand(-1, probes, -1)], -1)
        state = state + self.change(functional.relu(self.hidden(inputs)))
        return state / (state.square().mean().sqrt() + 0.1)


def _sent(matrix: Tensor, features: UnitFeatures) -> UnitFeatures:
    return (matrix @ features.flatten(1)).reshape(-1, *features.shape[1:])


def signals(
    places: list[Reading], responses: Mapping[Reading, list[Response]], probes: int
) -> Float[Tensor, "units probes signals"] | None:
    """What the units of a group do on each probe, averaged over positions and readings; None if they are not seen.

    Args:
        places: Readings of the group.
        responses: Responses of one network.
        probes: Number of probes.
    """
    kinds: dict[str, list[Tensor]] = {kind: [] for kind in ("post", "pre", "gradient", "product", "gate")}
    for reading in places:
        for response in responses[reading]:
            values = _by_probe(response.values, probes)
            if values is None:
                continue
            roles = ("pre", "post") if reading.place.when == "both" else (reading.place.when,)
            for role in roles:
                kinds[role].append(_centred(values, response.values))
            if "pre" in roles:
                kinds["gate"].append(_by_probe((response.values > 0).to(values.dtype) - 0.5, probes))  # type: ignore[arg-type]
            if response.gradients is not None:
                kinds["gradient"].append(_by_probe(response.gradients, probes))  # type: ignore[arg-type]
                kinds["product"].append(_by_probe(response.values * response.gradients, probes))  # type: ignore[arg-type]
    shown = next((found[0] for found in kinds.values() if found), None)
    if shown is None:
        return None
    kinds["post"] = kinds["post"] or kinds["pre"]
    kinds["pre"] = kinds["pre"] or kinds["post"]
    parts = [
        torch.stack([_scaled(one) for one in found]).mean(0) if found else torch.zeros_like(shown)
        for found in kinds.values()
    ]
    return torch.stack(parts, -1)


def unit_statistics(
    wiring: Wiring, group: str, weights: Mapping[str, Tensor], units: int
) -> Float[Tensor, "units statistics"]:
    """Bias, scale, and norms of the weights before and behind, each a mean over the tensors that have it."""
    kinds: list[list[Tensor]] = [[] for _ in range(STATISTICS)]
    for vector in wiring.vectors:
        if vector.group == group:
            kinds[int(vector.is_scale)].append(vector.values(weights))
    for connection in wiring.connections:
        if connection.target == group:
            kinds[2].append(connection.unit_norms(weights, connection.outputs))
        if connection.source == group:
            kinds[3].append(connection.unit_norms(weights, connection.inputs))
    nothing = next(iter(weights.values())).new_zeros(units)
    return torch.stack([torch.stack(found).mean(0) if found else nothing for found in kinds], -1)


def _by_probe(values: Float[Tensor, "samples units"], probes: int) -> Float[Tensor, "units probes"] | None:
    """Means over the positions of each probe; None where samples are no whole number of positions.

    Means that cancel, as gradients of keys do over tokens, are zeros: their rounding must not be blown up.
    """
    if values.shape[0] % probes:
        return None
    means = values.reshape(probes, -1, values.shape[-1]).mean(1).T
    return means * (means.square().mean() > (ALIKE * values).square().mean())


def _centred(values: Float[Tensor, "units probes"], every: Tensor) -> Tensor:
    """Deviations from the mean over probes; zeros where they are no more than rounding of the values."""
    centred = values - values.mean(1, keepdim=True)
    return centred * (centred.square().mean() > (ALIKE * every).square().mean())


def _scaled(values: Tensor) -> Tensor:
    return values / values.square().mean().sqrt().clamp(min=FLOOR)


def _cosines(a: UnitFeatures, b: UnitFeatures) -> Float[Tensor, "units units"]:
    left, right = (functional.normalize(side.flatten(1), dim=1) for side in (a, b))
    return left @ right.T
