"""Training many networks at once: stacked weights, one `torch.vmap` of the gradient, one fused Adam."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state

from alignkit.arguments import check_arguments, usable_device
from alignkit.errors import ZooError
from alignkit.tasks.measures import LOSSES
from alignkit.tasks.task import is_out_of_memory
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


@check_arguments
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
    where = usable_device(device or "cpu")
    size = chunk_size(architecture, where, chunk)
    states: list[State] = []
    records: list[NetworkRecord] = []
    for start in range(first, first + count, size):
        numbers = range(start, min(start + size, first + count))

        def on_step(share: float, start: int = start, numbers: range = numbers) -> None:
            if progress is not None:
                progress(start - first + len(numbers) * share)

        try:
            stack = Stack(architecture, source, recipe, numbers, seed, where)
            learnt, judged = (source.data(data, split, stack.targets, seed).to(where) for split in SPLITS)
            stack.fit(learnt, on_step)
            records += stack.evaluate(judged)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise ZooError(f"{len(numbers)} networks at once do not fit {where}: give a smaller chunk.") from error
            raise
        states.append(stack.cpu())
        lost = [record.index for record in records if not np.isfinite(record.loss)]
        if lost:
            name = architecture.describe()
            raise ZooError(f"networks {lost} of {name} did not stay finite: lower the learning rate.")
    weights = {name: torch.cat([state[name] for state in states]) for name in states[0]}
    return Trained(weights, tuple(records), recipe)


def chunk_size(architecture: Architecture, where: torch.device, chunk: int | None) -> int:
    """Return how many networks are trained together on a device."""
    return chunk or (architecture.cpu_chunk if where.type == "cpu" else GPU_CHUNK)


class Stack:
    """Networks of one architecture as stacked tensors ``[k, ...]``. A stack of one runs without vmap."""

    def __init__(
        self, architecture: Architecture, source: Source, recipe: Recipe, numbers: range, seed: int, where: torch.device
    ) -> None:
        self.recipe, self.numbers, self.targets = recipe, numbers, [source.target(i) for i in numbers]
        # The seed of a network's initial weights; the next number seeds its order of samples.
        self.seeds = [int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] >> 1) for i in numbers]
        models = [architecture.build(seed_of_weights) for seed_of_weights in self.seeds]
        self.device, self._loss, self._half = where, LOSSES[source.loss], recipe.precision == "bf16"
        self._judges_classes = source.metric == "accuracy"
        batch_norm = nn.modules.batchnorm._BatchNorm
        if self._half and any(isinstance(part, batch_norm) for part in models[0].modules()):
            raise ZooError("BatchNorm cannot be trained in bf16 here: use precision float32.")
        parameters, buffers = stack_module_state(models)
        self.parameters: State = {n: p.detach().to(where).requires_grad_() for n, p in parameters.items()}
        self.buffers: State = {n: b.to(where) for n, b in buffers.items()}
        self._model = copy.deepcopy(models[0]).to("meta")

    def fit(self, data: Data, on_step: Callable[[float], None]) -> None:
        """Train the networks in place; after every step ``on_step`` is told the share of the steps that are done."""
        recipe, parameters = self.recipe, self.parameters.values()
        rate, decay = recipe.learning_rate, recipe.weight_decay
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
        orders, samples = [torch.Generator().manual_seed(seed + 1) for seed in self.seeds], len(data.inputs)
        total, size = recipe.total_steps(samples), min(recipe.batch_size, samples)
        batches: list[Tensor] = []
        for step in range(total):
            if not batches:
                # The next epoch, each network in its own order; the rest at the end is dropped.
                shuffled = torch.stack([torch.randperm(samples, generator=order) for order in orders])
                batches = [rows for rows in torch.split(shuffled.to(self.device), size, 1) if rows.shape[1] == size]
            self.backward(*data.gather(batches.pop(0)), recipe.clip)
            optimizer.param_groups[0]["lr"] = recipe.rate(step, total)
            optimizer.step()
            on_step((step + 1) / total)

    def backward(self, inputs: Tensor, targets: Tensor, clip: float | None) -> None:
        """Set ``.grad`` of all parameters; running statistics move on. Inputs and targets: ``[k, batch, ...]``."""

        def objective(parameters: State, buffers: State, inputs: Tensor, targets: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self._model, (parameters, buffers), (inputs,))
            return torch.as_tensor(self._loss(outputs.float(), targets))

        self._model.train()
        detached = {name: value.detach() for name, value in self.parameters.items()}
        with warnings.catch_warnings(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            # A slower batching rule of vmap is nothing that the caller could change.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            if len(self.seeds) == 1:
                # Buffers are views, so that running statistics move on.
                first, buffers = ({n: value[0] for n, value in state.items()} for state in (detached, self.buffers))
                grads, _ = grad_and_value(objective)(first, buffers, inputs[0], targets[0])
                grads = {name: value[None] for name, value in grads.items()}
            else:
                grads, _ = torch.vmap(grad_and_value(objective))(detached, self.buffers, inputs, targets)
        if clip is not None:  # the norm of each network's own gradient
            squares = torch.stack([grad.flatten(1).square().sum(1) for grad in grads.values()]).sum(0)
            factors = (clip / squares.sqrt().clamp_min(1e-12)).clamp(max=1)
            for grad in grads.values():
                grad *= factors.view(-1, *(1,) * (grad.ndim - 1))
        for name, value in self.parameters.items():
            value.grad = grads[name]

    @torch.no_grad()
    def evaluate(self, data: Data) -> list[NetworkRecord]:
        """Compute the mean loss, and the accuracy where classes are learnt, of each network in turn."""
        self._model.eval()
        records = []
        for at, (index, seed, target) in enumerate(zip(self.numbers, self.seeds, self.targets, strict=True)):
            state = {name: value[at] for name, value in {**self.parameters, **self.buffers}.items()}
            wanted = data.targets[at] if data.own_targets else data.targets
            parts = [functional_call(self._model, state, (rows,)) for rows in torch.split(data.inputs, EVALUATION_ROWS)]
            outputs = torch.cat(parts)
            loss = float(self._loss(outputs.double(), wanted.double() if data.own_targets else wanted))
            accuracy = float((outputs.argmax(-1) == wanted).double().mean()) if self._judges_classes else None
            records.append(NetworkRecord(index=index, seed=seed, target=target, loss=loss, accuracy=accuracy))
        return records

    def cpu(self) -> State:
        """Copy parameters and buffers by name to the CPU, detached."""
        return {name: value.detach().cpu() for name, value in {**self.parameters, **self.buffers}.items()}
