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
from alignkit.deepalign.input_domain import MIDDLE_INPUTS, InputDomain, shape_text
from alignkit.deepalign.midpoint import SAMPLES
from alignkit.errors import SolverError, TaskError
from alignkit.solver import Problem
from alignkit.tasks.batches import Batch, tensors_in
from alignkit.tasks.task import Task

Inputs = Literal["auto", "data", "random"]
ANOTHER_ALIGNER = "Take an aligner of this domain, or leave checkpoint= out."


@dataclass(frozen=True)
class Probed:
    """A pair of networks with what they are run on.

    Attributes:
        pair: The pair. Its probing is None where only weights are known.
        why: One sentence about what they are run on.
        task: Runs the pair.
        draw: Draws so many random inputs, the same at every call; None where the inputs are data of a task.
        alike: What random inputs are that are like those that the networks learned from, in words; else nothing.
        middle_count: How many of them midpoint steps take.
    """

    pair: AlignerInput
    why: str
    task: Task | None = None
    draw: Callable[[int], Batch] | None = None
    alike: str = ""
    middle_count: int = SAMPLES


def find_probing(
    problem: Problem,
    count: int,
    inputs: Inputs,
    input_shape: tuple[int, ...] | None,
    domain: InputDomain | None = None,
) -> Probed:
    """Decide what to run a pair on, and find where units are seen.

    The order is: ``input_shape`` with a bound module, the task, the inputs that the graph was traced on with a bound
    module, nothing. With a domain all random inputs are drawn from it.

    Args:
        problem: The pair.
        count: Number of probes.
        inputs: Data of the task, or random inputs in its shape; "auto" takes data where there are any.
        input_shape: Shape of one input, or None.
        domain: What inputs are like, as far as an aligner knows; None where nothing is known.

    Raises:
        SolverError: Inputs or networks are not of the domain.
    """
    if domain is not None:
        _check_domain(domain, problem, input_shape)
        if problem.task is None or inputs == "random" or input_shape is not None:
            return _probe_domain(domain, problem, count)
    model, graph = problem.bound.module_a, problem.graph

    def prepare(batch: Batch, why: str, task: Task, draw: Callable[[int], Batch] | None = None) -> Probed:
        return Probed(_on_probes(problem, task, batch), why, task, draw)

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
        except Exception as error:  # any model can fail in any way
            # A model may take one fixed shape only: what it was traced on had another number of samples.
            why = f"none, the model does not run on {count} random inputs ({type(error).__name__})"
    return Probed(AlignerInput(graph, problem.a, problem.b, seed=problem.seed), why)


def _on_probes(problem: Problem, task: Task, batch: Batch) -> AlignerInput:
    """Check that a pair fits a task, and find where units are seen on a batch."""
    a, b = (task.checked(side) for side in (problem.a, problem.b))
    probing = Probing(task.model, find_readings(problem.graph, task, a)[0], batch.to(task.device))
    return AlignerInput(problem.graph, a, b, probing, problem.seed)


def _check_domain(domain: InputDomain, problem: Problem, input_shape: tuple[int, ...] | None) -> None:
    """Raise SolverError where what is given has inputs of another shape than a domain."""
    shapes = [] if input_shape is None else [input_shape]
    if problem.task is not None:
        tensors = tensors_in(next(iter(problem.task.batches)).inputs)
        shapes += [tensor.shape[1:] for tensor in tensors[:1]]
    for shape in shapes:
        if (reason := domain.differs(shape)) is not None:
            raise SolverError(f"the aligner does not know these inputs: {reason}. {ANOTHER_ALIGNER}")


def _probe_domain(domain: InputDomain, problem: Problem, count: int) -> Probed:
    """Run a pair on inputs that are drawn from a domain."""
    model, shape = problem.bound.module_a, shape_text(domain.shape)

    def draw(rows: int) -> Batch:
        inputs = domain.draw(rows, problem.generator()).to(problem.dtype)
        return Batch(inputs, torch.zeros(rows, dtype=torch.long), "inputs of the domain")

    if (task := problem.task) is None:
        if model is None:
            why = "none, weights alone: no module is bound, and there is no task"
            return Probed(AlignerInput(problem.graph, problem.a, problem.b, seed=problem.seed), why)
        first = draw(1)
        loss = "cross_entropy" if domain.classes else "mse"
        task = Task(model, [(first.inputs, first.targets)], loss, device=problem.device)
    try:
        pair = _on_probes(problem, task, draw(count))
    except (TaskError, RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = f"it was trained on {shape} inputs, on which the model does not run ({type(error).__name__})"
        raise SolverError(f"the aligner does not know these networks: {reason}. {ANOTHER_ALIGNER}") from error
    why = f"{count} inputs of the domain that the aligner knows, {shape}"
    return Probed(pair, why, task, draw, "inputs of the domain", MIDDLE_INPUTS)
