"""``alignkit widen``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.runner import Runner, look_in_this_folder
from alignkit.errors import UsageError


@switches.command
def widen(
    network: Annotated[Path, typer.Argument(help="The narrow network: a weights file or a folder.")],
    like: Annotated[Path, typer.Argument(help="A network of the wider architecture; its weights do not matter.")],
    output: switches.OutputSwitch,
    architecture: switches.ArchitectureSwitches,
    job: switches.JobSwitches,
    narrow_model: Annotated[
        str | None,
        typer.Option("--narrow-model", help="The architecture of the narrow network, where --model is the wider one."),
    ] = None,
) -> None:
    """Write a network in the shapes of a wider one; it computes the same.

    Example: alignkit widen small large -o widened

    Units are copied, or mapped where they rotate, so that norms and softmaxes see what they saw. Then the network can
    be aligned and merged with networks of that width: alignkit merge large widened --symmetries all -o merged. Both
    networks have the same layers. Files appear whole or not at all, and none is replaced without --force.
    """
    with Runner("widen", job, {"--output": output}, like=like) as run:
        look_in_this_folder()
        every = switches.SymmetrySwitches("all")
        wider = run.open([like], architecture, every, balance=False)
        narrow = alignkit.open_networks(
            network,
            model=narrow_model,
            outputs=architecture.outputs or (),
            key=architecture.key,
            prefix=architecture.prefix,
            symmetries="all",
            download=architecture.allow_download,
        )
        example, target = narrow.own_example(0), wider.own_example(0)
        if example is None or target is None:
            raise UsageError("widen runs both networks, which a spec cannot do: say --model and --narrow-model.")
        small, large = narrow.given_module(0), wider.given_module(0)
        widened = alignkit.widen(small, narrow.graph, large, wider.graph, *example[1], **example[2])
        card = alignkit.jobs.model_card(
            alignkit.jobs.card_sources(narrow),
            output,
            f"`{network}` in the shapes of `{like}`. It computes what `{network}` computes.",
            ["the narrow network"],
            {},
            widened.explain(),
        )
        files = replace(wider, tokenizer=narrow.checkpoints[0].folder)
        with run.file_set.collecting():
            record = run.record(files, widened, more=[network])
            files.write(output, widened.network, like=0, overwrite=job.force, record=record, card=card)
        run.finish(widened, f"{network} widened", wider, named={"network": network, "like": like, "output": output})
