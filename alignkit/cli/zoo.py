"""``alignkit zoo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alignkit.cli.inputs import parse_options
from alignkit.errors import UsageError
from alignkit.zoo import NetworkSet, Recipe, architecture, plan_set, source, write_set
from alignkit.zoo.architectures import FAMILIES

WIDTHS_OF = {"mlp": "widths", "siren": "widths", "cnn": "channels"}
"""The field that ``--widths`` fills."""


def zoo(
    output: Annotated[Path, typer.Argument(help="Folder of the data set; a run that was cut off goes on in it.")],
    family: Annotated[str, typer.Option("--family", help=f"What is trained: {', '.join(FAMILIES)}.")] = "mlp",
    widths: Annotated[
        str | None, typer.Option("--widths", help="Hidden widths, or channels of a cnn: 128,128,128.")
    ] = None,
    learnt: Annotated[
        str, typer.Option("--source", help="What is learnt: digits, mnist, fashion-mnist, sine or image-inr.")
    ] = "digits",
    size: Annotated[int | None, typer.Option("--size", help="Pixels of a side, by pooling: 14 or 28.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the idx files, or that of folders mnist and fashion-mnist.")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Networks in all.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is random.")] = 0,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the data.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Gradient steps, in place of --epochs.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Samples of a step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Highest learning rate.")] = None,
    splits: Annotated[
        str, typer.Option("--splits", help="Shares of train, validation and test in the networks.")
    ] = "0.8,0.1,0.1",
    shard: Annotated[int, typer.Option("--shard", min=1, help="Networks in one file.")] = 64,
    device: Annotated[str | None, typer.Option("--device", help="Where to train, such as cuda.")] = None,
    chunk: Annotated[int | None, typer.Option("--chunk", min=1, help="Networks trained together.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="KEY=VALUE, a field of the family: depth=3, activation=gelu.")
    ] = None,
    source_option: Annotated[
        list[str] | None,
        typer.Option("--source-option", help="KEY=VALUE, a field of the source: rotate=45, classes=[0,1], views=5."),
    ] = None,
) -> None:
    """Train many small networks of one architecture into a data set.

    Example: [bold]alignkit zoo mlps --widths 128,128,128 --source mnist --data DATA --count 1000[/bold]

    The folder gets the weights, stacked in safetensors files, and manifest.json: the settings, the splits, and loss and
    accuracy of every network. Started again with the same settings, the command goes on after the last whole file.
    """
    fields = parse_options(option or [])
    if widths is not None:
        if family not in WIDTHS_OF:
            raise UsageError(f"--widths is for {', '.join(WIDTHS_OF)}; give the fields of {family} by --option.")
        fields[WIDTHS_OF[family]] = _numbers("--widths", widths, int)
    about = parse_options(source_option or [])
    if size is not None:
        about["size"] = size
    shares = _numbers("--splits", splits, float)
    if len(shares) != 3:
        raise UsageError(f"--splits {splits}: give three shares, such as 0.8,0.1,0.1.")
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} networks"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        job = bar.add_task("training", total=count)

        def report(done: float, total: int) -> None:
            bar.update(job, completed=done, total=total)

        given = {"epochs": epochs, "steps": steps, "batch_size": batch, "learning_rate": lr}
        plan = plan_set(
            architecture(family, **fields),
            source(learnt, **about),
            count,
            recipe=Recipe.model_validate({name: value for name, value in given.items() if value is not None}),
            seed=seed,
            shard=shard,
            shares=shares,
        )
        found = write_set(output, plan, data=data, device=device, chunk=chunk, progress=report)
    for line in summary(found):
        typer.echo(line)


def summary(found: NetworkSet) -> list[str]:
    """What a data set holds, in a few lines."""
    manifest = found.manifest
    plan, networks = manifest.plan, manifest.networks
    parts = ", ".join(f"{len(numbers)} {name}" for name, numbers in manifest.splits.items())
    losses = [network.loss for network in networks]
    right = [network.accuracy for network in networks if network.accuracy is not None]
    text = f"Test loss: mean {sum(losses) / len(losses):.3g}, worst {max(losses):.3g}."
    if right:
        text += f" Accuracy: mean {sum(right) / len(right):.4f}, worst {min(right):.4f}."
    seconds = manifest.seconds
    rate = f", {len(networks) / seconds:.2f} networks/s" if seconds > 0 else ""
    return [
        f"{len(networks)} networks: {plan.architecture.describe()} on {plan.source.describe()} ({parts})",
        text,
        f"{len(manifest.shards)} files in {found.folder}; {seconds:.1f} s of training{rate}",
    ]


def _numbers(switch: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{switch} {text}: write numbers with commas between them.") from error
