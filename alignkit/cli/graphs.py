"""What commands on weights share: the checkpoints, the graph, the function check, and printing."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from torch import Tensor, nn

from alignkit.checkpoints import Checkpoint, open_checkpoint, write_checkpoint
from alignkit.checkpoints.shard import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES
from alignkit.checkpoints.weights import read_weights, write_weights
from alignkit.cli.inputs import look_in_this_folder, read_spec
from alignkit.cli.switches import ArchitectureSwitches, Shown
from alignkit.errors import BindError, ShapeMismatchError, UsageError
from alignkit.graph import SymmetryGraph
from alignkit.graph.proof.verify import Verification, verify
from alignkit.jobs.estimate import Estimate
from alignkit.models.building import Example
from alignkit.models.folders import source_of
from alignkit.models.sources import load_model
from alignkit.reports import Report
from alignkit.text import did_you_mean, list_some
from alignkit.tracing import trace


@dataclass(frozen=True)
class Input:
    """A checkpoint that was named on the command line.

    Attributes:
        path: As it was given.
        checkpoint: Names, shapes and files; values are read when they are asked for.
    """

    path: Path
    checkpoint: Checkpoint

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """All tensors, in memory."""
        return read_weights(self.path)

    @property
    def is_folder(self) -> bool:
        """Whether an output like it is a folder."""
        return self.checkpoint.folder is not None

    def write_like(self, output: Path, weights: Mapping[str, Tensor], force: bool) -> None:
        """Write weights in the form of this checkpoint, or of the suffix of the output where that is another one.

        Tensors of the checkpoint that ``weights`` lacks are written as they are in it.

        Raises:
            WeightsError: The output cannot be written.
        """
        own, kind = self.checkpoint, _family(output)
        if kind == (None if own.folder is not None else _family(own.shards[0].path)):
            write_checkpoint(
                output,
                own,
                lambda name: weights[name].to(own.entry(name).dtype) if name in weights else own[name],
                overwrite=force,
            )
        else:
            write_weights(output, {name: weights.get(name, self.weights[name]) for name in own}, {"format": "pt"})


def open_input(path: Path) -> Input:
    """Open a file or folder.

    Raises:
        WeightsError: It cannot be read as a checkpoint.
    """
    return Input(path, open_checkpoint(path))


def is_folder(path: Path) -> bool:
    """Whether a name on the command line is a folder, or the index of one."""
    return path.is_dir() or path.name.endswith(".index.json")


@dataclass(frozen=True)
class Described:
    """A graph, and what to build the model from where that is known.

    Attributes:
        graph: The graph.
        model: Name of the model, as `alignkit.models.sources.load_model` takes it; None where there is only a spec.
        unknown: Tensors of the checkpoint that the model does not have. They stay as they are.
    """

    graph: SymmetryGraph
    model: str | None = None
    unknown: tuple[str, ...] = ()

    @cached_property
    def example(self) -> Example | None:
        """The model with random weights and an example call; None where there is none, or it is too large for weights.

        Raises:
            ModelSourceError: It cannot be built.
        """
        if self.model is None:
            return None
        found = load_model(self.model)
        return None if any(p.is_meta for p in found[0].parameters()) else found

    def known(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights without the tensors that the model does not have."""
        return {name: tensor for name, tensor in weights.items() if name not in self.unknown}

    def function_check(self, weights: Mapping[str, Tensor], path: Path) -> Verification | None:
        """Prove that reordering units leaves the function of the model with these weights as it is.

        Returns:
            What was measured; None where there is only a spec, which cannot be run, or the model is too large.

        Raises:
            VerificationError: The function changes; the message names the groups.
            ShapeMismatchError: The weights do not fit the model.
        """
        if self.example is None:
            return None
        return verify(self.graph, self.with_weights(weights, path), *self.example[1], **self.example[2])

    def with_weights(self, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
        """A copy of the model with these weights.

        Raises:
            UsageError: There is only a spec.
            ShapeMismatchError: The weights do not fit the model.
        """
        if self.example is None:
            raise UsageError("this runs the networks, which a spec cannot do: say --model SOURCE:NAME.")
        module = copy.deepcopy(self.example[0])
        load_weights(module, self.known(weights), str(path))
        return module


def described(architecture: ArchitectureSwitches, like: Input, *, read: bool = True) -> Described:
    """The graph that ``--spec`` writes down, or that a trace of ``--model`` or of the folder's config finds.

    Args:
        architecture: The switches.
        like: The checkpoint whose layouts are wanted.
        read: Whether its tensors may be read; ties between tensors of a ``.pt`` file are seen only then.

    Raises:
        UsageError: Both switches are given, or neither and there is no config that tells.
        BindError: Only names and shapes are looked at, and they do not fit.
    """
    spec, model = architecture.spec, architecture.model
    if spec is not None and model is not None:
        raise UsageError("say what the architecture is once: --spec or --model, not both.")
    if spec is not None:
        shapes = like.weights if read else like.checkpoint.shapes
        return Described(SymmetryGraph.from_spec(read_spec(spec), like=shapes))
    config = like.checkpoint.config
    text = model if model is not None or config is None else source_of(config)
    if text is None:
        raise UsageError(
            "say what the architecture is: either --spec spec.json, or --model torchvision:resnet18."
            + ("" if config is None else f" {config} names no model of transformers, diffusers or timm.")
        )
    look_in_this_folder()
    module, args, kwargs = load_model(text, bare=True)
    graph = trace(module, *args, **kwargs)
    unknown: tuple[str, ...] = ()
    if model is None:  # real folders hold tensors that their model never reads, such as position ids
        unknown = tuple(name for name in like.checkpoint if name not in graph.first_names)
    return Described(graph, text, unknown)


def check_fit(facts: Described, inputs: Sequence[Input]) -> None:
    """Hold names and shapes of checkpoints against the graph; no values are read.

    Raises:
        BindError: They do not fit; every mismatch is listed.
    """
    problems: list[str] = []
    known = {*facts.graph.first_names, *facts.unknown}
    for given in inputs:
        shapes = given.checkpoint.shapes
        problems += [f"{n!r} of {given.path} is not in the graph" for n in shapes if n not in known]
        for node in facts.graph.tensors.values():
            present = [name for name in node.names if name in shapes]
            if not present:
                problems.append(f"{node.name!r} is missing in {given.path}")
            problems += [
                f"{name!r} has shape {shapes[name]} in {given.path}, the graph says {node.shape}"
                for name in present
                if shapes[name] != node.shape
            ]
    if problems:
        listed = "\n".join(f"  - {text}" for text in problems)
        raise BindError(f"the checkpoints do not fit the graph, {len(problems)} problems:\n{listed}")


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """Put the tensors of a checkpoint into a model.

    Raises:
        ShapeMismatchError: A tensor of the model is missing or has another shape, or one is left over.
    """
    own = module.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(own.items())}
    there = {first[id(own[name])] for name in weights if name in own}
    missing = [n for n, t in own.items() if first[id(t)] == n and n not in there]
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


# ---------------------------------------------------------------------- what is printed and written


def said_of(check: Verification | None) -> str:
    """One line about the function check."""
    if check is None:
        return "Function check: not done, a spec cannot be run. With --model the function is checked."
    return (
        f"Function check: {check.draws} random reorderings change the outputs by at most {check.error:.1g} of their "
        f"size (tolerance {check.tolerance:.0e}, {check.dtype})."
    )


def said_of_unknown(facts: Described) -> list[str]:
    """A line about tensors that the model does not have, if there are any."""
    if not facts.unknown:
        return []
    return [f"Not part of the model, kept as they are in the first input: {list_some(facts.unknown, 5)}."]


def show_plan(made: Estimate, shown: Shown) -> None:
    """Print a plan, as text or JSON."""
    if shown.as_json:
        print_json(made.to_dict())
    else:
        print_text(str(made))


def write_report(report: Report, shown: Shown) -> list[str]:
    """Write a report where ``--report`` says; returns the line that tells of it.

    Raises:
        WeightsError: It cannot be written.
    """
    assert shown.report is not None
    report.write(shown.report)
    return [f"Report: {shown.report}"]


def print_text(*lines: str) -> None:
    """Print lines as they are, without markup or line breaks of their own."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in lines:
        console.print(line)


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(values, indent=2, allow_nan=False))


def _family(path: Path) -> str | None:
    """The kind of a weights file by its suffix; None for a folder."""
    if path.suffix in SAFETENSORS_SUFFIXES:
        return "safetensors"
    return "pickle" if path.suffix in PICKLE_SUFFIXES else None
