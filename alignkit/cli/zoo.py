"""``alignkit zoo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn

import alignkit
from alignkit.cli import switches
from alignkit.cli.failures import saying_what_is_there
from alignkit.cli.telling import TellingSwitches
from alignkit.cli.values import key_values, numbers
from alignkit.errors import AlignkitError, UsageError

WIDTHS_OF = {"mlp": "widths", "siren": "widths", "cnn": "channels"}
"""The field of each family that ``--widths`` fills."""


@dataclass(frozen=True)
class NetworkSwitches:
    """What is trained."""

    family: Annotated[str, typer.Option("--family", help="One of mlp, cnn, resnet, vit, gpt, siren, lstm.")] = "mlp"
    widths: Annotated[str | None, typer.Option("--widths", help="Hidden widths or channels: 128,128,128.")] = None
    option: Annotated[
        list[str] | None, typer.Option("--option", help="KEY=VALUE, a field of the family: depth=3, activation=gelu.")
    ] = None

    @property
    def architecture(self) -> Any:
        """The architecture that the switches describe."""
        fields = key_values("--option", self.option)
        if self.widths is not None:
            if self.family not in WIDTHS_OF:
                raise UsageError(
                    f"--widths is for {', '.join(WIDTHS_OF)}; give the fields of {self.family} by --option."
                )
            fields[WIDTHS_OF[self.family]] = numbers("--widths", self.widths, int)
        return alignkit.zoo.architecture(self.family, **fields)


@dataclass(frozen=True)
class SourceSwitches:
    """What is learnt."""

    learnt: Annotated[str, typer.Option("--source", help="digits, mnist, fashion-mnist, sine or image-inr.")] = "digits"
    size: Annotated[int | None, typer.Option("--size", help="Pixels of a side, by pooling: 14 or 28.")] = None
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the idx files, or that of folders mnist and fashion-mnist.")
    ] = None
    source_option: Annotated[
        list[str] | None,
        typer.Option("--source-option", help="KEY=VALUE, a field of the source: rotate=45, classes=[0,1], views=5."),
    ] = None

    @property
    def source(self) -> Any:
        """The source that the switches describe."""
        fields = key_values("--source-option", self.source_option)
        return alignkit.zoo.source(self.learnt, **fields, **({} if self.size is None else {"size": self.size}))


@dataclass(frozen=True)
class RecipeSwitches:
    """How the networks are trained."""

    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the data.")] = None
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Gradient steps, in place of --epochs.")] = None
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Samples of a step.")] = None
    lr: Annotated[float | None, typer.Option("--lr", help="Highest learning rate.")] = None

    @property
    def recipe(self) -> Any:
        """The recipe that the switches describe; what is left out is that of the architecture."""
        fields = {"epochs": self.epochs, "steps": self.steps, "batch_size": self.batch, "learning_rate": self.lr}
        return alignkit.zoo.Recipe.model_validate({k: value for k, value in fields.items() if value is not None})


@switches.command
def zoo(
    output: Annotated[Path, typer.Argument(help="Folder of the data set; a run that was cut off resumes in it.")],
    networks: NetworkSwitches,
    learning: SourceSwitches,
    recipe: RecipeSwitches,
    telling: TellingSwitches,
    count: Annotated[int, typer.Option("--count", min=1, help="Networks in all.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is random.")] = 0,
    splits: Annotated[str, typer.Option("--splits", help="Shares of train, validation, test.")] = "0.8,0.1,0.1",
    shard: Annotated[int, typer.Option("--shard", min=1, help="Networks in one file.")] = 64,
    device: Annotated[str | None, typer.Option("--device", help="Where to train, such as cuda.")] = None,
    chunk: Annotated[int | None, typer.Option("--chunk", min=1, help="Networks trained together.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps, show the estimate, and write nothing.")
    ] = False,
) -> None:
    """Train many small networks into a data set.

    Example: alignkit zoo mlps --widths 128,128,128 --source mnist --data DATA --count 1000

    The folder gets the weights, stacked in safetensors files, and manifest.json: the settings, the splits, and loss and
    accuracy of every network. Started again with the same settings, the command resumes after the last whole file.
    """
    shares = numbers("--splits", splits, float)
    if len(shares) != 3:
        raise UsageError(f"--splits {splits}: give three shares, such as 0.8,0.1,0.1.")
    plan = alignkit.zoo.plan_set(
        networks.architecture, learning.source, count, recipe=recipe.recipe, seed=seed, shard=shard, shares=shares
    )
    alignkit.checkpoints.check_writable(output)
    if dry_run:
        estimate = alignkit.zoo.estimate_set(output, plan, data=learning.data, device=device, chunk=chunk)
        telling.show(estimate.explain())
        return
    counted = TextColumn("{task.completed:.0f} of {task.total:.0f} networks")
    bars = telling.bar(counted, TimeElapsedColumn(), TimeRemainingColumn(), total=count, start="training")
    before = _count_networks(output)
    with saying_what_is_there(lambda: _what_is_there(output, count)), bars as update:

        def report(trained: float, total: int) -> None:
            update(completed=trained, total=total)

        written = alignkit.zoo.write_set(output, plan, data=learning.data, device=device, chunk=chunk, progress=report)
    telling.say(("All were there already.\n" if before == count else "") + written.explain())


def _what_is_there(folder: Path, count: int) -> str:
    """Say what an interrupted run has written."""
    done = _count_networks(folder)
    if done is None:
        return "Nothing was written."
    return f"{done} of {count} networks are in {folder}. The same command goes on there."


def _count_networks(folder: Path) -> int | None:
    """Count the networks in a folder; None where there is no data set yet."""
    try:
        return len(alignkit.zoo.read_manifest(folder).networks)
    except AlignkitError:
        return None
