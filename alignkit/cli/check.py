"""``alignkit check``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from alignkit.cli.graphs import (
    Input,
    described,
    load_weights,
    open_input,
    print_json,
    print_text,
    show_plan,
    write_report,
)
from alignkit.cli.inputs import check_report, look_in_this_folder, read_spec
from alignkit.cli.switches import ArchitectureSwitches, Shown, command
from alignkit.cli.trace import MODEL_HELP
from alignkit.errors import UsageError, VerificationError
from alignkit.graph import SymmetryGraph
from alignkit.graph.proof.equivalence import Equivalence, same_function
from alignkit.graph.proof.perturb import perturbed
from alignkit.graph.proof.verify import Verification, verify
from alignkit.jobs.distance import distance
from alignkit.jobs.estimate import plan
from alignkit.models.building import Example
from alignkit.models.sources import load_model
from alignkit.reports import check_report as report_on
from alignkit.tracing import trace


@command
def check(
    model: Annotated[
        str, typer.Argument(help=MODEL_HELP + " Or a folder with config.json and weights.", show_default=False)
    ],
    shown: Shown,
    checkpoint: Annotated[Path | None, typer.Argument(help="Weights: a file or a folder.", show_default=False)] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Other weights, that have to compute the same as the checkpoint."),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="JSON layouts to check instead of those that a trace finds.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=1, help="How many random symmetries are applied.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the symmetries and of the noise.")] = 0,
) -> None:
    """Prove that reordering the units of a model leaves its function as it is.

    Example: [bold]alignkit check torchvision:resnet18[/bold]

    Random symmetries are applied to the weights and the outputs compared, in float64 where the model runs in it: once
    with noise on norms, running statistics, gates and biases, since freshly initialised ones hide mistakes, and once
    with the weights of the checkpoint as they are. With --against two checkpoints are run instead: is my permuted
    model still my model? Exit code 0 if all outputs stay the same, 1 if not: the message names the groups and their
    tensors.
    """
    check_report(shown.report, shown.force)
    look_in_this_folder()
    given = _given(model, checkpoint)
    if against is not None and given is None:
        raise UsageError("--against compares two checkpoints: name the first one after the model.")
    name = model
    if ":" not in model and given is not None and given.is_folder:
        name = described(ArchitectureSwitches(), given, read=False).model or model
    module, args, kwargs = load_model(name)
    example: Example = (module, args, kwargs)
    if any(p.device.type == "meta" for p in module.parameters()):
        raise UsageError(f"{model} is too large to be given weights here. Check a configuration with fewer layers.")
    layouts = None if spec is None else read_spec(spec)
    graph = SymmetryGraph.from_spec(layouts, like=module) if layouts else trace(module, *args, **kwargs)
    inputs = [*([given] if given else []), *([open_input(against)] if against else [])]
    if shown.dry_run:
        reads = [str(one.path) for one in inputs]
        show_plan(plan(graph, "check", models=max(1, len(inputs)), solver=None, reads=reads), shown)
        return
    if against is not None:
        _compare(graph, example, inputs, shown)
        return
    kinds = {"perturbed weights": perturbed(module, seed)}
    if given is not None:
        kinds["the checkpoint's weights"] = _loaded(module, given)
        kinds["perturbed weights"] = perturbed(kinds["the checkpoint's weights"], seed)
    proofs = {kind: verify(graph, weighed, *args, draws=draws, seed=seed, **kwargs) for kind, weighed in kinds.items()}
    _tell(graph, proofs, model, given, shown)


def _given(model: str, checkpoint: Path | None) -> Input | None:
    """The checkpoint; the model itself where that is a folder."""
    if checkpoint is not None:
        return open_input(checkpoint)
    return open_input(Path(model)) if ":" not in model and Path(model).is_dir() else None


def _loaded(module: nn.Module, given: Input) -> nn.Module:
    """A copy of the model with the weights of a checkpoint; what a folder has beyond the model is left out."""
    copied = copy.deepcopy(module)
    own = module.state_dict()
    weights = {n: t for n, t in given.weights.items() if n in own or not given.is_folder}
    load_weights(copied, weights, str(given.path))
    return copied


def _tell(graph: SymmetryGraph, proofs: dict[str, Verification], model: str, given: Input | None, shown: Shown) -> None:
    facts = {"model": model, "checkpoint": str(given.path) if given else "none"}
    written = write_report(report_on(graph, proofs, f"Check of {model}", facts), shown) if shown.report else []
    if shown.as_json:
        rows = {kind: {**vars(proof), "passed": True} for kind, proof in proofs.items()}
        print_json({"model": model, "groups": len(graph.groups), "log10_order": graph.log10_order, "checks": rows})
        return
    for kind, proof in proofs.items():
        print_text(
            f"Passed with {kind}: {proof.draws} random symmetries change the outputs by at most {proof.error:.1g} of "
            f"their size (tolerance {proof.tolerance:.0e}, {proof.dtype})."
        )
    print_text(f"{len(graph.groups)} groups, 10^{graph.log10_order:.1f} symmetries.", *written)


def _compare(graph: SymmetryGraph, example: Example, inputs: list[Input], shown: Shown) -> None:
    """Hold two checkpoints against each other.

    Raises:
        VerificationError: They compute different things; the tensor that differs most, once aligned, is named.
    """
    if shown.report is not None:
        raise UsageError("--against has no report: alignkit distance --report shows two checkpoints in full.")
    module, args, kwargs = example
    first, second = (_loaded(module, one) for one in inputs)
    found: Equivalence = same_function(first, second, *args, **kwargs)
    apart = distance(graph, first, second)
    facts = {
        "same_function": found.same,
        "error": found.error,
        "tolerance": found.tolerance,
        "same_up_to_permutation": apart.same,
        "differs": apart.differs,
    }
    a, b = (one.path for one in inputs)
    if shown.as_json:
        print_json({"a": str(a), "b": str(b), **facts})
    measured = f"outputs differ by {found.error:.2g} of their size, tolerance {found.tolerance:.0e} in {found.dtype}"
    where = "units reordered, every tensor" if apart.same else f"not the same up to order, most in {apart.differs}"
    if not found.same:
        said = (
            f"its units are those of {a} in another order that the model does not allow"
            if apart.same
            else (f"after alignment the tensor that differs most is {apart.differs!r}")
        )
        raise VerificationError(f"{b} does not compute what {a} does: {measured}; {said}.")
    if not shown.as_json:
        print_text(f"Passed: {b} computes what {a} does ({measured}). Weights: {where}.")
