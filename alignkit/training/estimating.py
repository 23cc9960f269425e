"""What training an aligner would write and take. A few steps are done in a folder of their own, which is removed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from alignkit.arguments import check_arguments
from alignkit.deepalign.aligner import Aligner
from alignkit.text import Explained, plural, timed_seconds
from alignkit.training.loop import check_log, train
from alignkit.training.pairs import Networks, describe_networks
from alignkit.training.records import MetricsRow
from alignkit.training.settings import TrainingSettings

TIMED = 4
"""Steps that are timed; the first, which prepares, does not count."""


@dataclass(frozen=True)
class TrainingEstimate(Explained):
    """What a training run would take.

    Attributes:
        sets: What it would learn from, in words.
        settings: Its settings.
        folder: Where checkpoints and metrics would be written.
        seconds: Time of all steps, and of all looks at held-out pairs, on this machine, within a factor of about two.
    """

    sets: str
    settings: TrainingSettings
    folder: Path
    seconds: float

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values, as JSON takes them."""
        return {**vars(self), "settings": self.settings.model_dump(mode="json"), "folder": str(self.folder)}

    def explain(self) -> str:
        """Say what would be trained and written, and how long it would take."""
        settings = self.settings
        return "\n".join(
            [
                "Estimate of train-deepalign: nothing was trained or written.",
                f"Learns from {self.sets}.",
                f"{plural(settings.steps, 'step')} of {plural(settings.pairs, 'pair')}, with a look at held-out pairs "
                f"every {settings.validate_every} steps.",
                f"Would write checkpoints and metrics into {self.folder}.",
                f"Time: {timed_seconds(self.seconds)}.",
            ]
        )


@check_arguments
def estimate_training(
    aligner: Aligner,
    sets: Sequence[Networks],
    settings: TrainingSettings,
    folder: str | Path = "training",
    *,
    data: str | Path | None = None,
    resume: bool = False,
) -> TrainingEstimate:
    """Estimate how long `alignkit.training.train` would take; see there for the arguments and what is raised.

    The aligner stays as it is.
    """
    check_log(folder, resume=resume)
    rows: list[MetricsRow] = []
    few = settings.model_copy(update={"steps": min(TIMED, settings.steps), "patience": None})
    with TemporaryDirectory() as place:
        train(copy.deepcopy(aligner), sets, few, place, data=data, report=rows.append)
    timed = [(row.loss is None, row.seconds or 0.0) for row in rows]
    steps, looks = ([seconds for of_look, seconds in timed if of_look == is_look] for is_look in (False, True))
    each_look = fmean(looks) if looks else 0.0
    count = 1 + ceil(settings.steps / settings.validate_every)
    seconds = settings.steps * fmean(steps[1:] or steps) + count * each_look
    return TrainingEstimate(" and ".join(map(describe_networks, sets)), settings, Path(folder), seconds)
