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
from alignkit.tasks.batches import Batch, map_tensors, tensors_in
from alignkit.tasks.task import call_with

EPSILON = 1e-30
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Deviations below this share of the largest entry are rounding."""


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
        readings: The places to read.
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
    found: dict[Reading, list[Response]] = defaultdict(list)
    for (path, call), pulled in zip(calls, gradients, strict=True):
        for reading in by_module[path]:
            values = reading.features(_detached(call))
            found[reading].append(Response(values, None if reading.place.computed else reading.features(pulled)))
    return found


def _pull_back(outputs: object, calls: list[tuple[str, ModuleCall]], seed: int) -> list[ModuleCall]:
    """Calls of the same form that hold gradients in place of activations; zeros where nothing depends on them."""
    ends = [t for t in tensors_in(outputs) if t.is_floating_point() and t.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in ends]
    inner = [t for _, call in calls for t in (*call.inputs, *call.outputs) if t.requires_grad]
    unique = list({id(t): t for t in inner}.values())
    pulled = torch.autograd.grad(ends, unique, cotangents, allow_unused=True) if ends and unique else ()
    table = {id(t): g for t, g in zip(unique, pulled, strict=True) if g is not None}

    def gradient(tensor: Tensor) -> Tensor:
        found = table.get(id(tensor))
        return torch.zeros_like(tensor) if found is None else found

    return [_mapped(call, gradient) for _, call in calls]


def _detached(call: ModuleCall) -> ModuleCall:
    return _mapped(call, lambda tensor: tensor.detach())


def _mapped(call: ModuleCall, change: Callable[[Tensor], Tensor]) -> ModuleCall:
    args, kwargs, output = map_tensors(change, (call.args, dict(call.kwargs), call.output))
    return ModuleCall(call.module, args, kwargs, output)


def channels(a: Response, b: Response) -> list[Float[Tensor, "units units"]]:
    """Similarities of A's units (rows) and B's (columns): by value, by gradient, and by their product."""
    found = [_cosines(a.values, b.values, centred=True)]
    if a.gradients is not None and b.gradients is not None:
        found.append(_cosines(a.gradients, b.gradients, centred=False))
        found.append(_cosines(a.values * a.gradients, b.values * b.gradients, centred=True))
    return found


def _cosines(a: Tensor, b: Tensor, *, centred: bool) -> Tensor:
    sides = []
    for side in (a, b):
        moved = side - side.mean(0) if centred else side
        # A unit that never responds has a zero column and is equally similar to every other.
        sides.append(moved / moved.norm(dim=0).clamp(min=EPSILON))
    left, right = sides
    product: Tensor = left.T @ right
    return product


def standardised(matrix: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Mean 0 and standard deviation 1 over all entries; a constant matrix becomes 0."""
    centred = matrix - matrix.mean()
    deviation = centred.square().mean().sqrt()
    least = ROUNDING[matrix.dtype] * matrix.detach().abs().max() + EPSILON
    return centred / deviation if bool(deviation.detach() > least) else centred * 0


def probe_similarities(
    model: nn.Module,
    readings: Mapping[str, list[Reading]],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    batch: Batch,
    seed: int,
) -> dict[str, Float[Tensor, "units units"]]:
    """Mean of the standardised channels over all readings of each group; groups that are not read are left out."""
    flat = list(dict.fromkeys(r for group in readings.values() for r in group))
    left, right = (respond(model, flat, side, batch, seed) for side in (a, b))
    found: dict[str, Tensor] = {}
    for group, places in readings.items():
        matrices = [
            standardised(channel)
            for reading in places
            for one, other in zip(left[reading], right[reading], strict=True)
            for channel in channels(one, other)
        ]
        if matrices:
            found[group] = torch.stack(matrices).mean(0).cpu()
    return found
