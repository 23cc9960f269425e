"""Deep-Align without training: probes through both networks, then consensus over the graph."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from alignkit.activations import find_readings
from alignkit.alignment import Alignment
from alignkit.batches import Batch
from alignkit.deepalign.consensus import assign, consensus
from alignkit.deepalign.probes import probe_similarities
from alignkit.solver import Outcome, Problem, Report, Returns, Solver, SolverOptions, Step
from alignkit.solvers.activation_matching import random_batch
from alignkit.task import Task


class DeepAlignOptions(SolverOptions):
    """Options of Deep-Align."""

    probes: int = Field(128, ge=2)
    """Inputs that both networks are run on, forwards and backwards."""
    inputs: Literal["auto", "data", "random"] = "auto"
    """What probes are: the first inputs of the task, or random ones in their shape. "auto" takes the data of a task and
    random inputs where only ``input_shape`` is known."""
    rounds: int = Field(2, ge=0)
    """Rounds of consensus between neighbouring groups."""
    sharpness: float = Field(6.0, gt=0)
    """Factor of standardised scores before Sinkhorn. Larger is closer to a hard permutation."""
    memory: float = Field(1.0, ge=0)
    """Weight of the scores of the round before, beside the similarities of weights."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one input, without the batch. Without it the shape is that of the task's inputs."""


class DeepAlign(Solver[DeepAlignOptions]):
    """Match units by what they do on random probes and by what depends on them, and let neighbours agree.

    After [Navon24]: features that follow the units under any permutation, cosine similarities, Sinkhorn, linear
    assignment. The features are responses to probes, forwards and backwards, in place of a trained encoder; two rounds
    of consensus with the similarities of weights follow. No training, and no labels: of a task only inputs are used,
    and with ``input_shape`` no data at all. Without a task or a shape it works from weights alone, all groups unknown
    at first.
    """

    name = "deepalign"
    returns = Returns(exact_on_permuted_copies=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Probe, agree, assign."""
        options = self.options
        scores = self._probed(problem)
        # From weights alone there is nothing to agree on before the first round.
        rounds = options.rounds if scores else max(options.rounds, 3)
        scores = consensus(problem.objective, scores, rounds, options.sharpness, options.memory)
        alignment = Alignment(problem.graph, assign(problem.graph, scores))
        report(Step(1, problem.objective.distance2(alignment)))
        return Outcome(alignment, stats={"probes": float(options.probes if self._task(problem) else 0)})

    def _probed(self, problem: Problem) -> dict[str, torch.Tensor]:
        task = self._task(problem)
        if task is None:
            return {}
        a, b = task.checked(problem.a), task.checked(problem.b)
        readings, _ = find_readings(problem.graph, task, a)
        batch = self._probes(next(iter(task.batches)), problem).to(task.device)
        return probe_similarities(task._model, readings, a, b, batch, problem.seed)

    def _probes(self, first: Batch, problem: Problem) -> Batch:
        options = self.options
        data = options.inputs == "data" or (options.inputs == "auto" and options.input_shape is None)
        if data:
            return first.rows(0, min(first.size, options.probes)) if first.splittable else first
        return random_batch(first, options.probes, problem.generator())

    def _task(self, problem: Problem) -> Task | None:
        """What runs the model, and inputs of the right shape; None where only weights are known."""
        model, shape = problem.bound.module_a, self.options.input_shape
        if shape is None or model is None:
            return problem.task
        inputs = torch.randn(self.options.probes, *shape, generator=problem.generator()).to(problem.dtype)
        batch = Batch(inputs, torch.zeros(len(inputs)), "probes")
        return Task(model, [(batch.inputs, batch.targets)], "mse", device=problem.device)
