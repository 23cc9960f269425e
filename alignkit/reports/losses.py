"""Losses of networks on a task, as the results of jobs tell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from alignkit.tasks.interpolation import Interpolation
from alignkit.tasks.task import TaskResult


@dataclass(frozen=True)
class Losses:
    """Loss, and metric if the task has one, of networks by what they are called."""

    results: Mapping[str, TaskResult]
    metric_name: str | None

    @cached_property
    def measures(self) -> dict[str, dict[str, float]]:
        """The numbers of all networks, for the loss and for the metric."""
        measures = {"loss": {name: result.loss for name, result in self.results.items()}}
        metrics = {name: result.metric for name, result in self.results.items() if result.metric is not None}
        if metrics:  # a metric may be a function with any name
            measures["metric" if self.metric_name in (None, "loss") else str(self.metric_name)] = metrics
        return measures

    def explain(self) -> str:
        """Say the losses in a sentence, and the metrics in another."""
        return " ".join(f"{name.capitalize()}: {_listed(values)}." for name, values in self.measures.items())

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Rows of a table: the measure, then the number of each network."""
        return [(name, *(f"{value:.5g}" for value in values.values())) for name, values in self.measures.items()]


@dataclass(frozen=True)
class Lines:
    """A task on the line between two networks, as they were given and aligned.

    Attributes:
        identity: From A to B as it was given.
        aligned: From A to aligned B.
    """

    identity: Interpolation
    aligned: Interpolation


@dataclass(frozen=True)
class MergeLosses:
    """A task on networks that were merged, and on their averages.

    Attributes:
        parents: The networks as they were given.
        averages: Their average as they were given, ``"unaligned"``, and with their units in one order, ``"aligned"``;
            both with the same shares, and with running statistics treated in the same way.
        lines: The task on the line between two networks; None for more.
    """

    parents: Losses
    averages: Losses
    lines: Lines | None = None

    def explain(self) -> str:
        """Say the losses in a few sentences."""
        parents, averages = self.parents.measures, self.averages.measures
        text = [
            f"{name.capitalize()}: {_listed(parents[name])}; their average "
            + ", ".join(f"{value:.4f} {how}" for how, value in averages[name].items())
            + "."
            for name in parents
        ]
        if self.lines is not None:
            before, after = self.lines.identity.barrier, self.lines.aligned.barrier
            text.append(f"Barrier: {before:.4f} unaligned, {after:.4f} aligned.")
        return "\n".join(text)

    def facts(self) -> dict[str, Any]:
        """Return the numbers by name."""
        facts: dict[str, Any] = {}
        for name, values in self.parents.measures.items():
            facts[f"{name}_of"] = values
            facts |= {f"{name}_average_{how}": value for how, value in self.averages.measures[name].items()}
        if self.lines is not None:
            facts |= {
                "loss_a": self.parents.measures["loss"]["A"],
                "loss_b": self.parents.measures["loss"]["B"],
                "barrier_unaligned": self.lines.identity.barrier,
                "barrier_aligned": self.lines.aligned.barrier,
            }
        return facts


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())
