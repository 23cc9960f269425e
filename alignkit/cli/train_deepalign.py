"""``alignkit train-deepalign``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

import alignkit
from alignkit.cli import switches
from alignkit.cli.failures import saying_what_is_there
from alignkit.cli.outputs import check_weights
from alignkit.cli.telling import TellingSwitches
from alignkit.cli.values import key_values, plain_value
from alignkit.errors import UsageError

if TYPE_CHECKING:
    from alignkit.training.records import MetricsRow


@dataclass(frozen=True)
class AlignerSwitches:
    """What is trained."""

    encoder: Annotated[
        str | None,
        typer.Option("--encoder", help="dws: for one architecture, from weights. learned: for any. Default: learned."),
    ] = None
    encoder_option: Annotated[
        list[str] | None,
        typer.Option("--encoder-option", metavar="KEY=VALUE", help="Argument of the encoder, such as hidden=32."),
    ] = None
    start: Annotated[Path | None, typer.Option("--start", help="Aligner to start from.")] = None
    domain: Annotated[
        bool, typer.Option("--domain", help="Learn what inputs are like, so that no data are needed to align.")
    ] = False


@dataclass(frozen=True)
class TrainingSwitches:
    """How it is trained."""

    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of the optimizer.")] = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")] = 0
    data: Annotated[Path | None, typer.Option("--data", help="Folder of the images that were learnt.")] = None
    setting: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Another setting: pairs=8, augmentations.noise=0.5.")
    ] = None


@dataclass(frozen=True)
class LogSwitches:
    """What is kept while it runs."""

    log: Annotated[Path | None, typer.Option("--log", help="Folder of checkpoints and metrics.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --log, if there is one.")] = False
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write metrics for TensorBoard, too.")] = False


@switches.command
def train_deepalign(
    sets: Annotated[list[Path], typer.Argument(help="Folders of networks, as alignkit zoo writes them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where it is written.")],
    wanted: AlignerSwitches,
    training: TrainingSwitches,
    logging: LogSwitches,
    telling: TellingSwitches,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps, show the estimate, and write nothing.")
    ] = False,
) -> None:
    """Train an aligner on sets of networks.

    Example: alignkit train-deepalign networks -o aligner.safetensors --encoder dws --steps 1000

    A killed run resumes with --resume and ends with the same aligner. What is written is the aligner of the step that
    did best on held-out networks, with its model card.
    """
    if output.suffix != ".safetensors":
        raise UsageError(f"--output {output}: end its name in .safetensors.")
    check_weights({"--output": output}, force)
    opened = [alignkit.zoo.NetworkSet.open(folder) for folder in sets]
    options, changes = key_values("--encoder-option", wanted.encoder_option), key_values("--setting", training.setting)
    aligner = alignkit.training.starting_aligner(opened, wanted.encoder, wanted.start, options, training.seed)
    if wanted.domain:
        alignkit.training.learn_domain(aligner, opened, training.data, training.seed)
    settings = alignkit.training.settings_for(aligner.encoder, training.seed, training.steps, changes)
    folder = logging.log or output.with_name(f"{output.stem}-training")
    if dry_run:
        estimate = alignkit.training.estimate_training(
            aligner, opened, settings, folder, data=training.data, resume=logging.resume
        )
        telling.show(json.dumps(estimate.facts(), indent=2) if as_json else estimate.explain())
        return
    with saying_what_is_there(lambda: _what_is_there(folder, output)), _training_bar(settings.steps, telling) as report:
        result = alignkit.training.train(
            aligner, opened, settings, folder, data=training.data, resume=logging.resume,
            tensorboard=logging.tensorboard, report=report,
        )  # fmt: skip
    again = alignkit.training.command_line(sets, aligner.encoder, wanted.start, settings, ["--domain"] * wanted.domain)
    card = alignkit.training.training_card(opened, settings, result, folder, again)
    alignkit.deepalign.save_aligner(output, result.aligner, card)
    if as_json:
        facts = {**{name: plain_value(text) for name, text in card.items()}, **result.facts()}
        typer.echo(json.dumps({**facts, "output": str(output)}, indent=2))
    else:
        using = f"Use it: --solver deepalign --option encoder={aligner.encoder} --option checkpoint={output}"
        telling.say(f"{result.explain(opened)}\nWritten: {output}\nMetrics: {folder}\n{using}")


def _what_is_there(folder: Path, output: Path) -> str:
    """Say what an interrupted run has written."""
    if not folder.exists():
        return "Nothing was written."
    return f"The run so far is in {folder}, and --resume goes on from its last checkpoint. {output} was not written."


@contextmanager
def _training_bar(steps: int, telling: TellingSwitches) -> Iterator[Callable[[MetricsRow], None]]:
    """Show how far training has come, with the last losses that were measured."""
    last = {"loss": "-", "held out": "-"}
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with telling.bar(*columns, total=steps, start="preparing") as update:

        def report(row: MetricsRow) -> None:
            measured = {"loss": row.loss, "held out": row.held_out}
            last.update({name: f"{value:.3f}" for name, value in measured.items() if value is not None})
            update(completed=row.step, description=", ".join(f"{name} {text}" for name, text in last.items()))

        yield report
