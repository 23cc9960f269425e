"""``alignkit check``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor, nn

from alignkit.cli.inputs import read_spec
from alignkit.cli.trace import MODEL_HELP, look_in_this_folder
from alignkit.errors import ShapeMismatchError, UsageError
from alignkit.graph import PermutationGraph
from alignkit.sources import load_model
from alignkit.suggest import did_you_mean
from alignkit.trace import trace
from alignkit.trace.perturb import perturbed
from alignkit.verify import Verification, verify
from alignkit.weights import read_weights


def check(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)],
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Weights: .safetensors, or a .pt state dict.", show_default=False)
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
    with the weights of the checkpoint as they are. Exit code 0 if all outputs stay the same, 1 if not: the message
    names the groups and their tensors.
    """
    look_in_this_folder()
    module, args, kwargs = load_model(model)
    if any(p.device.type == "meta" for p in module.parameters()):
        raise UsageError(f"{model} is too large to be given weights here. Check a configuration with fewer layers.")
    if checkpoint is not None:
        load_weights(module, read_weights(checkpoint), str(checkpoint))
    layouts = None if spec is None else read_spec(spec)
    graph = PermutationGraph.from_spec(layouts, like=module) if layouts else trace(module, *args, **kwargs)
    kinds = [("perturbed weights", perturbed(module, seed))]
    if checkpoint is not None:
        kinds.append(("the checkpoint's weights", module))
    for kind, weighed in kinds:
        proof = verify(graph, weighed, *args, draws=draws, seed=seed, **kwargs)
        typer.echo(f"Passed with {kind}: {_measured(proof)}.")
    typer.echo(f"{len(graph.groups)} groups, 10^{graph.log10_order:.1f} symmetries.")


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """Put the tensors of a checkpoint into a model.

    Raises:
        ShapeMismatchError: A tensor of the model is missing or has another shape, or one is left over.
    """
    own = module.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(own.items())}
    missing = [n for n, t in own.items() if n not in weights and first[id(t)] == n]
    problems = [f"it has no {name!r}" for name in missing]
    problems += [f"{n!r} is not part of the model.{did_you_mean(n, missing)}" for n in weights if n not in own]
    problems += [
        f"{name!r} has shape {list(tensor.shape)}, the model's has {list(own[name].shape)}"
        for name, tensor in weights.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ShapeMismatchError(f"{path} does not fit the model:\n  " + "\n  ".join(problems[:10]) + more)
    module.load_state_dict(dict(weights), strict=False)


def _measured(proof: Verification) -> str:
    return (
        f"{proof.draws} random symmetries change the outputs by at most {proof.error:.1g} of their size "
        f"(tolerance {proof.tolerance:.0e}, {proof.dtype})"
    )
