"""Opening checkpoints of one architecture: which it is, what its symmetries are, and which tensors are the model's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints import (
    Checkpoint,
    Conversion,
    ConvertedCheckpoint,
    OnProgress,
    is_hub_id,
    open_checkpoint,
    prefix_conversion,
)
from alignkit.checkpoints.dtypes import FloatDtype, read_dtype
from alignkit.checkpoints.opening import read_file
from alignkit.errors import BindError, TraceError, UsageError
from alignkit.graph import SymmetryGraph
from alignkit.jobs.folder_comparison import FolderWarning, compare_folders, no_architecture, refuse_lost
from alignkit.jobs.network_files import NetworkFiles, with_weights
from alignkit.jobs.partial import find_missing, tell_missing
from alignkit.jobs.spec_file import read_spec_or_graph
from alignkit.models import Configuration, conversion_of, load_model, tokenizer_files
from alignkit.text import did_you_mean, list_some
from alignkit.tracing import trace
from alignkit.tracing.tracer import Symmetries


@check_arguments
def is_folder_or_id(text: str) -> bool:
    """Tell whether a text names a folder or an id of the Hugging Face hub, and not ``SOURCE:NAME``."""
    return ":" not in text and (os.path.isdir(text) or is_hub_id(text))


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
    balance: bool = True,
    bases: Mapping[int, int] | None = None,
    memory: str | None = None,
    dtype: FloatDtype | None = None,
    download: bool = False,
    allow_missing: Sequence[str] = (),
    tokenizer: str | None = None,
    on_progress: OnProgress | None = None,
) -> NetworkFiles:
    """Open checkpoints of one architecture and find the graph of their symmetries.

    Folders of transformers, diffusers and timm say by their ``config.json`` what their architecture is. Those of all
    are compared: what changes the function of the same weights is refused, what changes the meaning of inputs and
    outputs is warned of.

    Args:
        paths: Files, folders and ids of the Hugging Face hub, the first of which is the reference; none, where
            ``model`` says all.
        spec: JSON file with the layout of each tensor, or with a graph as ``alignkit trace --json`` writes it.
        model: The architecture, which is traced: ``torchvision:resnet18``, ``package.module:factory``.
        read: Whether tensors may be read for the graph; ties between tensors of a ``.pt`` file are seen only then.
        ignore_config: Fields of configurations that may differ.
        outputs: Names of the outputs of the model that count, see `alignkit.trace`.
        key: Where the state dict is in files of ``torch.save`` that hold more; see `alignkit.checkpoints`. Without it
            the usual places are looked at, and the notes tell what was read.
        prefix: What stands before the names of the model's tensors, such as ``"model."``; others are not the model's.
            Without it a prefix that all names have, or lack, is found, and the notes tell so. What is written has the
            names of the input.
        symmetries: What is traced, as `alignkit.trace` takes it; nothing is where there is a spec. With ``"all"`` the
            networks are folded, see `NetworkFiles.folded`.
        keep_tied: Whether heads stay tied to embeddings, as `alignkit.trace` takes it.
        balance: Whether folded networks are balanced, as `alignkit.fold` does.
        bases: Of fine-tunes among the paths, by their numbers, the numbers of their bases, ``like`` which they are
            folded.
        memory: With a limit, such as ``"2GB"``, the networks stay on disk. They are folded a few tensors at a time
            whenever these are asked for.
        dtype: Floating-point dtype of what is written, such as ``"bfloat16"``. None: that of the checkpoint that it is
            written like.
        download: Whether models of the Hugging Face hub that its cache does not hold may be downloaded.
        allow_missing: Patterns of the names of tensors that networks may lack, such as ``"head.*"``. Zeros stand for
            them in `NetworkFiles.weights`, and nothing is written for them.
        tokenizer: Which of ``paths`` gives the tokenizer of folders that are written. None: each keeps its own.
        on_progress: Called with the bytes of networks that are read into memory and written, and as in
            `SymmetryGraph.bind`.

    Raises:
        UsageError: Both ``spec`` and ``model`` are given, or neither and there is no ``config.json`` that tells; or
            ``outputs`` or ``symmetries="all"`` beside ``spec``.
        OutputError: The model has no such output.
        WeightsError: A checkpoint cannot be read.
        ModelSourceError: A configuration is not one that a model can be built from.
        BindError: Configurations differ, or only names and shapes are looked at, and they do not fit.
    """
    wanted = {"outputs": outputs, "symmetries": symmetries, "keep_tied": keep_tied}
    opened = tuple(open_checkpoint(path, key=key, download=download) for path in paths)
    locations = tuple(map(Path, paths))
    written = None if dtype is None else read_dtype(dtype)
    outward: dict[str, Any] = {"dtype": written, "on_progress": on_progress}
    if tokenizer is not None:
        outward["tokenizer"] = _folder_of_tokenizer(tokenizer, paths, opened)
    ways: dict[str, Any] = {
        "symmetries": symmetries,
        "balance": balance,
        "bases": bases or {},
        "memory": memory,
        **outward,
    }
    notes = [note for checkpoint in opened for note in checkpoint.notes]
    if spec is not None and model is not None:
        raise UsageError("say what the architecture is once: --spec or --model, not both.")
    if spec is not None and outputs:
        raise UsageError("--outputs says what counts while a model is traced, which a --spec is there to avoid.")
    if spec is not None:
        written_graph = read_spec_or_graph(spec)
        if symmetries == "all" and (
            isinstance(written_graph, dict) or not (written_graph.folds or written_graph.balances)
        ):
            raise UsageError("a spec says nothing of folds, signs and rotations, which a trace finds: say --model.")
        names = written_graph if isinstance(written_graph, dict) else written_graph.first_names
        opened, told = _as_held(opened, names, prefix)
        unknown = _strangers(opened, names, prefix)
        if isinstance(written_graph, SymmetryGraph):
            graph = written_graph
            ways["symmetries"] = "all" if graph.folds or graph.balances else "permutation"
        else:
            like: dict[str, Any] = dict(opened[0].read_all() if read else opened[0].shapes)
            for checkpoint in opened[1:]:  # what the first network lacks
                lacked = [name for name in checkpoint if name in written_graph and name not in like]
                like |= {name: checkpoint[name] if read else checkpoint.shapes[name] for name in lacked}
            own = {name: value for name, value in like.items() if name not in unknown}
            graph = SymmetryGraph.from_spec(written_graph, like=own)
        missing = find_missing(opened, graph, allow_missing)
        notes += [*told, *tell_missing(paths, missing)]
        return NetworkFiles(graph, locations, opened, unknown=unknown, notes=tuple(notes), missing=missing, **ways)
    if model is not None or not opened or opened[0].config is None:
        if model is None:
            raise no_architecture()
        module, graph = _traced(model, **wanted)
        opened, told = _as_held(opened, graph.first_names, prefix, module)
        unknown = _strangers(opened, graph.first_names, prefix)
        ways["missing"] = find_missing(opened, graph, allow_missing)
        notes += [*told, *tell_missing(paths, ways["missing"])]
        return NetworkFiles(graph, locations, opened, model, unknown, notes=tuple(notes), **ways)
    # A head that was untied from the embedding before is what the graph of a tied one makes of it.
    unties = symmetries == "all" and not keep_tied
    own_models, differing = compare_folders(opened, ignore_config, unties=unties)
    tied = [own for own in dict.fromkeys(own_models) if unties and Configuration.read(own).ties]
    traced = (*tied, *own_models)[0]
    module, graph = _traced(traced, **wanted)
    opened, told = _as_held(opened, graph.first_names, prefix, module)
    unknown = tuple(name for name in opened[0] if name not in graph.first_names)
    refuse_lost(unknown, opened)
    for note in differing:
        warnings.warn(note, FolderWarning, stacklevel=2)
    configurations = {read_file(checkpoint.config) for checkpoint in opened if checkpoint.config is not None}
    ways["missing"] = find_missing(opened, graph, allow_missing)
    told += tell_missing(paths, ways["missing"])
    runs_own = own_models if (ignore_config or unties) and len(configurations) > 1 else ()
    return NetworkFiles(graph, locations, opened, traced, unknown, runs_own, (*notes, *told, *differing), **ways)


def _folder_of_tokenizer(wanted: str, paths: Sequence[str | Path], opened: Sequence[Checkpoint]) -> Path:
    """Return the folder of the network whose tokenizer is wanted.

    Raises:
        UsageError: It is not one of the networks, or has no tokenizer.
    """
    names = [str(Path(path)) for path in paths]
    if str(Path(wanted)) not in names:
        near = did_you_mean(wanted, names) or f" There are {list_some(names, 5)}."
        raise UsageError(f"--tokenizer {wanted}: it is not one of the models.{near}")
    folder = opened[names.index(str(Path(wanted)))].folder
    if folder is None or not tokenizer_files(folder):
        raise UsageError(f"--tokenizer {wanted}: it has no files of a tokenizer.")
    return folder


def _traced(model: str, **wanted: Any) -> tuple[nn.Module, SymmetryGraph]:
    """Trace a model without weights; with random ones where its code depends on them, or symmetries are to be proved.

    Those that are not permutations are proved by the trace where there are weights, and given up where that fails.
    """
    proved = with_weights(model) if wanted["symmetries"] == "all" else None
    module, args, kwargs = proved or load_model(model, bare=True)
    try:
        return module, trace(module, *args, **wanted, **kwargs)
    except TraceError:
        example = with_weights(model)
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
