"""Switches that several commands share, as groups: a command names a group once and gets it as one value."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_type_hints

import typer
from typer.models import ArgumentInfo

from alignkit.cli.telling import TellingSwitches
from alignkit.cli.values import one_of, solver_options
from alignkit.errors import UsageError

OptionSwitch: TypeAlias = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the solver; repeatable.")
]
DeviceSwitch: TypeAlias = Annotated[str | None, typer.Option("--device", help="Where solvers work: cpu, cuda, ...")]
TaskSwitch: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="Data and loss: package.module:function that returns a Task, a table of inputs and targets (.csv, .npz, "
        ".safetensors, .pt ...), a folder of arrays, images, idx files or texts, a data set of the library datasets "
        "or a .txt or .md file.",
    ),
]
DtypeSwitch: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="What is written: float32, float16, bfloat16, ... Default: as the checkpoint that the result is like.",
    ),
]
MemorySwitch: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="AMOUNT",
        help="Keep checkpoints on disk and use at most this, such as 2GB.",
    ),
]
MissingSwitch: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-missing",
        metavar="PATTERN",
        help="Tensors that a checkpoint may lack, such as head.*; repeatable. Averages take them from those that have "
        "them.",
    ),
]
ResumeSwitch: TypeAlias = Annotated[
    Path | None,
    typer.Option("--resume", help="JSON lines: solves are kept here while they are made, and resumed from."),
]
SaveAlignmentSwitch: TypeAlias = Annotated[
    Path | None, typer.Option("--save-alignment", help="Where the alignment is saved.")
]
OutputSwitch: TypeAlias = Annotated[Path, typer.Option("--output", "-o", help="Where the result is written.")]
OutputFolderSwitch: TypeAlias = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
ModelsArgument: TypeAlias = Annotated[
    list[Path], typer.Argument(help="Two or more checkpoints, files or folders; the first is the reference.")
]
OutputsSwitch: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--outputs",
        metavar="NAME",
        help="An output of the model that counts, such as logits; repeatable. Without it all of them do.",
    ),
]
ReferenceArgument: TypeAlias = Annotated[Path, typer.Argument(help="Reference: a weights file or a folder.")]
MODEL_HELP = (
    "torchvision:NAME, timm:NAME, transformers:FOLDER or config.json, or package.module:factory (a function that "
    "returns a model, or a model and its example inputs)."
)


@dataclass(frozen=True)
class ArchitectureSwitches:
    """How the layouts of the tensors are known. Folders with a ``config.json`` need neither switch."""

    spec: Annotated[Path | None, typer.Option("--spec", help="JSON: the layout of each tensor.")] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The architecture, traced: torchvision:resnet18, or package.module:factory. Folders of transformers, "
            "diffusers and timm say it themselves.",
        ),
    ] = None
    ignore_config: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-config",
            metavar="FIELD",
            help="A field of config.json that may differ between folders; repeatable.",
        ),
    ] = None
    outputs: OutputsSwitch = None
    key: Annotated[
        str | None,
        typer.Option(
            "--key", help="Where the state dict is in files of torch.save that hold more: state_dict_ema, ema.model."
        ),
    ] = None
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            help="What stands before the names of the model's tensors, such as model. A prefix that all have is found.",
        ),
    ] = None
    allow_download: Annotated[
        bool,
        typer.Option("--allow-download", help="Download models OWNER/NAME of the Hugging Face hub if need be."),
    ] = False
    allow_missing: MissingSwitch = None


@dataclass(frozen=True)
class SymmetrySwitches:
    """Which symmetries are looked for."""

    symmetries: Annotated[
        str,
        typer.Option(
            "--symmetries",
            help="permutation; or all: networks are folded first, and signs, scales and rotations count as well.",
        ),
    ] = "permutation"
    keep_tied: Annotated[
        bool, typer.Option("--keep-tied", help="Leave a head tied to the embedding, and the last gain in its norm.")
    ] = False

    def check(self) -> None:
        """Refuse other names, and what does not go with them."""
        one_of("--symmetries", self.symmetries, ("permutation", "all"))
        if self.keep_tied and self.symmetries == "permutation":
            raise UsageError("--keep-tied goes with --symmetries all: for permutations heads stay as they are anyway.")


@dataclass(frozen=True)
class SolverSwitches:
    """Which solver runs, and how."""

    solver: Annotated[str, typer.Option("--solver", help='A name, or a chain: "first > second".')] = "weight_matching"
    option: OptionSwitch = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")] = 0
    device: DeviceSwitch = None

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The options of the solver as keyword arguments."""
        return solver_options(self.option)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `alignkit.solve`."""
        return {"solver": self.solver, "seed": self.seed, "device": self.device, **self.options}


def check_memory(memory: str | None, others: Mapping[str, bool]) -> None:
    """Refuse ``--memory`` beside ``others``, switches that were given or not, which need whole networks."""
    if memory is not None and (wanted := [switch for switch, given in others.items() if given]):
        raise UsageError(f"--memory does not go with {', '.join(wanted)}, which needs whole networks in memory.")


@dataclass(frozen=True)
class TaskSwitches:
    """What the result is measured on, and what is done to it there."""

    task: TaskSwitch = None
    reset_batchnorm: Annotated[
        bool,
        typer.Option(
            "--reset-batchnorm/--no-reset-batchnorm",
            help="Recompute running statistics, such as those of BatchNorm, on the inputs of --task.",
        ),
    ] = True
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair all channels of the result on the inputs of --task instead.")
    ] = False

    def check(self) -> None:
        """Refuse `repair` without data."""
        if self.repair and self.task is None:
            raise UsageError("--repair runs the networks on data: say --task package.module:function.")


@dataclass(frozen=True)
class JobSwitches(TellingSwitches):
    """What every job command can do beside its job."""

    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the estimate and do nothing.")] = False
    report: Annotated[Path | None, typer.Option("--report", help="Write a report: .html or .md.")] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False
    given: Mapping[str, Any] = field(default_factory=dict, metadata={"is_switch": False})
    """The arguments and switches that were given, by name; those of defaults are left out."""


def deciding(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keep those of the given switches that decide what comes out: not how it is told, and not where a run goes on."""
    others = {f.name for f in switches_of(JobSwitches)} | {"recipe", "resume"}
    return {name: value for name, value in given.items() if name not in others}


def switches_of(kind: type[Any]) -> list[Field[Any]]:
    """List the fields of a group that are switches."""
    return [f for f in fields(kind) if f.metadata.get("is_switch", True)]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _in_capitals(name: str, annotation: Any) -> Any:
    """Let usage lines call an argument by its name in capitals, as everybody writes them."""
    facts = getattr(annotation, "__metadata__", ())
    if not facts or not isinstance(facts[0], ArgumentInfo) or facts[0].metavar is not None:
        return annotation
    info = copy.copy(facts[0])
    info.metavar = name.upper()
    return Annotated[annotation.__origin__, info]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of switches: each parameter of such a type becomes the switches in it."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not (isinstance(kind, type) and is_dataclass(kind)):
            kind = _in_capitals(parameter.name, kind)
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))
            continue
        groups[parameter.name] = kind
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in switches_of(kind)
        ]

    names = [parameter.name for parameter in parameters]
    if len(set(names)) < len(names):
        raise UsageError(f"the command {function.__name__!r} has two switches of one name: {', '.join(names)}.")

    @functools.wraps(function)
    def spread(context: typer.Context | None = None, **values: Any) -> None:
        given = {name: value for name, value in values.items() if context is not None and _is_given(context, name)}
        grouped = {
            name: kind(**{f.name: values.pop(f.name) for f in switches_of(kind) if f.name in values})
            for name, kind in groups.items()
        }
        for name, group in grouped.items():
            if isinstance(group, JobSwitches):
                grouped[name] = replace(group, given=given)
        function(**values, **grouped)

    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread
