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
from torch import Tensor

from alignkit.activations.readings import Reading, hooked
from alignkit.activations.sites import ModuleCall
from alignkit.deepalign.aligner import AlignerInput, Probing
from alignkit.deepalign.scores import comparable, cosines, is_finite, products
from alignkit.graph.kinds import KINDS, GroupKind
from alignkit.tasks.batches import map_tensors, tensors_in
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


def respond(probing: Probing, weights: Mapping[str, Tensor], seed: int) -> dict[Reading, list[Response]]:
    """Run one network on probes and back.

    Args:
        probing: What runs the network, on what, and what is read.
        weights: Weights of the network.
        seed: Seed of the cotangents.

    Returns:
        For each reading its responses, one for each call of its module.
    """
    model = probing.model
    by_module: dict[str, list[Reading]] = defaultdict(list)
    for reading in dict.fromkeys(reading for readings in probing.readings.values() for reading in readings):
        by_module[reading.module].append(reading)
    calls: list[tuple[str, ModuleCall]] = []
    computed: dict[tuple[int, Reading], Tensor] = {}

    def record(path: str, call: ModuleCall) -> None:
        # What is computed beside the model takes weights of the module, which are those given only while it runs.
        beside = [reading for reading in by_module[path] if reading.site.computed]
        computed.update({(len(calls), reading): reading.features(call).detach() for reading in beside})
        calls.append((path, call))

    with hooked(model, by_module, record), torch.enable_grad():
        # Gradients flow from parameters on; running statistics may not require any.
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        live = {n: t.detach().requires_grad_(n in parameters and t.is_floating_point()) for n, t in weights.items()}
        outputs = call_with(model, live, probing.batch.inputs)
    ends = [t for t in tensors_in(outputs) if t.is_floating_point() and t.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in ends]
    inner = [t for _, call in calls for t in (*call.inputs, *call.outputs) if t.requires_grad]
    unique = list({id(t): t for t in inner}.values())
    pulled = torch.autograd.grad(ends, unique, cotangents, allow_unused=True) if ends and unique else ()
    gradients = {id(t): g for t, g in zip(unique, pulled, strict=True) if g is not None}

    def read(reading: Reading, call: ModuleCall, change: Callable[[Tensor], Tensor]) -> Tensor:
        args, kwargs, output = map_tensors(change, (call.args, dict(call.kwargs), call.output))
        return reading.features(ModuleCall(call.module, args, kwargs, output))

    def gradient(tensor: Tensor) -> Tensor:
        return gradients[id(tensor)] if id(tensor) in gradients else torch.zeros_like(tensor)

    responses: dict[Reading, list[Response]] = defaultdict(list)
    for at, (path, call) in enumerate(calls):
        for reading in by_module[path]:
            if reading.site.computed:
                response = Response(computed[at, reading], None)
            else:
                response = Response(read(reading, call, Tensor.detach), read(reading, call, gradient))
            responses[reading].append(response)
    return responses


def channels(a: Response, b: Response, kind: GroupKind = "permutation") -> list[Float[Tensor, "units units"]]:
    """Compute similarities of A's units (rows) and B's (columns): by value, by gradient, and by their product.

    Units that change signs or rotate have no products: the sign is lost in them. Those that rotate have no size of
    their own to divide by.
    """
    compare = products if KINDS[kind].rotates else cosines
    similarities = [compare(*((values - values.mean(0)).T for values in (a.values, b.values)))]
    if a.gradients is not None and b.gradients is not None:
        similarities.append(compare(a.gradients.T, b.gradients.T))
    if a.gradients is not None and b.gradients is not None and kind == "permutation":
        both = (a.values * a.gradients, b.values * b.gradients)
        similarities.append(cosines(*((product - product.mean(0)).T for product in both)))
    return similarities


def probe_similarities(pair: AlignerInput, probing: Probing) -> dict[str, Float[Tensor, "units units"]]:
    """Average the standardised channels over all readings of each group; groups that are not read are left out."""
    left, right = (respond(probing, side, pair.seed) for side in (pair.a, pair.b))
    scores: dict[str, Tensor] = {}
    for group, readings in probing.readings.items():
        kind = pair.graph.groups[group].kind
        matrices = [
            comparable(kind, channel)
            for reading in readings
            for response_a, response_b in zip(left[reading], right[reading], strict=True)
            for channel in channels(response_a, response_b, kind)
            if is_finite(channel)
        ]
        if matrices:
            scores[group] = torch.stack(matrices).mean(0).cpu()
    return scores
