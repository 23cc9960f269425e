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

from alignkit.errors import ZooError
from alignkit.tasks.task import LOSSES, is_out_of_memory
from alignkit.text import first_line
from alignkit.zoo.architectures import Architecture
from alignkit.zoo.manifest import NetworkRecord
from alignkit.zoo.recipe import Recipe, complete_recipe
from alignkit.zoo.sources import Data, Source, Split

State = dict[str, Tensor]
SPLITS: tuple[Split, Split] = ("train", "test")
"""What networks learn from and what they are judged by."""
EVALUATION_ROWS = 1000
"""Samples of one forward call: outputs of a thousand images fit any memory."""
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
        """Return the state dict of one network."""
        return {name: value[index] for name, value in self.weights.items()}


def train(
    architecture: Architecture,
    source: Source,
    count: int,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    data: str | Path | None = None,
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
        recipe: How they are trained; fields that are not given, and None, take what suits the family and the source.
        seed: Seed of initial weights, orders of samples, and which signals there are.
        data: Where idx files are.
        device: Where to train. None is the CPU.
        chunk: Networks trained together: memory grows with it. None is 32 on a CPU (8 for convolutional families)
            and 256 on a GPU.
        first: Number of the first network: with 64, networks 64, 65, ... of the data set are trained.
        progress: Called after every step with the networks that are done.

    Returns:
        Stacked weights, and what each network reached on the test split.

    Raises:
        ZooError: The count or chunk is not positive, the architecture does not fit the source or the
            precision, files are missing, the device cannot be used or is too small, or a network did not stay finite.
        MissingExtraError: scikit-learn is needed and not installed.
    """
    if count < 1 or (chunk is not None and chunk < 1):
        raise ZooError(f"count is {count} and chunk is {chunk}: both have to be at least 1.")
    architecture = architecture.for_source(source.shape, source.outputs)
    recipe = complete_recipe(recipe, architecture, source)
    try:
        where = torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError) as error:
        raise ZooError(f"device={str(device)!r} cannot be used: {first_line(error)}") from error
    size = chunk or (architecture.cpu_chunk if where.type == "cpu" else GPU_CHUNK)
    parts = []
    for start in range(first, first + count, size):
        numbers = range(start, min(start + size, first + count))

        def on_step(step: int, total: int, start: int = start, numbers: range = numbers) -> None:
            if progress is not None:
                progress(start - first + len(numbers) * step / total)

        parts.append(_train_chunk(architecture, source, numbers, seed, data, recipe, where, on_step))
    weights = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    return Trained(weights, tuple(record for part in parts for record in part[1]), recipe)


def network_seed(seed: int, index: int) -> int:
    """Return the seed of the initial weights of one network of a data set."""
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
        learnt, judged = (source.data(folder, split, targets, seed).to(device) for split in SPLITS)
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
    optimizer = torch.optim.AdamW(
        stack.parameters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    total = recipe.total_steps(len(data.inputs))
    rows = _batches(len(data.inputs), recipe.batch_size, orders, data.inputs.device)
    for step in range(total):
        inputs, targets = data.gather(next(rows))
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
                # Buffers are views, so that running statistics move on.
                parameters, buffers = (
                    {n: value[0] for n, value in state.items()} for state in (detached, self.buffers)
                )
                grads, _ = gradient(parameters, buffers, inputs[0], targets[0])
                grads = {name: value[None] for name, value in grads.items()}
            else:
                grads, _ = torch.vmap(gradient)(detached, self.buffers, inputs, targets)
        if clip is not None:
            _clip(grads, clip)
        for name, value in self.parameters.items():
            value.grad = grads[name]

    @torch.no_grad()
    def evaluate(self, data: Data, metric: str | None) -> tuple[list[float], list[float | None]]:
        """Compute the mean loss, and the accuracy if that is the metric, of each network in turn."""
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
        """Copy parameters and buffers by name to the CPU, detached."""
        return {name: value.detach().cpu() for name, value in {**self.parameters, **self.buffers}.items()}

    def _objective(self, parameters: State, buffers: State, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self._model, (parameters, buffers), (inputs,))
        return torch.as_tensor(self._loss(outputs.float(), targets))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with warnings.catch_warnings(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            # A slower batching rule of vmap is nothing that the caller could change.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield


def _clip(grads: State, limit: float) -> None:
    """Shorten each network's gradient to at most the limit, in place."""
    squares = torch.stack([grad.flatten(1).square().sum(1) for grad in grads.values()]).sum(0)
    factors = (limit / squares.sqrt().clamp_min(1e-12)).clamp(max=1)
    for grad in grads.values():
        grad *= factors.view(-1, *(1,) * (grad.ndim - 1))


def _batches(samples: int, batch: int, orders: list[torch.Generator], device: torch.device) -> Iterator[Tensor]:
    """Yield rows ``[k, batch]`` of endless epochs, each network in its own order; the rest at the end is dropped."""
    size = min(batch, samples)
    while True:
        shuffled = torch.stack([torch.randperm(samples, generator=order) for order in orders]).to(device)
        for start in range(0, samples - size + 1, size):
            yield shuffled[:, start : start + size]
