"""The training loop of aligners, after [Navon24], with Lightning Fabric.

Everything random in a step depends on the seed and on the number of the step alone, so that a run which resumes from a
checkpoint gives the same result as one that was never interrupted: bit for bit on a CPU, up to rounding on a GPU.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.staging import make_folder
from alignkit.deepalign import Aligner, save_aligner
from alignkit.errors import MissingExtraError, TrainingError
from alignkit.text import install_extra, plural
from alignkit.training.held_out import HeldOut
from alignkit.training.losses import StepLosses
from alignkit.training.pairs import Networks, Pool, describe_networks, seeded
from alignkit.training.records import BEST, CHECKPOINT, Metrics, MetricsRow, TrainingCheckpoint
from alignkit.training.scheduling import choose_schedule
from alignkit.training.settings import RECOMMENDED, TrainingSettings

MOST_SKIPPED = 20
"""Steps in a row without a finite gradient after which a run gives up: by then the parameters themselves are lost."""

Report = Callable[[MetricsRow], None]
"""Called with every line of metrics."""


@dataclass(frozen=True)
class TrainingResult:
    """What training gave.

    Attributes:
        aligner: The aligner with the parameters of its best step, in eval mode.
        steps: Steps that were done.
        best_step: The step after which held-out pairs were aligned best; the last where there were none.
        start: Mean barrier on held-out pairs before training, relative to that of weight matching; None without any.
        score: The same after the best step.
        barriers: Mean barrier of each set after the best step.
        references: That of weight matching.
        stopped: Whether the run ended early.
    """

    aligner: Aligner
    steps: int
    best_step: int
    start: float | None
    score: float | None
    barriers: tuple[float, ...]
    references: tuple[float, ...]
    stopped: bool

    def explain(self, sets: Sequence[Networks] = ()) -> str:
        """Say in a few lines how the run ended and how good the aligner is on held-out pairs.

        Args:
            sets: The sets of networks, to name them.
        """
        ended = "Stopped early" if self.stopped else "Done"
        lines = [f"{ended} after {plural(self.steps, 'step')}; the best was step {self.best_step}."]
        if self.score is None:
            lines.append("No held-out pairs: give sets a validation split of 2 networks or more to keep the best step.")
        else:
            lines.append("Mean barrier on held-out pairs (weight matching in brackets):")
            for at, (barrier, reference) in enumerate(zip(self.barriers, self.references, strict=True)):
                name = describe_networks(sets[at]) if sets else f"set {at + 1}"
                lines.append(f"  {name}: {barrier:.4g} ({reference:.4g})")
        return "\n".join((*lines, f"Fingerprint of the aligner: {self.aligner.fingerprint}"))

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        return {"fingerprint": self.aligner.fingerprint, "stopped early": self.stopped}


@check_arguments
def train(
    aligner: Aligner,
    sets: Sequence[Networks],
    settings: TrainingSettings | None = None,
    folder: str | Path = "training",
    *,
    data: str | Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    report: Report | None = None,
) -> TrainingResult:
    """Train an aligner.

    Args:
        aligner: What to train; its parameters are changed.
        sets: Sets of networks, such as `alignkit.zoo.NetworkSet`.
        settings: Default: those that are recommended for the aligner's encoder.
        folder: Where checkpoints, metrics and the best aligner are written. Created if it does not exist.
        data: Folder of the data that the networks were trained on, where the sets need one.
        resume: Resume from the checkpoint in the folder if there is one.
        tensorboard: Write metrics for TensorBoard, too.
        report: Called with every line of metrics.

    Raises:
        TrainingError: A set or the checkpoint does not fit, the folder holds another run, or gradients stay infinite.
        MissingExtraError: Lightning Fabric is not installed.

    Source: [Navon24], sections 4.2 and 4.3.
    """
    settings = settings or RECOMMENDED.get(aligner.encoder, TrainingSettings())
    if not sets:
        raise TrainingError("there are no sets of networks to train on.")
    for at, networks in enumerate(sets):
        if reason := aligner.fits(networks.graph):
            raise TrainingError(f"set {at + 1}: {reason}")
        networks.graph.check_kinds(f"set {at + 1}: training", TrainingError)
        if not networks.graph.groups:
            raise TrainingError(f"set {at + 1}: its networks have no units that could be exchanged.")
    weights = settings.set_weights
    if weights is not None and (len(weights) != len(sets) or min(weights) < 0 or sum(weights) <= 0):
        raise TrainingError(f"set_weights has to hold {len(sets)} numbers, none negative and not all 0: {weights}.")
    if settings.validation_points % 2 == 0:
        raise TrainingError(f"validation_points is {settings.validation_points}: give an odd number.")
    if not settings.supervised + settings.alignment + settings.interpolation:
        raise TrainingError("all three losses have weight 0, so there is nothing to learn from.")
    check_log(folder, resume=resume)
    trainer = _Trainer(aligner, sets, settings, Path(folder), None if data is None else Path(data))
    with closing(Metrics(trainer.folder, len(sets), trainer.state.step, tensorboard=tensorboard)) as metrics:
        return trainer.run(metrics, report)


def check_log(folder: str | Path, *, resume: bool) -> None:
    """Raise a `TrainingError` where a folder holds the checkpoint of a run that is not to be resumed."""
    if not resume and os.path.lexists(Path(folder) / CHECKPOINT):
        raise TrainingError(f"{folder} holds the checkpoint of a run: resume it, or choose another folder.")


class _Trainer:
    """The loop over steps, and everything that a checkpoint holds."""

    def __init__(
        self, aligner: Aligner, sets: Sequence[Networks], settings: TrainingSettings, folder: Path, data: Path | None
    ) -> None:
        try:
            from lightning_fabric import Fabric
        except ImportError as error:
            raise MissingExtraError(f"training needs Lightning Fabric: {install_extra('train')}.") from error
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise TrainingError("device is cuda, but torch sees no GPU. Train with device cpu.")
        self.fabric: Any = Fabric(accelerator=settings.device, devices=1, precision=settings.precision)
        make_folder(folder)
        # What decides the result of a run, as JSON values.
        facts = {
            "settings": settings.model_dump(mode="json", exclude={"checkpoint_every"}),
            "sets": [{"graph": one.graph.fingerprint, "networks": len(one)} for one in sets],
            "encoder": aligner.encoder,
            "aligner": aligner.settings(),
            "start": aligner.fingerprint,
        }
        self.state = TrainingCheckpoint.load(folder, json.loads(json.dumps(facts)))
        self.aligner, self.settings, self.folder, self.skipped = aligner, settings, folder, 0
        self.pools = [Pool(one, settings, data, self.fabric.device, aligner.domain) for one in sets]
        rate, decay = settings.learning_rate, settings.weight_decay
        optimizer = torch.optim.AdamW(aligner.parameters(), lr=rate, weight_decay=decay)
        self.losses, self.optimizer = self.fabric.setup(StepLosses(aligner, settings), optimizer)
        self.held_out = HeldOut(self.pools, settings, probed=aligner.needs_probes)
        if self.state.step:
            aligner.load_state_dict(self.state.aligner)
            self.optimizer.load_state_dict(self.state.optimizer)

    def run(self, metrics: Metrics, report: Report | None) -> TrainingResult:
        """Do all steps that are left."""
        settings, state = self.settings, self.state

        def note(row: MetricsRow) -> None:
            metrics.add(row)
            if report is not None:
                report(row)

        if not state.step:
            self._measure(note)
        while state.step < settings.steps and not state.stopped:
            note(self._step(state.step))
            state.step += 1
            is_measured = state.step % settings.validate_every == 0 or state.step == settings.steps
            if is_measured:
                self._measure(note)
            if is_measured or state.step % settings.checkpoint_every == 0:
                state.aligner, state.optimizer = self._parameters(), self.optimizer.state_dict()
                state.save(self.folder)
        self.aligner.load_state_dict(state.best or self._parameters())
        score, barriers = state.best_score, tuple(state.best_barriers)
        if self.held_out and self.aligner.domain is not None:
            score, barriers = choose_schedule(self.aligner, self.held_out)
        return TrainingResult(
            self.aligner.eval(),
            state.step,
            state.best_step,
            state.start,
            score if self.held_out else None,
            barriers,
            self.held_out.references,
            state.stopped,
        )

    def _step(self, step: int) -> MetricsRow:
        settings, started = self.settings, time.perf_counter()
        if settings.set_weights is None:
            turn, at = divmod(step, len(self.pools))
        else:
            weights = torch.tensor(settings.set_weights, dtype=torch.float64)
            at = int(torch.multinomial(weights, 1, generator=seeded(settings.seed, step, "set")))
            turn = step
        labelled = settings.supervised > 0 and turn % settings.supervised_every == 0
        done = step / max(1, settings.steps - 1)
        share = settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        self.aligner.train()
        self.optimizer.zero_grad()
        sums: dict[str, float] = {}
        size = settings.pairs_at_once or settings.pairs
        for first in range(0, settings.pairs, size):
            numbers = tuple(range(first, min(first + size, settings.pairs)))
            losses = self.losses(self.pools[at], step, numbers, labelled)
            part = len(numbers) / settings.pairs
            if losses:
                weighted = [part * getattr(settings, name) * value for name, value in losses.items()]
                self.fabric.backward(torch.stack(weighted).sum())
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + part * float(value.detach())
        return MetricsRow(
            step + 1,
            at + 1,
            loss=sum(getattr(settings, name) * value for name, value in sums.items()),
            supervised=sums.get("supervised"),
            alignment=sums.get("alignment"),
            interpolation=sums.get("interpolation"),
            gradient_norm=self._update() if sums else 0.0,
            learning_rate=settings.learning_rate * share,
            sharpness=self.aligner.sharpness,
            seconds=time.perf_counter() - started,
        )

    def _update(self) -> float:
        """Clip the gradient and step; a gradient that is not finite is left out."""
        limits = {"max_norm": self.settings.clip, "error_if_nonfinite": False}
        norm = float(self.fabric.clip_gradients(self.losses, self.optimizer, **limits))
        if math.isfinite(norm):
            self.optimizer.step()
            self.skipped = 0
            return norm
        self.skipped += 1
        if self.skipped >= MOST_SKIPPED:
            raise TrainingError(
                f"{MOST_SKIPPED} steps in a row had no finite gradient. Lower the learning rate, or look at the sets: "
                "are all networks finite?"
            )
        return norm

    def _measure(self, note: Report) -> None:
        """Measure held-out pairs; keep the parameters if they are the best so far."""
        state = self.state
        if not self.held_out:
            state.best, state.best_step = self._parameters(), state.step
            return
        started = time.perf_counter()
        score, barriers = self.held_out.measure(self.aligner)
        note(MetricsRow(state.step, seconds=time.perf_counter() - started, held_out=score, barriers=barriers))
        if state.step == 0:
            state.start = score
        if score < state.best_score:
            state.best, state.best_step, state.best_score = self._parameters(), state.step, score
            state.best_barriers, state.idle = list(barriers), 0
            save_aligner(self.folder / BEST, self.aligner, {"step": str(state.step)})
        else:
            state.idle += 1
        patience = self.settings.patience
        state.stopped = patience is not None and state.idle >= patience

    def _parameters(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.aligner.state_dict().items()}
