"""What both networks of a pair are run on: data of a task, or random inputs in the shape that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignkit.activations.readings import find_readings
from alignkit.deepalign.aligner import Probing
from alignkit.errors import AlignkitError
from alignkit.graph.provenance import TracedInput
from alignkit.solver import Problem
from alignkit.solvers.activation_matching import random_batch
from alignkit.tasks.batches import Batch, tensors_in
from alignkit.tasks.task import Task

Inputs = Literal["auto", "data", "random"]


@dataclass(frozen=True)
class Probed:
    """How a pair can be probed.

    Attributes:
        probing: What runs it; None where only weights are known.
        task: Brings weights into the form that the model takes.
        why: One sentence about it.
        is_data: Whether the inputs are data of a task.
    """

    probing: Probing | None
    task: Task | None
    why: str
    is_data: bool = False


def find_probing(problem: Problem, count: int, inputs: Inputs, input_shape: tuple[int, ...] | None) -> Probed:
    """Decide what to run a pair on, and find the places where units are seen.

    The order is: ``input_shape`` with a bound module, the task, the inputs that the graph was traced on with a bound
    module, nothing.

    Args:
        problem: The pair.
        count: Number of probes.
        inputs: Data of the task, or random inputs in its shape; "auto" takes data where there are any.
        input_shape: Shape of one input, or None.
    """
    model = problem.bound.module_a
    generator = problem.generator()
    if model is not None and input_shape is not None:
        batch = _noise(torch.randn(count, *input_shape, generator=generator).to(problem.dtype))
        return _run_on(problem, model, batch, f"{count} random inputs of the shape that was given")
    if problem.task is not None:
        first = next(iter(problem.task.batches))
        if inputs == "random":
            batch, what = random_batch(first, count, generator), f"{count} random inputs in the task's shape"
        else:
            batch = first.rows(0, min(first.size, count)) if first.splittable else first
            what = f"{batch.size} inputs of the task"
        return _prepared(problem, problem.task, batch, what, is_data=inputs != "random")
    traced = problem.graph.provenance.inputs
    if model is not None and traced:
        try:
            return _run_on(problem, model, _like_traced(traced, count, generator), f"{count} random inputs as traced")
        except (AlignkitError, RuntimeError, ValueError, IndexError, TypeError) as error:
            # A model that takes one fixed shape only: what it was traced on had another number of samples.
            return Probed(None, None, f"none, the model does not run on {count} random inputs ({type(error).__name__})")
    missing = "no module is bound" if model is None else "the graph was not traced and input_shape is not given"
    return Probed(None, None, f"none, weights alone: {missing}, and there is no task")


def _run_on(problem: Problem, model: nn.Module, batch: Batch, what: str) -> Probed:
    task = Task(model, [(batch.inputs, batch.targets)], "mse", device=problem.device)
    return _prepared(problem, task, batch, what)


def _prepared(problem: Problem, task: Task, batch: Batch, what: str, *, is_data: bool = False) -> Probed:
    readings, _ = find_readings(problem.graph, task, task.checked(problem.a))
    return Probed(Probing(task.model, readings, batch.to(task.device)), task, what, is_data)


def _like_traced(traced: Sequence[TracedInput], count: int, generator: torch.Generator) -> Batch:
    """Random inputs of the traced shapes, with ``count`` samples where all tensors agree about axis 0."""
    first = {one.shape[0] if one.shape else None for one in traced}
    resized = len(first) == 1 and None not in first and all(len(one.shape) > 1 for one in traced)
    drawn = [(one.name, _drawn(one, count if resized else None, generator)) for one in traced]
    keywords = {name: tensor for name, tensor in drawn if name is not None}
    positional = [tensor for name, tensor in drawn if name is None]
    if keywords and positional:
        raise ValueError("positional and keyword inputs together cannot be one batch")
    inputs: Any = keywords or (positional[0] if len(positional) == 1 else tuple(positional))
    return _noise(inputs)


def _drawn(one: TracedInput, count: int | None, generator: torch.Generator) -> Tensor:
    shape = one.shape if count is None else (count, *one.shape[1:])
    dtype: torch.dtype = getattr(torch, one.dtype)
    if one.low is None or one.high is None:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(one.low, one.high + 1, shape, generator=generator).to(dtype)


def _noise(inputs: Any) -> Batch:
    size = next((tensor.shape[0] for tensor in tensors_in(inputs) if tensor.ndim), 1)
    return Batch(inputs, torch.zeros(size), "probes")
