"""What both networks of a pair are run on: data of a task, or random inputs in the shape that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from alignkit.activations import find_readings, random_batch
from alignkit.activations.random_inputs import traced_batch
from alignkit.deepalign.aligner import AlignerInput, Probing
from alignkit.errors import AlignkitError
from alignkit.solver import Problem
from alignkit.tasks.batches import Batch
from alignkit.tasks.task import Task

Inputs = Literal["auto", "data", "random"]


@dataclass(frozen=True)
class Probed:
    """A pair of networks with what they are run on.

    Attributes:
        pair: The pair. Its probing is None where only weights are known.
        why: One sentence about what they are run on.
        task: Runs the pair.
        is_data: Whether the inputs are data of a task.
    """

    pair: AlignerInput
    why: str
    task: Task | None = None
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
    model, graph, generator = problem.bound.module_a, problem.graph, problem.generator()

    def prepare(batch: Batch, why: str, task: Task, is_data: bool = False) -> Probed:
        a, b = (task.checked(side) for side in (problem.a, problem.b))
        probing = Probing(task.model, find_readings(graph, task, a)[0], batch.to(task.device))
        return Probed(AlignerInput(graph, a, b, probing, problem.seed), why, task, is_data)

    def task_of(module: nn.Module, batch: Batch) -> Task:
        return Task(module, [(batch.inputs, batch.targets)], "mse", device=problem.device)

    if model is not None and input_shape is not None:
        normal = torch.randn(count, *input_shape, generator=generator).to(problem.dtype)
        batch = Batch(normal, torch.zeros(count), "probes")
        return prepare(batch, f"{count} random inputs of the shape that was given", task_of(model, batch))
    if problem.task is not None:
        first = next(iter(problem.task.batches))
        if inputs == "random":
            batch = random_batch(first, count, generator)
            return prepare(batch, f"{count} random inputs in the task's shape", problem.task)
        batch = first.head(count)
        return prepare(batch, f"{batch.size} inputs of the task", problem.task, is_data=True)
    if model is None:
        why = "none, weights alone: no module is bound, and there is no task"
    elif not graph.provenance.inputs:
        why = "none, weights alone: the graph was not traced and input_shape is not given, and there is no task"
    else:
        try:
            batch = traced_batch(graph.provenance.inputs, count, generator)
            return prepare(batch, f"{count} random inputs as traced", task_of(model, batch))
        except (AlignkitError, RuntimeError, ValueError, IndexError, TypeError) as error:
            # A model that takes one fixed shape only: what it was traced on had another number of samples.
            why = f"none, the model does not run on {count} random inputs ({type(error).__name__})"
    return Probed(AlignerInput(graph, problem.a, problem.b, seed=problem.seed), why)
