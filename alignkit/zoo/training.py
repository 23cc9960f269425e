"""Training many networks at once: stacked weights, one `torch.vmap` of the gradient, one fused Adam."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state
from torch.nn import functional

from alignkit.errors import ZooError
from alignkit.tasks.task import is_out_of_memory
from alignkit.zoo.architectures import Architecture
from alignkit.zoo.manifest import NetworkRecord
from alignkit.zoo.recipe import Recipe, default_recipe
from alignkit.zoo.sources import Data, Source

State = dict[str, Tensor]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
}
EVALUATION_ROWS = 1000
GPU_CHUNK = 256
"""Networks that are trained together on a GPU."""
Progress = Callable[[float], None]
"""Called after every step with the networks that are done; those at work count by their share of the steps."""


@dataclass(frozen=True)
class Trained:
    """Networks that were trained together.

    Attributes:
        weights: Parameters and buffers by name, ``[count, ...]``, on the CPU.
        records: Seed, target and results of each.
        recipe: How they were trained.
    """

    weights: State
    records: tuple[NetworkRecord, ...]
    recipe: Recipe

    def __getitem__(self, index: int) -> State:
        """State dict of one network."""
        return {name: value[index] for name, value in self.weights.items()}


def train(
    architecture: Architecture,
    source: Source,
    count: int,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    recipe: Recipe | None = None,
    device: torch.device | str | None = None,
    chunk: int | None = None,
    first: int = 0,
    progress: Progress | None = None,
) -> Trained:
    """Train many networks of one architecture, each from its own initial weights and in its own order of samples.

    Network ``i`` depends on ``seed`` and ``i`` alone. The same call on the same machine gives the same weights; other
    chunks or devices round differently.

    Args:
        architecture: What is trained; its shape and outputs are taken from the source.
        source: What is learnt.
        count: How many networks.
        seed: Seed of initial weights, orders of samples, and which signals there are.
        folder: Where idx files are.
        epochs: Passes over the data, or ``steps``: gradient steps. None is what suits the family.
        steps: See ``epochs``.
        batch: Samples of a step.
        lr: Highest learning rate.
        recipe: All settings of the training in place of the four above.
        device: Where to train. None is the CPU.
        chunk: Networks trained together: memory grows with it. None is 32 on a CPU (8 for convolutional families)
            and 256 on a GPU.
        first: Number of the first network: with 64, networks 64, 65, ... of the data set are trained.
        progress: Told after every step how many networks are done.

    Returns:
        Stacked weights, and what each network reached on the test split.

    Raises:
        ZooError: The count or chunk is no positive number, the architecture does not fit the source or the
            precision, files are missing, the device cannot be used or is too small, or a network did not stay finite.
        MissingExtraError: scikit-learn is needed and not installed.
    """
    if count < 1 or (chunk is not None and chunk < 1):
        raise ZooError(f"count is {count} and chunk is {chunk}: both have to be at least 1.")
    architecture = architecture.for_source(source.shape, source.outputs)
    recipe = recipe or default_recipe(architecture, source, epochs=epochs, steps=steps, batch=batch, lr=lr)
    where = _usable(device or "cpu")
    size = chunk or default_chunk(architecture, where)
    parts = []
    for start in range(first, first + count, size):
        numbers = range(start, min(start + size, first + count))
        on_step = _counted(progress, start - first, len(numbers))
        parts.append(_train_chunk(architecture, source, numbers, seed, folder, recipe, where, on_step))
    weights = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    return Trained(weights, tuple(record for part in parts for record in part[1]), recipe)


def default_chunk(architecture: Architecture, device: torch.device) -> int:
    """How many networks of this architecture are best trained together on a device."""
    return architecture.cpu_chunk if device.type == "cpu" else GPU_CHUNK


def network_seed(seed: int, index: int) -> int:
    """Seed of the initial weights of one network of a data set."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


def _train_chunk(
    architecture: Architecture,
    source: Source,
    numbers: range,
    seed: int,
    folder: str | Path | None,
    recipe: Recipe,
    device: torch.device,
    on_step: Callable[[int, int], None],
) -> tuple[State, list[NetworkRecord]]:
    seeds = [network_seed(seed, number) for number in numbers]
    targets = [source.target(number) for number in numbers]
    models = [architecture.build(network) for network in seeds]
    orders = [torch.Generator().manual_seed(network + 1) for network in seeds]
    try:
        learnt = _on(device, source.data(folder, "train", targets, seed))
        judged = _on(device, source.data(folder, "test", targets, seed))
        stack = Stack(models, source.loss, device, recipe.precision)
        fit(stack, learnt, recipe, orders, on_step)
        losses, accuracies = stack.evaluate(judged, source.metric)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise ZooError(f"{len(numbers)} networks at once do not fit {device}: give a smaller chunk.") from error
        raise
    records = [
        NetworkRecord(index=number, seed=network, target=target, loss=loss, accuracy=accuracy)
        for number, network, target, loss, accuracy in zip(numbers, seeds, targets, losses, accuracies, strict=True)
    ]
    lost = [record.index for record in records if not np.isfinite(record.loss)]
    if lost:
        raise ZooError(f"networks {lost} of {architecture.describe()} did not stay finite: lower the learning rate.")
    return stack.cpu(), records


def fit(
    stack: Stack,
    data: Data,
    recipe: Recipe,
    orders: list[torch.Generator],
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train a stack of networks in place.

    Args:
        stack: Networks.
        data: What they learn.
        recipe: How.
        orders: One generator a network, for its order of samples.
        on_step: Called after every step with the steps done and the steps in all.
    """
    optimizer = torch.optim.AdamW(stack.parameters.values(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    total = recipe.total_steps(len(data.inputs))
    rows = _batches(len(data.inputs), recipe.batch, orders, data.inputs.device)
    for step in range(total):
        inputs, targets = _gather(data, next(rows))
        stack.backward(inputs, targets, recipe.clip)
        optimizer.param_groups[0]["lr"] = recipe.rate(step, total)
        optimizer.step()
        on_step(step + 1, total)


class Stack:
    """Networks of one architecture as stacked tensors ``[k, ...]``.

    A stack of one runs without vmap.
    """

    def __init__(self, models: list[nn.Module], loss: str, device: torch.device, precision: str = "float32") -> None:
        if precision == "bf16" and any(
            isinstance(part, nn.modules.batchnorm._BatchNorm) for part in models[0].modules()
        ):
            raise ZooError("BatchNorm cannot be trained in bf16 here: use precision float32.")
        self.count = len(models)
        self.device = device
        self._half = precision == "bf16"
        self._loss = LOSSES[loss]
        parameters, buffers = stack_module_state(models)
        self.parameters: State = {n: p.detach().to(device).requires_grad_() for n, p in parameters.items()}
        self.buffers: State = {n: b.to(device) for n, b in buffers.items()}
        self._model = copy.deepcopy(models[0]).to("meta")

    def backward(self, inputs: Tensor, targets: Tensor, clip: float | None) -> None:
        """Set ``.grad`` of all parameters; running statistics move on. Inputs and targets: ``[k, batch, ...]``."""
        self._model.train()
        detached = {name: value.detach() for name, value in self.parameters.items()}
        gradient = grad_and_value(self._objective)
        with self._precision():
            if self.count == 1:
                grads, _ = _alone(gradient, detached, self.buffers, inputs, targets)
            else:
                grads, _ = torch.vmap(gradient)(detached, self.buffers, inputs, targets)
        if clip is not None:
            _clip(grads, clip)
        for name, value in self.parameters.items():
            value.grad = grads[name]

    @torch.no_grad()
    def evaluate(self, data: Data, metric: str | None) -> tuple[list[float], list[float | None]]:
        """Mean loss, and accuracy if that is the metric, of each network in turn."""
        self._model.eval()
        losses: list[float] = []
        accuracies: list[float | None] = []
        for index in range(self.count):
            state = {name: value[index] for name, value in {**self.parameters, **self.buffers}.items()}
            targets = data.targets[index] if data.own_targets else data.targets
            parts = [functional_call(self._model, state, (rows,)) for rows in torch.split(data.inputs, EVALUATION_ROWS)]
            outputs = torch.cat(parts)
            losses.append(float(self._loss(outputs.double(), targets.double() if data.own_targets else targets)))
            right = (outputs.argmax(-1) == targets).double().mean() if metric == "accuracy" else None
            accuracies.append(None if right is None else float(right))
        return losses, accuracies

    def cpu(self) -> State:
        """Parameters and buffers by name, detached, on the CPU."""
        return {name: value.detach().cpu() for name, value in {**self.parameters, **self.buffers}.items()}

    def _objective(self, parameters: State, buffers: State, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self._model, (parameters, buffers), (inputs,))
        return self._loss(outputs.float(), targets)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with _quiet(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            yield


def _alone(
    gradient: Callable[..., tuple[State, Tensor]], parameters: State, buffers: State, inputs: Tensor, targets: Tensor
) -> tuple[State, Tensor]:
    """What vmap would return for a stack of one. Buffers are views, so that running statistics move on."""
    one = [{name: value[0] for name, value in state.items()} for state in (parameters, buffers)]
    grads, loss = gradient(*one, inputs[0], targets[0])
    return {name: value[None] for name, value in grads.items()}, loss


def _clip(grads: State, limit: float) -> None:
    """Shorten each network's gradient to at most the limit, in place."""
    squares = torch.stack([grad.flatten(1).square().sum(1) for grad in grads.values()]).sum(0)
    factors = (limit / squares.sqrt().clamp_min(1e-12)).clamp(max=1)
    for grad in grads.values():
        grad *= factors.view(-1, *(1,) * (grad.ndim - 1))


def _batches(samples: int, batch: int, orders: list[torch.Generator], device: torch.device) -> Iterator[Tensor]:
    """Rows ``[k, batch]`` of endless epochs, each network in its own order; what is left over at the end is dropped."""
    size = min(batch, samples)
    while True:
        shuffled = torch.stack([torch.randperm(samples, generator=order) for order in orders]).to(device)
        for start in range(0, samples - size + 1, size):
            yield shuffled[:, start : start + size]


def _gather(data: Data, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The samples of every network: ``[k, batch, ...]`` of inputs and targets."""
    inputs = data.inputs.index_select(0, rows.flatten()).view(*rows.shape, *data.inputs.shape[1:])
    if not data.own_targets:
        return inputs, data.targets[rows]
    return inputs, data.targets[torch.arange(len(rows), device=rows.device)[:, None], rows]


def _usable(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ZooError(f"device={str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error


def _counted(progress: Progress | None, before: int, count: int) -> Callable[[int, int], None]:
    """Turns steps of a chunk of networks into networks done."""

    def on_step(done: int, total: int) -> None:
        if progress is not None:
            progress(before + count * done / total)

    return on_step


def _on(device: torch.device, data: Data) -> Data:
    return Data(data.inputs.to(device), data.targets.to(device), data.own_targets)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # A slower batching rule of vmap is nothing that the caller could change.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield
