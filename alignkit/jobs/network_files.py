"""Checkpoints of one architecture with the graph of their symmetries: what the jobs of the command line begin with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints import (
    Checkpoint,
    Conversion,
    ConvertedCheckpoint,
    OnProgress,
    open_checkpoint,
    prefix_conversion,
    write_checkpoint,
    written_together,
)
from alignkit.checkpoints.fit import Fit, first_names
from alignkit.checkpoints.folder import CONFIG
from alignkit.checkpoints.opening import read_file
from alignkit.checkpoints.shard import as_whole, file_kind
from alignkit.checkpoints.staging import check_output, fills_folder, prepare_output, staged
from alignkit.checkpoints.weights import write_weights
from alignkit.checkpoints.writer import check_place
from alignkit.errors import BindError, ShapeMismatchError, SpecError, TraceError, UsageError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import fit_of
from alignkit.graph.module_copy import copy_module
from alignkit.graph.rewrites import under_both_names
from alignkit.graph.stored import Budget, StoredNetwork, parse_memory
from alignkit.graph.stored.opening import open_stored
from alignkit.jobs.estimate import Estimate, Job, SolverNames, estimate
from alignkit.jobs.folder_comparison import FolderWarning, compare_folders, no_architecture, refuse_lost
from alignkit.models import Example, conversion_of, load_model, untied_config
from alignkit.tracing import trace
from alignkit.tracing.tracer import Symmetries


@dataclass(frozen=True, eq=False)
class NetworkFiles:
    """Checkpoints of one architecture, the first of which is the reference.

    Names, shapes and files are known at once. Values are read when they are asked for.

    Attributes:
        paths: Files and folders, as they were given; ``checkpoints`` are the same, opened.
        model: Name of the model, as `alignkit.models.load_model` takes it; None where there is only a spec.
        unknown: Tensors of the checkpoints that the model does not have. They stay as they are.
        own_models: Names of the models of all networks, where each is run with a configuration of its own.
        notes: What differs between the folders and does not change what the weights compute, such as tokenizers.
    """

    graph: SymmetryGraph
    paths: tuple[Path, ...]
    checkpoints: tuple[Checkpoint, ...]
    model: str | None = None
    unknown: tuple[str, ...] = ()
    own_models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def weights(self) -> tuple[dict[str, Tensor], ...]:
        """The tensors of each network, in memory, without those that the model does not have."""
        networks = [checkpoint.read_all() for checkpoint in self.checkpoints]
        return tuple({name: t for name, t in tensors.items() if name not in self.unknown} for tensors in networks)

    @check_arguments
    def networks(self, memory: str | None = None) -> Sequence[Mapping[str, Tensor]]:
        """Return the networks: their tensors, or with a limit of memory networks of the graph that stay on disk."""
        if memory is None:
            return self.weights
        labelled = dict(zip(map(str, self.paths), self.checkpoints, strict=True))
        return open_stored(self.graph, labelled, Budget.of(self.graph, memory))

    @check_arguments
    def bind(self, memory: str | None = None, on_progress: OnProgress | None = None) -> Pair:
        """Bind the first network and the second to the graph, as `SymmetryGraph.bind` does."""
        a, b = self.weights if memory is None else self.checkpoints
        return self.graph.bind(a, b, memory=memory, on_progress=on_progress)

    @cached_property
    def example(self) -> Example | None:
        """The model with random weights and an example call; None where there is none, or it is too large."""
        return None if self.model is None else _with_weights(self.model)

    def own_example(self, index: int) -> Example | None:
        """Return the same for one network, with its own configuration."""
        own = self.own_models[index] if self.own_models else self.model
        return self.example if own is None or own == self.model else _with_weights(own)

    @check_arguments
    def module(self, index: int) -> nn.Module:
        """Return the model with the weights of one network.

        Raises:
            UsageError: There is only a spec, or the model is too large.
            ShapeMismatchError: The weights do not fit the model.
        """
        example = self.own_example(index)
        if example is None:
            raise UsageError("this runs the networks, which a spec cannot do: say --model SOURCE:NAME.")
        module, weights = copy_module(example[0]), self.weights[index]
        own = module.state_dict()
        names = first_names(own)
        fit = Fit({name: tuple(own[name].shape) for name in names.values()}, names, "the model")
        fit.check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, "the checkpoint")
        fit.raise_if_any(ShapeMismatchError, f"{self.paths[index]} does not fit the model")
        module.load_state_dict(weights, strict=False)
        return module

    @check_arguments
    def estimate(
        self,
        job: Job,
        *,
        solver: SolverNames = "weight_matching",
        memory: str | None = None,
        writes: Sequence[str] = (),
    ) -> Estimate:
        """Estimate by `alignkit.estimate` what a job needs, once names and shapes are held against the graph.

        Raises:
            BindError: The checkpoints do not fit the graph; every mismatch is listed.
        """
        fit = fit_of(self.graph)
        for path, checkpoint in zip(self.paths, self.checkpoints, strict=True):
            shapes = {name: shape for name, shape in checkpoint.shapes.items() if name not in self.unknown}
            fit.check_shapes(under_both_names(shapes, self.graph.folds), str(path))
        fit.raise_if_any(BindError, "the checkpoints do not fit the graph")
        reads = list(map(str, self.paths))
        count, size = len(reads), self.checkpoints[0].nbytes if self.checkpoints else None
        limit = None if memory is None else parse_memory(memory)
        return estimate(
            self.graph, job, models=count, solver=solver, memory=limit, bytes_each=size, reads=reads, writes=writes
        )

    @check_arguments
    def write(
        self,
        output: Path,
        network: nn.Module | Mapping[str, Tensor],
        *,
        like: int,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
        untied: Mapping[str, str] | None = None,
    ) -> None:
        """Write weights in the form of the checkpoint numbered ``like``, or of the output's suffix if that is another.

        Tensors get the names and pieces that the checkpoint has on disk; those that the network lacks are written as
        they are in it. With ``overwrite`` an output that exists is replaced. ``on_progress`` is called with the bytes
        written so far. Networks on disk are written in pieces, and keep the form of the checkpoint. Tensors of
        ``untied`` are no longer those beside them: both are written, and a ``config.json`` says so.

        Raises:
            WeightsError: The output cannot be written.
        """
        weights = network.state_dict() if isinstance(network, nn.Module) else network
        own = self.checkpoints[like]
        if untied:
            copies = dict((head, source) if source in own else (source, head) for head, source in untied.items())
            texts = {Path(CONFIG): untied_config(own.folder / CONFIG)} if own.folder and own.config else {}
            own = own.extended(copies, texts)
        self.check_place(output, like=like, overwrite=overwrite)
        if isinstance(network, StoredNetwork):
            write_checkpoint(output, own, network.pieces, on_progress, overwrite=overwrite)
        elif self._keeps_form(output, like):

            def tensor(name: str) -> Tensor:
                return weights[name].to(own.entry(name).dtype) if name in weights else own[name]

            write_checkpoint(output, own, tensor, on_progress, overwrite=overwrite)
        else:
            stored = own.stored_values(lambda name: weights[name] if name in weights else own[name])
            write_weights(output, {name: as_whole(stored(name)) for name in own.stored_names}, {"format": "pt"})

    def check_place(self, output: Path, *, like: int, overwrite: bool = False) -> frozenset[Path]:
        """Raise the `WeightsError` that `write` would; return the files that a folder there may hold."""
        if self._keeps_form(output, like):
            return check_place(output, self.checkpoints[like], overwrite)
        check_output(prepare_output(output), folder=False, overwrite=overwrite)
        return frozenset()

    def write_set(
        self, folder: Path, networks: Iterable[nn.Module | Mapping[str, Tensor]], *, first: int, overwrite: bool = False
    ) -> None:
        """Write networks into one folder, each in the form and under the name of its checkpoint: all of them, or none.

        They are those of the checkpoints from number ``first`` on. Other files of the folder stay.

        Raises:
            WeightsError: One of them cannot be written.
        """
        numbers = range(first, len(self.paths))
        names = [Path(self.paths[number].name) for number in numbers]
        folder = prepare_output(folder)
        replaces = self.check_set(folder, first=first, overwrite=overwrite)
        if fills_folder(folder, replaces):
            with staged(folder, folder=True, overwrite=overwrite, replaces=replaces) as temporary:
                for number, name, network in zip(numbers, names, networks, strict=True):
                    self.write(temporary / name, network, like=number)
        else:
            with written_together():
                for number, name, network in zip(numbers, names, networks, strict=True):
                    self.write(folder / name, network, like=number, overwrite=overwrite)

    def check_set(self, folder: Path, *, first: int, overwrite: bool = False) -> frozenset[Path]:
        """Raise the `WeightsError` that `write_set` would; return the paths of the files that it may replace."""
        if not folder.is_dir():
            check_output(folder, folder=True, overwrite=False)
            return frozenset()
        replaces: set[Path] = set()
        for number in range(first, len(self.paths)):
            name = self.paths[number].name
            inside = self.check_place(folder / name, like=number, overwrite=overwrite)
            replaces |= {Path(name, path) for path in inside} if inside else {Path(name)}
        return frozenset(replaces)

    def _keeps_form(self, output: Path, like: int) -> bool:
        """Whether an output by its name has the form of a checkpoint: a folder, or a file of its kind."""
        own = self.checkpoints[like]
        return file_kind(output) == (None if own.folder is not None else file_kind(own.shards[0].path))


@check_arguments
def open_networks(
    *paths: str | Path,
    spec: str | Path | None = None,
    model: str | None = None,
    read: bool = True,
    ignore_config: Sequence[str] = (),
    outputs: str | Sequence[str] = (),
    key: str | None = None,
    prefix: str | None = None,
    symmetries: Symmetries = "permutation",
    keep_tied: bool = False,
) -> NetworkFiles:
    """Open checkpoints of one architecture and find the graph of their symmetries.

    Folders of transformers, diffusers and timm say by their ``config.json`` what their architecture is. Those of all
    are compared: what changes the function of the same weights is refused, what changes the meaning of inputs and
    outputs is warned of.

    Args:
        paths: Files and folders, the first of which is the reference; none, where ``model`` says all.
        spec: JSON file with the layout of each tensor.
        model: The architecture, which is traced: ``torchvision:resnet18``, ``package.module:factory``.
        read: Whether tensors may be read for the graph; ties between tensors of a ``.pt`` file are seen only then.
        ignore_config: Fields of configurations that may differ.
        outputs: Names of the outputs of the model that count, see `alignkit.trace`.
        key: Where the state dict is in files of ``torch.save`` that hold more; see `alignkit.checkpoints`. Without it
            the usual places are looked at, and the notes tell what was read.
        prefix: What stands before the names of the model's tensors, such as ``"model."``; others are not the model's.
            Without it a prefix that all names have, or lack, is found, and the notes tell so. What is written has the
            names of the input.
        symmetries: What is traced, as `alignkit.trace` takes it; nothing is where there is a spec.
        keep_tied: Whether heads stay tied to embeddings, as `alignkit.trace` takes it.

    Raises:
        UsageError: Both ``spec`` and ``model`` are given, or neither and there is no ``config.json`` that tells; or
            ``outputs`` or ``symmetries="all"`` beside ``spec``.
        OutputError: The model has no such output.
        WeightsError: A checkpoint cannot be read.
        ModelSourceError: A configuration is not one that a model can be built from.
        BindError: Configurations differ, or only names and shapes are looked at, and they do not fit.
    """
    wanted = {"outputs": outputs, "symmetries": symmetries, "keep_tied": keep_tied}
    opened = tuple(open_checkpoint(path, key=key) for path in paths)
    locations = tuple(map(Path, paths))
    notes = [note for checkpoint in opened for note in checkpoint.notes]
    if spec is not None and model is not None:
        raise UsageError("say what the architecture is once: --spec or --model, not both.")
    if spec is not None and outputs:
        raise UsageError("--outputs says what counts while a model is traced, which a --spec is there to avoid.")
    if spec is not None and symmetries == "all":
        raise UsageError("a spec says nothing of folds, signs and rotations, which a trace finds: say --model.")
    if spec is not None:
        layouts = read_spec(spec)
        opened, told = _as_held(opened, layouts, prefix)
        unknown = _strangers(opened, layouts, prefix)
        like = opened[0].read_all() if read else opened[0].shapes
        own = {name: value for name, value in like.items() if name not in unknown}
        graph = SymmetryGraph.from_spec(layouts, like=own)  # type: ignore[arg-type]
        return NetworkFiles(graph, locations, opened, unknown=unknown, notes=(*notes, *told))
    if model is not None or not opened or opened[0].config is None:
        if model is None:
            raise no_architecture()
        module, graph = _traced(model, **wanted)
        opened, told = _as_held(opened, graph.first_names, prefix, module)
        unknown = _strangers(opened, graph.first_names, prefix)
        return NetworkFiles(graph, locations, opened, model, unknown, notes=(*notes, *told))
    own_models, differing = compare_folders(opened, ignore_config)
    module, graph = _traced(own_models[0], **wanted)
    opened, told = _as_held(opened, graph.first_names, prefix, module)
    unknown = tuple(name for name in opened[0] if name not in graph.first_names)
    refuse_lost(unknown, opened)
    for note in differing:
        warnings.warn(note, FolderWarning, stacklevel=2)
    runs_own = own_models if ignore_config else ()
    return NetworkFiles(graph, locations, opened, own_models[0], unknown, runs_own, (*notes, *told, *differing))


def _traced(model: str, **wanted: Any) -> tuple[nn.Module, SymmetryGraph]:
    """Trace a model without weights; with random ones where its code depends on values of tensors."""
    module, args, kwargs = load_model(model, bare=True)
    try:
        return module, trace(module, *args, **wanted, **kwargs)
    except TraceError:
        example = _with_weights(model)
        if example is None:
            raise
        module, args, kwargs = example
        return module, trace(module, *args, **wanted, **kwargs)


def _as_held(
    checkpoints: tuple[Checkpoint, ...], names: Collection[str], prefix: str | None, module: nn.Module | None = None
) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """Show checkpoints by the names and shapes of a model's tensors, with a note where wrappers put a prefix before.

    What the library of ``module`` makes of a checkpoint is learned once for all that store the same.
    """
    learned: dict[object, Conversion | None] = {}
    held: list[Checkpoint] = []
    notes: list[str] = []
    for checkpoint in checkpoints:
        conversion = prefix_conversion(checkpoint, names, prefix)
        if prefix is not None and not conversion.renamed:
            example = f"but for example {next(iter(checkpoint), '')!r}"
            raise BindError(f"no name of {checkpoint.path} starts with {prefix!r}, {example}.")
        plain = checkpoint
        if not conversion.changes_nothing:
            name, stored = next(iter(conversion.renamed.items()))
            notes.append(f"{checkpoint.path}: its {stored!r} is {name!r} of the model, and so on.")
            plain = ConvertedCheckpoint(checkpoint, conversion)
        if module is not None:
            facts = frozenset((name, entry.dtype, entry.shape) for name, entry in plain.entries.items())
            if facts not in learned:
                learned[facts] = conversion_of(module, plain.entries)
            if (known := learned[facts]) is not None and not known.changes_nothing:
                plain = ConvertedCheckpoint(checkpoint, known.after(conversion))
        held.append(plain)
    return tuple(held), notes


def _strangers(checkpoints: tuple[Checkpoint, ...], names: Collection[str], prefix: str | None) -> tuple[str, ...]:
    """List tensors that are not the model's, where ``prefix`` says so; otherwise all have to be."""
    return () if prefix is None else tuple(name for name in checkpoints[0] if name not in names)


def _with_weights(model: str) -> Example | None:
    """Build a model with random weights; None where it is too large for them."""
    example = load_model(model)
    return None if any(parameter.is_meta for parameter in example[0].parameters()) else example


@check_arguments
def read_spec(path: str | Path) -> dict[str, str]:
    """Read a JSON object that maps names of tensors to their notation; raise `SpecError` where there is none."""
    try:
        spec = json.loads(read_file(path))
    except OSError as error:
        raise SpecError(f"the spec {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"the spec {path} is not JSON: {error}.") from error
    if not isinstance(spec, dict) or not all(isinstance(value, str) for value in spec.values()):
        raise SpecError(f'the spec {path} has to be one JSON object of strings, such as {{"fc1.weight": "h1 ."}}.')
    return spec
