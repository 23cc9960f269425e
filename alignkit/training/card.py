"""The model card of a trained aligner: what it learnt from, how, and how well it does on held-out networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from alignkit import __version__
from alignkit.arguments import check_arguments
from alignkit.training.loop import TrainingResult
from alignkit.training.pairs import Networks, describe_networks
from alignkit.training.records import METRICS, read_metrics
from alignkit.training.settings import TrainingSettings


@check_arguments
def training_card(
    sets: Sequence[Networks], settings: TrainingSettings, result: TrainingResult, folder: Path, command: str
) -> dict[str, str]:
    """Collect the facts about a training run, as `alignkit.deepalign.save_aligner` takes them.

    Args:
        sets: What was learnt from.
        settings: How.
        result: What came out.
        folder: Folder of the run, whose metrics are summed up.
        command: What makes the same aligner again.
    """
    looks = [row for row in read_metrics(folder / METRICS) if row["held_out"]]
    names = [describe_networks(networks) for networks in sets]
    held_out = {
        "mean barrier relative to weight matching before training": _round(result.start),
        "after": _round(result.score),
        "pairs a set": settings.validation_pairs,
        "sets": [
            {"set": name, "barrier": _round(barrier), "weight matching": _round(reference)}
            for name, barrier, reference in zip(names, result.barriers, result.references, strict=False)
        ],
    }
    domain = result.aligner.domain
    known = {} if domain is None else {"domain": json.dumps(domain.settings())}
    return {
        **known,
        "schedule": json.dumps(asdict(result.aligner.schedule)),
        "encoder": result.aligner.encoder,
        "parameters": str(sum(parameter.numel() for parameter in result.aligner.parameters())),
        "data": json.dumps(names),
        "command": command,
        "seed": str(settings.seed),
        "steps": f"{result.steps} of {settings.steps}, the best was {result.best_step}",
        "settings": settings.model_dump_json(),
        "held out": json.dumps(held_out),
        "log": json.dumps({row["step"]: _round(float(row["held_out"])) for row in looks}),
        "versions": f"alignkit {__version__}, torch {torch.__version__}",
    }


def _round(value: float | None) -> float | None:
    """Keep four digits; None for what was not measured, which JSON can hold."""
    return None if value is None or value != value else float(f"{value:.4g}")
