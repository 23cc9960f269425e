"""What both networks of a pair are run on: data of a task, or random inputs in the shape that is known."""

from __future__ import annotations

from collections.abc import Callable
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
        draw: Draws so many random inputs, the same at every call; None where the inputs are data of a task.
    """

    pair: AlignerInput
    why: str
    task: Task | None = None
    draw: Callable[[int], Batch] | None = None

    @property
    def is_data(self) -> bool:
        """Whether the inputs are data of a task."""
        return self.task is not None and self.draw is None


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
    model, graph = problem.bound.module_a, problem.graph

    def prepare(batch: Batch, why: str, task: Task, draw: Callable[[int], Batch] | None = None) -> Probed:
        a, b = (task.checked(side) for side in (problem.a, problem.b))
        probing = Probing(task.model, find_readings(graph, task, a)[0], batch.to(task.device))
        return Probed(AlignerInput(graph, a, b, probing, problem.seed), why, task, draw)

    def prepare_random(module: nn.Module, why: str, draw: Callable[[int], Batch]) -> Probed:
        batch = draw(count)
        # What the networks are for is not known: this loss says nothing of it, and is never computed.
        task = Task(module, [(batch.inputs, batch.targets)], "model", device=problem.device)
        return prepare(batch, why, task, draw)

    if model is not None and input_shape is not None:
        shape = input_shape

        def normal(rows: int) -> Batch:
            numbers = torch.randn(rows, *shape, generator=problem.generator()).to(problem.dtype)
            return Batch(numbers, torch.zeros(rows), "probes")

        return prepare_random(model, f"{count} random inputs of the shape that was given", normal)
    if problem.task is not None:
        first = next(iter(problem.task.batches))
        if inputs == "random":

            def alike(rows: int) -> Batch:
                return random_batch(first, rows, problem.generator())

            return prepare(alike(count), f"{count} random inputs in the task's shape", problem.task, alike)
        batch = first.head(count)
        return prepare(batch, f"{batch.size} inputs of the task", problem.task)
    if model is None:
        why = "none, weights alone: no module is bound, and there is no task"
    elif not graph.provenance.inputs:
        why = "none, weights alone: the graph was not traced and input_shape is not given, and there is no task"
    else:
        try:
            return prepare_random(
                model,
                f"{count} random inputs as traced",
                lambda rows: traced_batch(graph.provenance.inputs, rows, problem.generator()),
            )
        except (AlignkitError, RuntimeError, ValueError, IndexError, TypeError) as error:
            # A model that takes one fixed shape only: what it was traced on had another number of samples.
            why = f"none, the model does not run on {count} random inputs ({type(error).__name__})"
    return Probed(AlignerInput(graph, problem.a, problem.b, seed=problem.seed), why)
