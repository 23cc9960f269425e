"""`stretch`: the scales and matrices of aligned B, moved until the average with A does what both networks do.

Solvers move what is isometric: orders, signs, rotations. Scales and invertible matrices were brought to one place in
each network alone, by balancing, and that need not be the best place for an average. Here they follow gradients, from
where they are. Every network on the way computes what B does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.errors import BindError, FoldError
from alignkit.graph import Balance, Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.jobs.rewritten import Rewriting
from alignkit.jobs.solve import graph_and_models
from alignkit.reports import Facts, Report, Section, Table, Text
from alignkit.reports.sections import facts_section
from alignkit.rewriting import BalancedSpace, Stretching, multiply_spaces
from alignkit.tasks.goals import by_labels, by_outputs
from alignkit.tasks.path_loss import PathLoss
from alignkit.tasks.task import Task
from alignkit.text import Explained, plural

MIDDLE = 0.5
LOOKS = 5
"""How often the average is judged on samples that stay the same; the best of these networks is taken."""
SCORE_SAMPLES = 512
HIGHEST_RATE = 1.0
"""A step multiplies by about ``exp(rate)``: larger ones lead away from all that is balanced."""


@dataclass(frozen=True, eq=False, repr=False)
class Stretched(Explained):
    """A network whose scales and matrices were moved.

    Attributes:
        network: Stretched B, which computes what B does: a module where one was given, else a dict.
        spaces: What each balanced space was multiplied by, as far as one moved; empty where nothing was better.
        before: The loss of the average of A and B on samples that stay the same.
        after: The loss of the average of A and stretched B on them; at most ``before``.
    """

    network: nn.Module | dict[str, Tensor]
    spaces: Sequence[BalancedSpace]
    before: float
    after: float

    def __repr__(self) -> str:
        return f"Stretched({len(self.spaces)} spaces, {self.before:.4g} -> {self.after:.4g})"

    @property
    def largest(self) -> float:
        """The largest factor by which a direction of a space was multiplied or divided; 1 where nothing moved."""
        return max((_largest_factor(space) for space in self.spaces), default=1.0)

    def explain(self) -> str:
        """Say in a line what moved, and what it was worth."""
        if not self.spaces:
            return f"Scales and matrices stay as they were balanced: no others were better ({self.before:.4g})."
        moved = f"Scales and matrices of {plural(len(self.spaces), 'space')} moved, by factors up to {self.largest:.3g}"
        return f"{moved}: {self.before:.4g} before, {self.after:.4g} after."

    def facts(self) -> dict[str, Any]:
        """Return what was done and measured as plain values, as JSON takes them."""
        return {"spaces": len(self.spaces), "largest": self.largest, "before": self.before, "after": self.after}

    @check_arguments
    def report(self, title: str = "A stretched network", *, facts: Facts = None) -> Report:
        """List the spaces that were stretched, and what it was worth."""
        losses = {"average before": f"{self.before:.4g}", "average after": f"{self.after:.4g}"}
        rows = tuple(
            (space.balance.group, space.balance.kind.replace("_", " "), f"{_largest_factor(space):.3g}")
            for space in self.spaces
        )
        table = Table(("space", "what moved", "largest factor"), rows)
        return Report(
            title,
            (facts_section({**(facts or {}), **losses}), Section("Spaces", (table if rows else Text("None."),))),
        )


@check_arguments
def stretch(
    pair: Pair | SymmetryGraph,
    *models: WeightsSource,
    task: Task,
    steps: int = 100,
    objective: Literal["outputs", "labels"] = "outputs",
    rate: float = 0.01,
    samples: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Stretched:
    """Move scales and matrices of B, which is aligned to A, until the average does what both do: `merge(stretch=)`.

    Of heads that is any invertible matrix between queries and keys, and between values and what reads them; of units
    that rectify a scale; of a gated branch a factor. Those are the balances of the graph. Gradients of the average
    follow them by Adam, whose rate falls to 0 along half a cosine.

    Args:
        pair: A, and B in the order of A: ``graph.bind(a, aligned_b)``; or a graph, with the two behind it. Both are
            folded.
        models: The two networks, if ``pair`` is a graph.
        task: Inputs, and for ``objective="labels"`` targets.
        steps: Number of gradient steps.
        objective: ``"outputs"``: how far outputs of the average are from the mean of those of A and B, without labels.
            ``"labels"``: the loss of the task.
        rate: Learning rate of the generators: about the logarithm of the factors by which a step multiplies.
        samples: Samples of the task to learn from, its first. None as for solvers: 10,000, or more small ones.
        batch_size: Samples in a step.
        seed: Draws their order.

    Raises:
        FoldError: The graph has no scales or matrices, a number is out of range, or a network does not fit.
        BindError: There are not two networks.
        TaskError: The task fails on a batch, or the average has a loss that is not finite.
    """
    graph, sources = graph_and_models("stretch", pair, models)
    if len(sources) > 2:
        raise BindError(f"stretch() takes two networks, and there are {len(sources)}: B goes to A.")
    check_stretchable(graph)
    if steps < 1 or batch_size < 1 or not 0 < rate <= HIGHEST_RATE:
        wanted = f"steps and samples in each are 1 or more, and the rate is above 0 and at most {HIGHEST_RATE:g}"
        raise FoldError(f"steps={steps}, batch_size={batch_size}, rate={rate}: {wanted}.")
    bound = pair if isinstance(pair, Pair) else graph.bind(*sources)
    work = Rewriting(sources[1], graph)
    generator = torch.Generator().manual_seed(seed)
    goal = by_outputs if objective == "outputs" else by_labels
    path = PathLoss(task, bound, (MIDDLE,), generator, (samples, batch_size, SCORE_SAMPLES), goal)
    before = path.score_of(path.b)
    stretching = Stretching(graph, path.b)
    after = _descend(path, stretching, before, steps, rate)
    spaces = [] if after >= before else [space for space in stretching.spaces() if _largest_factor(space) > 1]
    multiply_spaces(work.wide, graph, spaces)
    return Stretched(work.result(), spaces, before, min(before, after))


def check_stretchable(graph: SymmetryGraph) -> None:
    """Raise `FoldError` where a graph has no scales or matrices that could move."""
    if not any(isinstance(balance, Balance) for balance in graph.balances):
        missing = 'trace it with symmetries="all"; where that finds none, there is nothing to stretch'
        raise FoldError(f"no scale or matrix of this graph is free: {missing}.")


def _descend(path: PathLoss, stretching: Stretching, before: float, steps: int, rate: float) -> float:
    """Leave in the generators the best of what steps lead to, and return its score."""
    generators = [generator.requires_grad_() for generator in stretching.generators]
    best, kept = before, [generator.detach().clone() for generator in generators]
    optimizer = torch.optim.Adam(generators, lr=rate)
    every = max(1, steps // LOOKS)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = path.on(path.minibatches.draw())(MIDDLE, path.between(stretching.weights(), MIDDLE))
        if not bool(loss.isfinite()):
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            with torch.no_grad():
                now = path.score_of(stretching.weights())
            if now < best:
                best, kept = now, [generator.detach().clone() for generator in generators]
    for generator, value in zip(generators, kept, strict=True):
        generator.requires_grad_(False).copy_(value)
    return best


def _largest_factor(space: BalancedSpace) -> float:
    """Return the largest factor by which a direction of a space is multiplied or divided."""
    factors = torch.linalg.svdvals(space.write) if space.balance.kind == "invertible" else space.write
    return float(factors.log().abs().max().exp())
