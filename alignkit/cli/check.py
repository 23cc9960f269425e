"""``alignkit check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import alignkit
from alignkit.cli import switches
from alignkit.cli.runner import Runner
from alignkit.errors import UsageError, VerificationError


@switches.command
def check(
    model: Annotated[str, typer.Argument(help=switches.MODEL_HELP + " Or a folder with config.json and weights.")],
    kinds: switches.SymmetrySwitches,
    job: switches.JobSwitches,
    checkpoint: Annotated[Path | None, typer.Argument(help="Weights: a file or a folder.")] = None,
    against: Annotated[Path | None, typer.Option("--against", help="Weights that have to compute the same.")] = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="JSON layouts to check instead of a trace.")] = None,
    outputs: switches.OutputsSwitch = None,
    allow_missing: switches.MissingSwitch = None,
    draws: Annotated[int, typer.Option("--draws", min=1, help="How many random symmetries are applied.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the symmetries and of the noise.")] = 0,
) -> None:
    """Prove that reordering units keeps what a model computes.

    Example: alignkit check torchvision:resnet18

    Random symmetries are applied to the weights and the outputs compared, in float64 where the model runs in it: once
    with noise on norms, running statistics, gates and biases, since freshly initialised ones hide mistakes, and once
    with the weights as they are. With --symmetries all signs, scales and rotations are proved as well, on weights that
    were folded for them. With --against two checkpoints are run instead: is my permuted model still my model? Exit code
    0 if all outputs stay the same, 1 if not: the message names the groups and their tensors.
    """
    if spec is not None and kinds.symmetries == "all":
        raise UsageError("--spec brings layouts, so that --symmetries has nothing to find. Marks in a spec say kinds.")
    folder = alignkit.jobs.is_folder_or_id(model)
    first = checkpoint or (Path(model) if folder else None)
    if against is not None and first is None:
        raise UsageError("--against compares two checkpoints: name the first one after the model.")
    with Runner("check", job, {}) as run:
        paths = [path for path in (first, against) if path is not None]
        architecture = switches.ArchitectureSwitches(
            model=None if folder else model, outputs=outputs, allow_missing=allow_missing
        )
        files = run.open(paths, architecture, kinds)
        for path, lacks in zip(paths, files.missing, strict=True) if against is not None else ():
            if lacks:
                raise UsageError(f"--against compares what two networks compute, and {path} lacks {lacks[0]!r}.")
        if files.example is None:
            raise UsageError(f"{model} is too large to be given weights here. Check one with fewer layers.")
        module, args, kwargs = files.example
        graph = files.graph
        if spec is not None:
            counted = alignkit.graph.Provenance(outputs=tuple(outputs or ()))
            written = alignkit.jobs.read_spec_or_graph(spec)
            if isinstance(written, dict):
                written = alignkit.SymmetryGraph.from_spec(written, like=module, provenance=counted)
            graph = written
        named = {"model": model, "checkpoint": first, "against": against}
        if against is None:
            own = module if first is None else files.given_module(0)
            checked = alignkit.check(own, *args, graph=graph, draws=draws, seed=seed, **kwargs)
            run.finish(checked, f"Check of {model}", files, named=named)
            return
        names = (str(first), str(against))
        sides = files.given_module(0), files.given_module(1)
        sameness = alignkit.jobs.check_same(graph, *sides, *args, names=names, **kwargs)
        run.finish(sameness, f"{against} against {first}", files, named=named)
    if not sameness.same:
        raise VerificationError(f"{against} does not compute what {first} does.")
