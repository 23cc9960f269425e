"""Switches that several commands share, as groups: a command names a group once and gets it as one value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_type_hints

import typer

from alignkit.cli.inputs import parse_options
from alignkit.errors import UsageError

OptionSwitch: TypeAlias = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the solver; repeatable.")
]
DeviceSwitch: TypeAlias = Annotated[
    str | None, typer.Option("--device", help="Where solvers work: cpu, cuda, ...", show_default=False)
]
TaskSwitch: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--task", help="Data and loss: package.module:function, which returns an alignkit.Task.", show_default=False
    ),
]


@dataclass(frozen=True)
class ArchitectureSwitches:
    """How the layouts of the tensors are known. Folders with a ``config.json`` need neither switch."""

    spec: Annotated[
        Path | None,
        typer.Option("--spec", help="JSON: the layout of each tensor, {name: notation}.", show_default=False),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The architecture, traced: torchvision:resnet18, or package.module:factory. Folders of transformers, "
            "diffusers and timm say it themselves.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class Solving:
    """Which solver runs, and how."""

    solver: Annotated[str, typer.Option("--solver", help='A name, or a chain: "first > second".')] = "weight_matching"
    option: OptionSwitch = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")] = 0
    device: DeviceSwitch = None

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The options of the solver as keyword arguments.

        Raises:
            UsageError: One is not KEY=VALUE, or comes twice.
        """
        return parse_options(self.option or [])

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `alignkit.solve`."""
        return {"solver": self.solver, "seed": self.seed, "device": self.device, **self.options}


@dataclass(frozen=True)
class Shown:
    """What is printed and written beside the result."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan (groups, tensors, memory, time) and do nothing.")
    ] = False
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Where a report with pictures is written: .html or .md.", show_default=False),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of switches: each parameter of such a type becomes the switches in it.

    Raises:
        UsageError: Two groups have a switch of one name.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kind = parameter.annotation
        assert isinstance(kind, type)
        groups[parameter.name] = kind
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in fields(kind)
        ]
    names = [parameter.name for parameter in parameters]
    if len(set(names)) < len(names):
        raise UsageError(f"the command {function.__name__!r} has two switches of one name: {', '.join(names)}.")

    @functools.wraps(function)
    def spread(**given: Any) -> None:
        made = {
            name: kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name in given})
            for name, kind in groups.items()
        }
        function(**given, **made)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread
