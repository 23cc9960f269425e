"""``alignkit train-deepalign``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alignkit.cli.inputs import check_outputs
from alignkit.deepalign import Aligner, load_aligner, save_aligner
from alignkit.deepalign.aligner_file import KINDS, aligner_class
from alignkit.errors import UsageError
from alignkit.text import describe_validation, did_you_mean
from alignkit.training import (
    CHECKPOINT,
    METRICS,
    RECOMMENDED,
    MetricsRow,
    Report,
    TrainingResult,
    TrainingSettings,
    describe_networks,
    train,
    training_card,
)
from alignkit.zoo import NetworkSet


def train_deepalign(
    sets: Annotated[
        list[Path], typer.Argument(help="Folders of networks, as alignkit zoo writes them.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the aligner is written.", show_default=False)],
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", help="dws: for one architecture, from weights. learned: for any. Default: learned."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="Aligner to start from, in place of an untrained one.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of the optimizer.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")] = 0,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the images that the networks learnt from, if any.")
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", help="Folder of checkpoints and metrics. Default: the output's name and -training."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --log, if there is one.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--setting", metavar="KEY=VALUE", help="Any other setting, such as pairs=8 or augmentations.noise=0.5."
        ),
    ] = None,
    encoder_option: Annotated[
        list[str] | None,
        typer.Option("--encoder-option", metavar="KEY=VALUE", help="Argument of the encoder, such as hidden=32."),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write metrics for TensorBoard, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
) -> None:
    """Train an aligner on sets of networks.

    Example: [bold]alignkit train-deepalign networks -o aligner.safetensors --encoder dws --steps 1000[/bold]

    A killed run goes on with --resume and ends with the same aligner. What is written is the aligner of the step that
    did best on held-out networks, with its model card.
    """
    check_outputs({"--output": output}, force)
    if output.suffix != ".safetensors":
        raise UsageError(f"--output {output}: end its name in .safetensors.")
    opened = [NetworkSet.open(folder) for folder in sets]
    aligner = _aligner(opened, encoder, start, _values("--encoder-option", encoder_option or []), seed)
    settings = _settings(aligner.encoder, steps, seed, _values("--setting", setting or []))
    folder = log or output.with_name(f"{output.stem}-training")
    if not resume and (folder / CHECKPOINT).exists():
        raise UsageError(f"{folder} holds an earlier run: pass --resume to go on with it, or choose another --log.")
    with _bar(settings.steps) as report:
        result = train(
            aligner, opened, settings, folder, data=data, resume=resume, tensorboard=tensorboard, report=report
        )
    card = training_card(opened, settings, result, folder, _command(sets, aligner.encoder, start, settings))
    save_aligner(output, result.aligner, card)
    if as_json:
        facts = {**{name: _parsed(text) for name, text in card.items()}, "fingerprint": result.aligner.fingerprint}
        typer.echo(json.dumps({**facts, "stopped early": result.stopped, "output": str(output)}, indent=2))
        return
    _show(opened, result, output, folder)


def _aligner(
    sets: list[NetworkSet], encoder: str | None, start: Path | None, options: dict[str, Any], seed: int
) -> Aligner:
    """A fresh aligner whose parameters depend on the seed, or the one to start from."""
    import torch

    if start is not None:
        aligner = load_aligner(start)
        if options or encoder not in (None, aligner.encoder):
            raise UsageError(
                f"--start {start} holds a {aligner.encoder!r} encoder; leave --encoder and its options out."
            )
        return aligner
    name = encoder or "learned"
    if name not in KINDS:
        raise UsageError(f"there is no encoder {name!r}. Known: {', '.join(KINDS)}.{did_you_mean(name, KINDS)}")
    given = {"graph": sets[0].graph} if name == "dws" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return aligner_class(name)(**given, **options)
        except (TypeError, ValueError) as error:
            raise UsageError(f"--encoder-option: {error}") from error


def _settings(encoder: str, steps: int | None, seed: int, given: dict[str, Any]) -> TrainingSettings:
    """The encoder's recommended settings with what was given.

    Raises:
        UsageError: A setting does not exist or is out of range.
    """
    for name in ("seed", "steps"):
        if name in given:
            raise UsageError(f"--setting {name}=...: use --{name} instead.")
    values = RECOMMENDED.get(encoder, TrainingSettings()).model_dump()
    for path, value in given.items():
        first, dot, second = path.partition(".")
        place = values.get(first) if dot else values
        if not isinstance(place, dict):
            raise UsageError(f"--setting {path}: {first!r} has no settings of its own.")
        place[second if dot else first] = value
    values |= {"seed": seed, **({} if steps is None else {"steps": steps})}
    try:
        return TrainingSettings.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"--setting: {describe_validation(error)}") from error


def _values(switch: str, given: list[str]) -> dict[str, Any]:
    """``["pairs=8"]`` as ``{"pairs": 8}``; values are read as JSON where they are JSON."""
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key or key in found:
            raise UsageError(f"{switch} {text!r}: write KEY=VALUE, each key once, for example {switch} pairs=8.")
        found[key] = _parsed(value)
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _command(sets: list[Path], encoder: str, start: Path | None, settings: TrainingSettings) -> str:
    """What makes the same aligner again, without the folders of this machine."""
    usual = RECOMMENDED.get(encoder, TrainingSettings()).model_dump()
    words = ["alignkit", "train-deepalign", *(folder.name for folder in sets), "-o", "aligner.safetensors"]
    words += ["--encoder", encoder] if start is None else ["--start", start.name]
    words += ["--steps", str(settings.steps), "--seed", str(settings.seed)]
    for name, value in settings.model_dump().items():
        if name in ("steps", "seed") or value == usual[name]:
            continue
        changed = {f"{name}.{k}": v for k, v in value.items() if v != usual[name][k]} if isinstance(value, dict) else {}
        for key, new in (changed or {name: value}).items():
            words += ["--setting", f"{key}={new if isinstance(new, str) else json.dumps(new)}"]
    return shlex.join(words)


@contextmanager
def _bar(steps: int) -> Iterator[Report]:
    """A progress bar on a terminal, with the last loss and the last look at held-out networks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task("preparing", total=steps)
        shown = {"loss": "-", "held out": "-"}

        def report(row: MetricsRow) -> None:
            if row.loss is not None:
                shown["loss"] = f"{row.loss:.3f}"
            if row.held_out is not None:
                shown["held out"] = f"{row.held_out:.3f}"
            bar.update(job, completed=row.step, description=", ".join(f"{name} {text}" for name, text in shown.items()))

        yield report


def _show(sets: list[NetworkSet], result: TrainingResult, output: Path, folder: Path) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    ended = "stopped early" if result.stopped else "done"
    console.print(f"{ended} after {result.steps} steps; the best was step {result.best_step}.")
    if result.score is not None:
        console.print("Mean barrier on held-out pairs (weight matching in brackets):")
        for networks, barrier, reference in zip(sets, result.barriers, result.references, strict=True):
            console.print(f"  {describe_networks(networks)}: {barrier:.4g} ({reference:.4g})")
    else:
        console.print("No held-out pairs: give sets a validation split of 2 networks or more to keep the best step.")
    console.print(f"Aligner: {output} ({result.aligner.fingerprint})\nMetrics: {folder / METRICS}")
