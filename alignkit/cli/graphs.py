"""What commands on weights share: the graph, the switches that describe it, and printing."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from torch import Tensor, nn

from alignkit.cli.check import load_weights
from alignkit.cli.inputs import read_spec
from alignkit.cli.trace import look_in_this_folder
from alignkit.errors import UsageError
from alignkit.graph import PermutationGraph
from alignkit.sources import load_model
from alignkit.trace import trace
from alignkit.verify import Verification, verify

SpecSwitch: TypeAlias = Annotated[
    Path | None, typer.Option("--spec", help="JSON: the layout of each tensor, {name: notation}.", show_default=False)
]
ModelSwitch: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model", help="The architecture, traced: torchvision:resnet18, or package.module:factory.", show_default=False
    ),
]
SolverSwitch: TypeAlias = Annotated[str, typer.Option("--solver", help='A name, or a chain: "first > second".')]
OptionSwitch: TypeAlias = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the solver; repeatable.")
]
SeedSwitch: TypeAlias = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]
DeviceSwitch: TypeAlias = Annotated[
    str | None, typer.Option("--device", help="Where solvers work: cpu, cuda, ...", show_default=False)
]
JsonSwitch: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ForceSwitch: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]


@dataclass(frozen=True)
class Described:
    """A graph, and the model with an example call where there is one."""

    graph: PermutationGraph
    module: nn.Module | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    def function_check(self, weights: Mapping[str, Tensor], path: Path) -> Verification | None:
        """Prove that reordering units leaves the function of the model with these weights as it is.

        Returns:
            What was measured; None where there is only a spec, which cannot be run.

        Raises:
            VerificationError: The function changes; the message names the groups.
            ShapeMismatchError: The weights do not fit the model.
        """
        if self.module is None:
            return None
        return verify(self.graph, self.with_weights(weights, path), *self.args, **(self.kwargs or {}))

    def with_weights(self, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
        """A copy of the model with these weights.

        Raises:
            UsageError: There is only a spec.
            ShapeMismatchError: The weights do not fit the model.
        """
        if self.module is None:
            raise UsageError("this runs the networks, which a spec cannot do: say --model SOURCE:NAME.")
        module = copy.deepcopy(self.module)
        load_weights(module, weights, str(path))
        return module


def described(spec: Path | None, model: str | None, like: Mapping[str, Tensor]) -> Described:
    """The graph that ``--spec`` writes down or that a trace of ``--model`` finds.

    Raises:
        UsageError: Both switches are given, or neither.
    """
    if (spec is None) == (model is None):
        raise UsageError("say what the architecture is: either --spec spec.json, or --model torchvision:resnet18.")
    if spec is not None:
        return Described(PermutationGraph.from_spec(read_spec(spec), like=like))
    assert model is not None
    look_in_this_folder()
    module, args, kwargs = load_model(model)
    return Described(trace(module, *args, **kwargs), module, args, kwargs)


def said_of(check: Verification | None) -> str:
    """One line about the function check."""
    if check is None:
        return "Function check: not done, a spec cannot be run. With --model the function is checked."
    return (
        f"Function check: {check.draws} random reorderings change the outputs by at most {check.error:.1g} of their "
        f"size (tolerance {check.tolerance:.0e}, {check.dtype})."
    )


def print_text(*lines: str) -> None:
    """Print lines as they are, without markup or line breaks of their own."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in lines:
        console.print(line)


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(values, indent=2, allow_nan=False))
