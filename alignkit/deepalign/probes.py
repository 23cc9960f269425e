"""Probes: the same random inputs pushed through both networks, the same random cotangents pulled back.

What a unit does on the probes, and how much the outputs change with it, are features that follow the unit under any
permutation. They need the function of a network and its gradient, and no data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignkit.activations.readings import Reading, hooked
from alignkit.activations.sites import ModuleCall
from alignkit.deepalign.scores import cosines, standardise
from alignkit.tasks.batches import Batch, map_tensors, tensors_in
from alignkit.tasks.task import call_with


@dataclass(frozen=True)
class Response:
    """What one reading shows of one network: a column for each unit, in float64.

    Attributes:
        values: Activations, ``[samples, units]``.
        gradients: Gradients of the outputs, weighted by the cotangents, with respect to them; None where a reading is
            computed beside the model and the outputs do not depend on it.
    """

    values: Float[Tensor, "samples units"]
    gradients: Float[Tensor, "samples units"] | None


def respond(
    model: nn.Module, readings: list[Reading], weights: Mapping[str, Tensor], batch: Batch, seed: int
) -> dict[Reading, list[Response]]:
    """Run one network on probes and back.

    Args:
        model: Runs the network, in eval mode.
        readings: What to read.
        weights: Weights of the network.
        batch: The probes.
        seed: Seed of the cotangents.

    Returns:
        For each reading its responses, one for each call of its module.
    """
    by_module: dict[str, list[Reading]] = defaultdict(list)
    for reading in readings:
        by_module[reading.module].append(reading)
    calls: list[tuple[str, ModuleCall]] = []
    with hooked(model, by_module, lambda path, call: calls.append((path, call))), torch.enable_grad():
        # Gradients flow from parameters on; running statistics may not require any.
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        live = {n: t.detach().requires_grad_(n in parameters and t.is_floating_point()) for n, t in weights.items()}
        outputs = call_with(model, live, batch.inputs)
    gradients = _pull_back(outputs, calls, seed)
    responses: dict[Reading, list[Response]] = defaultdict(list)
    for (path, call), pulled in zip(calls, gradients, strict=True):
        for reading in by_module[path]:
            values = reading.features(_map_call(call, lambda tensor: tensor.detach()))
            responses[reading].append(Response(values, None if reading.site.computed else reading.features(pulled)))
    return responses


def _pull_back(outputs: object, calls: list[tuple[str, ModuleCall]], seed: int) -> list[ModuleCall]:
    """Return calls of the same form with gradients in place of activations; zeros where nothing depends on them."""
    ends = [t for t in tensors_in(outputs) if t.is_floating_point() and t.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in ends]
    inner = [t for _, call in calls for t in (*call.inputs, *call.outputs) if t.requires_grad]
    unique = list({id(t): t for t in inner}.values())
    pulled = torch.autograd.grad(ends, unique, cotangents, allow_unused=True) if ends and unique else ()
    table = {id(t): g for t, g in zip(unique, pulled, strict=True) if g is not None}

    def gradient(tensor: Tensor) -> Tensor:
        return table[id(tensor)] if id(tensor) in table else torch.zeros_like(tensor)

    return [_map_call(call, gradient) for _, call in calls]


def _map_call(call: ModuleCall, change: Callable[[Tensor], Tensor]) -> ModuleCall:
    args, kwargs, output = map_tensors(change, (call.args, dict(call.kwargs), call.output))
    return ModuleCall(call.module, args, kwargs, output)


def channels(a: Response, b: Response) -> list[Float[Tensor, "units units"]]:
    """Compute similarities of A's units (rows) and B's (columns): by value, by gradient, and by their product."""

    def centre(values: Tensor) -> Tensor:
        return values - values.mean(0)

    similarities = [cosines(centre(a.values).T, centre(b.values).T)]
    if a.gradients is not None and b.gradients is not None:
        similarities.append(cosines(a.gradients.T, b.gradients.T))
        similarities.append(cosines(centre(a.values * a.gradients).T, centre(b.values * b.gradients).T))
    return similarities


def probe_similarities(
    model: nn.Module,
    readings: Mapping[str, list[Reading]],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    batch: Batch,
    seed: int,
) -> dict[str, Float[Tensor, "units units"]]:
    """Average the standardised channels over all readings of each group; groups that are not read are left out."""
    flat = list(dict.fromkeys(reading for group in readings.values() for reading in group))
    left, right = (respond(model, flat, side, batch, seed) for side in (a, b))
    scores: dict[str, Tensor] = {}
    for group, members in readings.items():
        matrices = [
            standardise(channel)
            for reading in members
            for response_a, response_b in zip(left[reading], right[reading], strict=True)
            for channel in channels(response_a, response_b)
        ]
        if matrices:
            scores[group] = torch.stack(matrices).mean(0).cpu()
    return scores
