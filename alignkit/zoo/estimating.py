"""What training a data set of networks would write and take. A few steps are timed; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from alignkit.arguments import check_arguments, usable_device
from alignkit.text import Explained, plural, readable_bytes, timed_seconds
from alignkit.zoo.manifest import SetPlan
from alignkit.zoo.recipe import complete_recipe
from alignkit.zoo.training import SPLITS, Stack, chunk_size
from alignkit.zoo.writing import manifest_of

TIMED = 3
"""Steps that are timed, behind a first one."""


@dataclass(frozen=True)
class SetEstimate(Explained):
    """What a data set would take.

    Attributes:
        folder: Where it would be written.
        plan: What would be trained.
        done: Networks that the folder holds already.
        files: Files of networks that would be written.
        bytes: Bytes of these files.
        steps: Steps of each network.
        seconds: Time on this machine, within a factor of about two: from `TIMED` steps and one evaluation.
    """

    folder: Path
    plan: SetPlan
    done: int
    files: int
    bytes: int
    steps: int
    seconds: float

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values, as JSON takes them."""
        plan = self.plan.model_dump(mode="json")
        return {**vars(self), "folder": str(self.folder), "plan": plan}

    def explain(self) -> str:
        """Say what would be trained and written, and how long it would take."""
        there = f"{self.done} of {self.plan.count} are there already." if self.done else "Nothing is there yet."
        return "\n".join(
            [
                "Estimate of zoo: nothing was trained or written.",
                f"{plural(self.plan.count, 'network')}: {self.plan.architecture.describe()}, {self.steps} steps each.",
                there,
                f"Would write {plural(self.files, 'file')} of networks into {self.folder}, "
                f"{readable_bytes(self.bytes)}, and manifest.json.",
                f"Time: {timed_seconds(self.seconds)}.",
            ]
        )


@check_arguments
def estimate_set(
    folder: str | Path,
    plan: SetPlan,
    *,
    data: str | Path | None = None,
    device: torch.device | str | None = None,
    chunk: int | None = None,
) -> SetEstimate:
    """Estimate what `alignkit.zoo.write_set` would write and how long it would take.

    Args:
        folder: Where the data set would be.
        plan: What would be trained.
        data: Where idx files are. They are read, because some steps are timed on them.
        device: Where to train. None is the CPU.
        chunk: Networks trained together, as `alignkit.zoo.train` takes it.

    Raises:
        ZooError: As `alignkit.zoo.write_set`, for all that is known before networks are trained.
        MissingExtraError: scikit-learn is needed and not installed.
    """
    there = manifest_of(Path(folder), plan)
    done = 0 if there is None else len(there.networks)
    left = plan.count - done
    architecture = plan.architecture.for_source(plan.source.shape, plan.source.outputs)
    recipe = complete_recipe(plan.recipe, architecture, plan.source)
    where = usable_device(device or "cpu")
    together = min(chunk_size(architecture, where, chunk), plan.shard, plan.count)
    few = recipe.model_copy(update={"steps": TIMED + 1})
    stack = Stack(architecture, plan.source, few, range(together), plan.seed, where)
    learnt, judged = (plan.source.data(data, split, stack.targets, plan.seed).to(where) for split in SPLITS)
    times: list[float] = []
    stack.fit(learnt, lambda share: times.append(perf_counter()))
    stack.evaluate(judged)
    judging = perf_counter() - times[-1]
    steps = recipe.total_steps(len(learnt.inputs))
    each = sum(value[0].nbytes for value in (*stack.parameters.values(), *stack.buffers.values()))
    seconds = ceil(left / together) * (steps * (times[-1] - times[0]) / TIMED + judging)
    return SetEstimate(Path(folder), plan, done, ceil(left / plan.shard), left * each, steps, seconds)
