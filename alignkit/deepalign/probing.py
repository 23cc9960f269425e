"""What both networks of a pair are run on: data of a task, or random inputs in the shape that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from alignkit.activations import find_readings, random_batch
from alignkit.activations.random_inputs import traced_batch
from alignkit.deepalign.aligner import Probing
from alignkit.errors import AlignkitError
from alignkit.solver import Problem
from alignkit.tasks.batches import Batch
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
    """Decide what to run a pair on, and find where units are seen.

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
        normal = torch.randn(count, *input_shape, generator=generator).to(problem.dtype)
        batch = Batch(normal, torch.zeros(count), "probes")
        return _run_on(problem, model, batch, f"{count} random inputs of the shape that was given")
    if problem.task is not None:
        first = next(iter(problem.task.batches))
        if inputs == "random":
            batch, what = random_batch(first, count, generator), f"{count} random inputs in the task's shape"
        else:
            batch = first.head(count)
            what = f"{batch.size} inputs of the task"
        return _prepare(problem, problem.task, batch, what, is_data=inputs != "random")
    traced = problem.graph.provenance.inputs
    if model is not None and traced:
        try:
            return _run_on(problem, model, traced_batch(traced, count, generator), f"{count} random inputs as traced")
        except (AlignkitError, RuntimeError, ValueError, IndexError, TypeError) as error:
            # A model that takes one fixed shape only: what it was traced on had another number of samples.
            return Probed(None, None, f"none, the model does not run on {count} random inputs ({type(error).__name__})")
    missing = "no module is bound" if model is None else "the graph was not traced and input_shape is not given"
    return Probed(None, None, f"none, weights alone: {missing}, and there is no task")


def _run_on(problem: Problem, model: nn.Module, batch: Batch, what: str) -> Probed:
    task = Task(model, [(batch.inputs, batch.targets)], "mse", device=problem.device)
    return _prepare(problem, task, batch, what)


def _prepare(problem: Problem, task: Task, batch: Batch, what: str, *, is_data: bool = False) -> Probed:
    readings, _ = find_readings(problem.graph, task, task.checked(problem.a))
    return Probed(Probing(task.model, readings, batch.to(task.device)), task, what, is_data)
