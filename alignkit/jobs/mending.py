"""What becomes of the running statistics of a network that a job makes: mended on data, or said not to fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from alignkit.errors import MergeError
from alignkit.graph.bind import Weights, weights_of
from alignkit.jobs.average import with_tensors
from alignkit.jobs.repair import repair, reset_batchnorm
from alignkit.jobs.running_statistics import is_statistic
from alignkit.tasks.interpolation import Interpolation, interpolate
from alignkit.tasks.task import Task
from alignkit.text import list_some

LISTED = 3
"""Maximum number of statistics that a sentence names."""
RECOMPUTED = {
    "recomputed": "Running statistics (BatchNorm) were recomputed on the inputs of the task.",
    "repaired": "Every channel was given the mean and deviation that its parents have on the inputs of the task.",
}


@dataclass(frozen=True)
class Statistics:
    """What became of the running statistics of a network that a job made.

    Attributes:
        done: ``"recomputed"`` or ``"repaired"``; None where nothing was done.
        left: Names of the running statistics that do not fit the network.
    """

    done: Literal["recomputed", "repaired"] | None = None
    left: tuple[str, ...] = ()

    @classmethod
    def unmended(cls, names: Iterable[str]) -> Statistics:
        """Return what there is to say about a network with tensors of these names in which nothing was mended."""
        return cls(None, tuple(name for name in names if is_statistic(name)))

    def explain(self) -> list[str]:
        """Say what was done, and what is left to do; no line where there is nothing to say."""
        lines = [] if self.done is None else [RECOMPUTED[self.done]]
        known = [name for name in self.left if _can_be_recomputed(name)]
        if known:
            lines.append(
                f"Not usable yet: running statistics ({list_some(known, LISTED)}) do not fit the new weights. They "
                "are recomputed on data if you run the command again with --task package.module:function --force, and "
                "without --memory and --no-reset-batchnorm. Or in Python: model = alignkit.reset_batchnorm(model, "
                "batches)."
            )
        if unknown := [name for name in self.left if name not in known]:
            lines.append(
                f"Not usable yet: running statistics ({list_some(unknown, LISTED)}) do not fit the new weights. They "
                "are no mean and variance of channels, which could be recomputed here: set them in your own way."
            )
        return lines

    def facts(self) -> dict[str, Any]:
        """Return it as plain values."""
        done = self.done or ("left" if self.left else "none")
        return {"running_statistics": done, "running_statistics_left": list(self.left)}


@dataclass(frozen=True)
class Mending:
    """What is done to networks that a job makes: nothing without a task.

    Attributes:
        task: Its inputs are what statistics are measured on; its targets are not looked at.
        resets: Whether running statistics are recomputed.
        repairs: Whether all channels are repaired instead, running statistics included.
    """

    task: Task | None
    resets: bool
    repairs: bool

    def __post_init__(self) -> None:
        if self.repairs and self.task is None:
            raise MergeError("repair=True runs the networks on data: pass task=, on the command line --task.")

    def changes(self, network: Weights) -> bool:
        """Tell whether networks with the names of this one are changed at all."""
        return self.task is not None and (self.repairs or (self.resets and any(map(is_statistic, weights_of(network)))))

    def mend(self, network: Weights, parents: Sequence[Weights], shares: Sequence[float]) -> tuple[Any, Statistics]:
        """Return a network with statistics that fit it, in the form in which it came, and what was done.

        Args:
            network: Made from its parents, with new weights; one that equals a parent is returned as it is.
            parents: Networks with units in the same order.
            shares: Share of each parent, for repair.

        Raises:
            MergeError: As `alignkit.reset_batchnorm` and `alignkit.repair` do.
            TaskError: The task fails on a batch.
        """
        state, sides = weights_of(network), [weights_of(parent) for parent in parents]
        if any(_equal(state, side) for side in sides):
            return network, Statistics()
        # Statistics that all parents share, such as frozen ones, fit as well as they did before.
        stale = [name for name in state if is_statistic(name)]
        stale = [name for name in stale if not all(_equal({name: state[name]}, side) for side in sides)]
        resets = self.resets and any(map(_can_be_recomputed, stale))
        if self.task is None or not (self.repairs or resets):
            return network, Statistics(None, tuple(stale))
        module = self._module(network)
        if self.repairs:
            mended = repair(module, [self._module(parent) for parent in parents], self.task, shares)
        else:
            mended = reset_batchnorm(module, self.task)
        left = tuple(name for name in stale if not _can_be_recomputed(name))
        done = Statistics("repaired" if self.repairs else "recomputed", left)
        if module is network:
            return mended, done
        fresh = mended.state_dict()
        values = {name: fresh[name].to(tensor) if name in fresh else tensor for name, tensor in state.items()}
        return with_tensors(network, values) if isinstance(network, nn.Module) else values, done

    def line(self, a: Weights, b: Weights, points: int, label: str | None = None) -> Interpolation:
        """Evaluate the task on the line from A to B, the networks between them mended; see `alignkit.interpolate`."""
        assert self.task is not None, "a line is evaluated by a task"

        def mend(weights: Weights, share: float) -> Weights:
            return cast(Weights, self.mend(weights, [a, b], [1 - share, share])[0])

        return interpolate(self.task, a, b, points, label, mend=mend if self.changes(a) else None)

    def _module(self, network: Weights) -> nn.Module:
        """Return a network as a module that runs on the inputs of the task: itself where it has the task's dtypes."""
        assert self.task is not None
        if isinstance(network, nn.Module) and self.task.has_dtypes_of(network):
            return network
        return self.task.network(network)


def _can_be_recomputed(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name].to(tensor)) for name, tensor in one.items() if name in other)
