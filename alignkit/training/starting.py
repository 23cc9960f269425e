"""How a training begins: the aligner that is trained, its settings, and the command that does it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.deepalign import Aligner, load_aligner
from alignkit.deepalign.aligner_file import KINDS, aligner_class
from alignkit.deepalign.input_domain import InputDomain, shape_text
from alignkit.errors import UsageError
from alignkit.tasks.measures import cross_entropy
from alignkit.tasks.minibatches import first_batches
from alignkit.text import describe_validation, did_you_mean
from alignkit.training.pairs import Networks
from alignkit.training.settings import RECOMMENDED, TrainingSettings
from alignkit.zoo import NetworkSet

DOMAIN_SAMPLES = 5000
"""Inputs of each set that a domain is fitted to."""


@check_arguments
def starting_aligner(
    sets: Sequence[NetworkSet],
    encoder: str | None = None,
    start: Path | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Aligner:
    """Return a fresh aligner whose parameters depend on the seed, or the one to start from.

    Args:
        sets: The sets of networks; ``"dws"`` is made for the graph of the first.
        encoder: ``"dws"`` or ``"learned"``. None: ``"learned"``, or that of ``start``.
        start: File of an aligner to start from.
        options: Arguments of the encoder.
        seed: Seed of the parameters.

    Raises:
        UsageError: The encoder or an argument does not exist, or does not go with ``start``.
    """
    options = dict(options or {})
    if start is not None:
        aligner = load_aligner(start)
        if options or encoder not in (None, aligner.encoder):
            raise UsageError(f"{start} holds a {aligner.encoder!r} encoder; leave the encoder and its options out.")
        return aligner
    name = encoder or "learned"
    if name not in KINDS:
        raise UsageError(f"there is no encoder {name!r}. Known: {', '.join(KINDS)}.{did_you_mean(name, KINDS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return aligner_class(name)(**({"graph": sets[0].graph} if name == "dws" else {}), **options)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the encoder {name!r} cannot take these arguments: {error}") from error


@check_arguments
def learn_domain(aligner: Aligner, sets: Sequence[Networks], data: Path | None = None, seed: int = 0) -> None:
    """Let an aligner know what the inputs are like that networks learned from, so that it needs no data to align.

    Args:
        aligner: An aligner with ``encoder="learned"``; it is changed.
        sets: Sets of networks of one domain, of any shapes and families.
        data: Folder of the data that the networks were trained on, where the sets need one.
        seed: Seed of the fit.

    Raises:
        UsageError: The aligner runs no networks, or the sets are not of one domain.
    """
    if not aligner.needs_probes:
        raise UsageError(f"encoder {aligner.encoder!r} runs no networks, so it has no use for a domain.")
    samples: list[Tensor] = []
    classes: list[bool] = []
    for at, networks in enumerate(sets, 1):
        task = networks.task("train", DOMAIN_SAMPLES, data, index=networks.indices("train")[0], device=None)
        batches = first_batches(task, DOMAIN_SAMPLES)
        inputs = [batch.inputs for batch in batches if isinstance(batch.inputs, Tensor)]
        if len(inputs) < len(batches) or not all(one.is_floating_point() for one in inputs):
            raise UsageError(f"set {at}: inputs that are not one tensor of real numbers are of no domain.")
        samples.append(torch.cat(inputs).cpu())
        classes.append(task.loss is cross_entropy)
        if samples[0].shape[1:] != samples[-1].shape[1:] or classes[0] != classes[-1]:
            first, other = (
                f"{shape_text(one.shape[1:])} inputs{' of classes' * of_classes}"
                for one, of_classes in ((samples[0], classes[0]), (samples[-1], classes[-1]))
            )
            raise UsageError(f"set 1 has {first} and set {at} {other}: train one aligner for each domain.")
    aligner.domain = InputDomain.of(torch.cat(samples), classes[0], torch.Generator().manual_seed(seed))


@check_arguments
def settings_for(encoder: str, seed: int, steps: int | None, changes: Mapping[str, Any]) -> TrainingSettings:
    """Return the recommended settings of an encoder with some changes.

    Args:
        encoder: Name of the encoder.
        seed: Seed of every random choice.
        steps: Steps of the optimizer. None: as recommended.
        changes: Values by the name of the setting, or ``"group.setting"``.

    Raises:
        UsageError: A setting does not exist or is out of range.
    """
    for name in ("seed", "steps"):
        if name in changes:
            raise UsageError(f"{name} is not among the settings that can be changed: use --{name} instead.")
    values = RECOMMENDED.get(encoder, TrainingSettings()).model_dump()
    for path, value in changes.items():
        first, dot, second = path.partition(".")
        section = values.get(first) if dot else values
        if not isinstance(section, dict):
            raise UsageError(f"setting {path}: {first!r} has no settings of its own.")
        section[second if dot else first] = value
    values |= {"seed": seed, **({} if steps is None else {"steps": steps})}
    try:
        return TrainingSettings.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"wrong settings: {describe_validation(error)}") from error


@check_arguments
def command_line(
    sets: Sequence[Path], encoder: str, start: Path | None, settings: TrainingSettings, switches: Sequence[str] = ()
) -> str:
    """Write the command that makes the same aligner again, without the folders of this machine."""
    usual = RECOMMENDED.get(encoder, TrainingSettings()).model_dump()
    words = ["alignkit", "train-deepalign", *(folder.name for folder in sets), "-o", "aligner.safetensors"]
    words += ["--encoder", encoder] if start is None else ["--start", start.name]
    words += [*switches, "--steps", str(settings.steps), "--seed", str(settings.seed)]
    for name, value in settings.model_dump().items():
        if name in ("steps", "seed") or value == usual[name]:
            continue
        changed = {f"{name}.{k}": v for k, v in value.items() if v != usual[name][k]} if isinstance(value, dict) else {}
        for key, new in (changed or {name: value}).items():
            words += ["--setting", f"{key}={new if isinstance(new, str) else json.dumps(new)}"]
    return shlex.join(words)
