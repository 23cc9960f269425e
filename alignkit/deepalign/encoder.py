"""The universal encoder: units described by what they do on probes, and by messages from their neighbours.

A unit's feature is a set over probes, with a few channels for each: its values, its gradients, and what rounds of
messages along the weights add to them. Every parameter is shared by all units, groups, tensors and probes, so that one
small network serves any graph, and nothing can be learned about one architecture's axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from alignkit.activations import Reading
from alignkit.deepalign.aligner import USUAL, Aligner, AlignerInput, Probing, Schedule
from alignkit.deepalign.input_domain import InputDomain
from alignkit.deepalign.probes import Response, channels, respond
from alignkit.deepalign.scores import cosines, is_finite, of_unit_size, standardise
from alignkit.deepalign.wiring import ALIKE, Connection, Wiring, find_wiring, unit_norms
from alignkit.errors import SolverError

SIGNALS = 5
"""Channels of a unit on a probe: value read, value written, gradient, value times gradient, share of positives."""
STATISTICS = 4
"""Numbers of a unit: bias, scale, norms of the weights that write it and of those that read it."""
ROLES = ("pre", "post", "both")
FLOOR = 1e-12
"""Root mean squares below this count as this, so that signals that are all 0 stay 0."""

UnitFeatures = Float[Tensor, "units probes channels"]
Features = Mapping[str, UnitFeatures]
Responses = Mapping[Reading, list[Response]]


class ProbeEncoder(Aligner):
    """Messages over units and probes, after [Navon24] with weights shared by role.

    Args:
        channels: Learned channels of a unit on a probe.
        rounds: Rounds of messages.
        probes: Maximum number of probes that messages are passed on; the plain channels use all.
        domain: Arguments of `InputDomain` for an encoder that knows what inputs are like; its values come with the
            parameters.
        schedule: Arguments of `Schedule`, what follows the scores; None for the usual one.
    """

    encoder: ClassVar[str] = "learned"
    needs_probes: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 8,
        rounds: int = 2,
        probes: int = 64,
        domain: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.rounds, self.probes = channels, rounds, probes
        self.domain = None if domain is None else InputDomain(**domain)
        self.schedule = Schedule(**schedule or {})
        self.mix = nn.Parameter(torch.ones(len(ROLES), 3))
        self.learned = nn.Parameter(torch.tensor(0.1))
        self.layers = nn.ModuleList(Messages(channels) for _ in range(rounds))
        self.read_out = nn.Linear(SIGNALS + channels, channels)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        own: dict[str, Any] = {"channels": self.channels, "rounds": self.rounds, "probes": self.probes}
        if self.domain is not None:
            own["domain"] = self.domain.settings()
        if self.schedule != USUAL:
            own["schedule"] = asdict(self.schedule)
        return own

    def forward(self, pair: AlignerInput) -> dict[str, Tensor]:
        """Score every group whose units are seen; see `Aligner.forward`."""
        probing = pair.probing
        if probing is None:
            raise SolverError("the learned encoder runs both networks: give a task, or bind modules with known inputs.")
        responses = [respond(probing, side, pair.seed) for side in (pair.a, pair.b)]
        wiring = find_wiring(pair.graph, probing.model)
        names = pair.graph.first_names
        weights = [{names.get(n, n): t for n, t in side.items()} for side in (pair.a, pair.b)]
        a, b = (self._encode(probing, wiring, *side) for side in zip(responses, weights, strict=True))
        scores = {}
        for group, readings in probing.readings.items():
            # The mean of the plain channels over all readings, weighted by the kind of each reading.
            plain: list[Tensor] = []
            for reading in readings:
                shares = self.mix[ROLES.index(reading.site.when)]
                for both in zip(*(side[reading] for side in responses), strict=True):
                    parts = (
                        (share, part) for share, part in zip(shares, channels(*both), strict=False) if is_finite(part)
                    )
                    plain += [share * standardise(channel) for share, channel in parts]
            terms = [sum(plain[1:], plain[0]) / len(plain)] if plain else []
            if group in a and group in b:
                learned = self.learned * standardise(cosines(a[group].flatten(1), b[group].flatten(1)))
                if is_finite(learned):
                    terms.append(learned.to(terms[0].dtype) if terms else learned)
            if terms:
                scores[group] = sum(terms[1:], terms[0])
        return scores

    def _encode(
        self, probing: Probing, wiring: Wiring, responses: Responses, weights: Mapping[str, Tensor]
    ) -> dict[str, UnitFeatures]:
        """Compute the features of the units of one network, centred over probes."""
        count, dtype = probing.batch.size, self.read_out.weight.dtype
        seen = {group: signals(readings, responses, count) for group, readings in probing.readings.items()}
        base = {group: values[:, : self.probes].to(dtype) for group, values in seen.items() if values is not None}
        weights = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point() and tensor.numel()}
        # Only how the weights of one tensor compare counts, so that they may be brought to a size that the dtype holds.
        weights = {n: of_unit_size(t, tuple(range(t.ndim))).to(dtype) for n, t in weights.items()}
        matrices = {c: c.matrix(weights) for c in wiring.connections if {c.source.group, c.target.group} <= base.keys()}
        # Bias, scale, and norms of the weights that write and that read, each a mean over the tensors that have it.
        kinds: dict[str, list[list[Tensor]]] = {group: [[] for _ in range(STATISTICS)] for group in base}
        for vector in (vector for vector in wiring.vectors if vector.use.group in base):
            kinds[vector.use.group][int(vector.is_scale)].append(vector.values(weights))
        for connection in wiring.connections:
            for kind, use in ((2, connection.target), (3, connection.source)):
                if use.group in base:
                    kinds[use.group][kind].append(unit_norms(use, weights))
        numbers = {}
        for group, values in base.items():
            means = [torch.stack(parts).mean(0) if parts else values.new_zeros(len(values)) for parts in kinds[group]]
            numbers[group] = torch.stack(means, -1)
        state = {group: values.new_zeros(*values.shape[:2], self.channels) for group, values in base.items()}
        for layer in self.layers:
            state = layer(
                {g: torch.cat([values, state[g]], -1) for g, values in base.items()}, state, matrices, numbers
            )
        features = {group: self.read_out(torch.cat([values, state[group]], -1)) for group, values in base.items()}
        return {group: values - values.mean(1, keepdim=True) for group, values in features.items()}


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

    def forward(
        self, full: Features, state: Features, matrices: Mapping[Connection, Tensor], numbers: Mapping[str, Tensor]
    ) -> dict[str, UnitFeatures]:
        """Return the next states, of root mean square about 1 over each group.

        Messages are averaged over all matrices that reach a group, along the weights and against them.
        """

        def send(matrix: Tensor, features: UnitFeatures) -> UnitFeatures:
            return (matrix @ features.flatten(1)).reshape(-1, *features.shape[1:])

        before = {group: self.before(features) for group, features in full.items()}
        behind = {group: self.behind(features) for group, features in full.items()}
        received: dict[str, tuple[list[Tensor], list[Tensor]]] = {group: ([], []) for group in full}
        for connection, matrix in matrices.items():
            # Rows of a matrix have norm 1 on average; those of its transpose are brought there.
            turned = matrix.T * (matrix.shape[1] / matrix.shape[0]) ** 0.5
            source, target = connection.source.group, connection.target.group
            received[target][0].append(send(matrix, before[source]))
            received[source][1].append(send(turned, behind[target]))
        states = {}
        for group, features in full.items():
            silence = torch.zeros_like(before[group])
            messages = [torch.stack(parts).mean(0) if parts else silence for parts in received[group]]
            pooled = self.pool(torch.cat([features.mean(1), features.square().mean(1)], -1))
            pooled, own = (x[:, None].expand(-1, features.shape[1], -1) for x in (pooled, numbers[group]))
            inputs = torch.cat([*messages, pooled, features, own], -1)
            moved = state[group] + self.change(functional.relu(self.hidden(inputs)))
            states[group] = moved / (moved.square().mean().sqrt() + 0.1)
        return states


def signals(readings: list[Reading], responses: Responses, probes: int) -> UnitFeatures | None:
    """Collect what the units of a group do on each probe, averaged over positions and readings; None if never seen.

    Args:
        readings: Readings of the group.
        responses: Responses of one network.
        probes: Number of probes.
    """
    kinds: dict[str, list[Tensor]] = {kind: [] for kind in ("post", "pre", "gradient", "product", "gate")}
    for reading in readings:
        roles = ("pre", "post") if reading.site.when == "both" else (reading.site.when,)
        for values, gradients in ((r.values, r.gradients) for r in responses[reading]):
            if len(values) % probes:  # not a whole number of positions a probe
                continue
            means = _by_probe(values, probes)
            centred = means - means.mean(1, keepdim=True)
            # Zeros where deviations are no more than rounding of the values.
            centred = centred * (centred.square().mean() > (ALIKE * values).square().mean())
            for role in roles:
                kinds[role].append(centred)
            if "pre" in roles:
                kinds["gate"].append(_by_probe((values > 0).to(values.dtype) - 0.5, probes))
            if gradients is not None:
                kinds["gradient"].append(_by_probe(gradients, probes))
                kinds["product"].append(_by_probe(values * gradients, probes))
    first = next((parts[0] for parts in kinds.values() if parts), None)
    if first is None:
        return None
    kinds["post"] = kinds["post"] or kinds["pre"]
    kinds["pre"] = kinds["pre"] or kinds["post"]
    columns = []
    for parts in kinds.values():
        scaled = [part / part.square().mean().sqrt().clamp(min=FLOOR) for part in parts]
        columns.append(torch.stack(scaled).mean(0) if scaled else torch.zeros_like(first))
    return torch.stack(columns, -1)


def _by_probe(values: Float[Tensor, "samples units"], probes: int) -> Float[Tensor, "units probes"]:
    """Average over the positions of each probe.

    Means that cancel, as gradients of keys do over tokens, are zeros: their rounding must not be blown up.
    """
    means = values.reshape(probes, -1, values.shape[-1]).mean(1).T
    return means * (means.square().mean() > (ALIKE * values).square().mean())
