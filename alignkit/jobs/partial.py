"""Partial checkpoints: tensors that some of the networks lack, by leave of the user, such as a head."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase

import torch

from alignkit.checkpoints import Checkpoint
from alignkit.checkpoints.shard import TensorEntry
from alignkit.errors import BindError, MergeError
from alignkit.graph import SymmetryGraph, TensorNode
from alignkit.graph.rewrites import AxisOf, under_both_names
from alignkit.jobs.average import Averaging, Method
from alignkit.jobs.shares import SharesByPattern, no_match
from alignkit.jobs.task_vectors import TASK_METHODS
from alignkit.text import list_some

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
"""In names of files that hold a part of a network."""


def find_missing(
    checkpoints: Sequence[Checkpoint], graph: SymmetryGraph, patterns: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Return the first names of the tensors that each checkpoint lacks, where a pattern allows it.

    Raises:
        BindError: The model has no tensor of such a name, or a checkpoint lacks others, or one that folds and balances
            of the graph change: what they move into it or out of it would be lost.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in graph.first_names):
            raise BindError(f"--allow-missing {pattern!r}: {no_match(pattern, list(graph.first_names))}")

    def may_lack(node: TensorNode) -> bool:
        return any(fnmatchcase(name, pattern) for name in node.names for pattern in patterns)

    missing = []
    for checkpoint in checkpoints:
        present = under_both_names(checkpoint.shapes, graph.folds)
        lacks = [node for node in graph.tensors.values() if not any(name in present for name in node.names)]
        refused = [node.name for node in lacks if not may_lack(node)]
        if refused and len(lacks) < len(graph.tensors) and present.keys() <= graph.first_names.keys():
            is_shard = _SHARD.search(checkpoint.path.name) is not None
            raise BindError(
                f"{checkpoint.path} is {'one file of several' if is_shard else 'a partial checkpoint'}: it lacks "
                f"{list_some(list(map(repr, refused)), 5)}. "
                + (f"Name the folder {checkpoint.path.parent}, or its index. " if is_shard else "")
                + f"If it may, say --allow-missing '{pattern_for(refused[0])}'."
            )
        if rewritten := [node.name for node in lacks if node.name in set(_rewritten_tensors(graph))]:
            raise BindError(
                f"{checkpoint.path} lacks {list_some(list(map(repr, rewritten)), 5)}. With --symmetries all "
                "something is moved into it or out of it, so that it has to be there: leave that switch out."
            )
        missing.append(tuple(node.name for node in lacks if may_lack(node)))
    return tuple(missing)


def pattern_for(name: str) -> str:
    """Return a pattern that a tensor and what stands beside it match."""
    module = name.rpartition(".")[0]
    return f"{module}.*" if module else name


def _rewritten_tensors(graph: SymmetryGraph) -> Iterator[str]:
    """List the tensors that folds and balances of a graph change."""

    def names(value: object) -> Iterator[str]:
        if isinstance(value, str | AxisOf):
            yield value if isinstance(value, str) else value.tensor
        elif isinstance(value, tuple):
            for part in value:
                yield from names(part)

    for rewrite in (*graph.folds, *graph.balances):
        for each in fields(rewrite):
            yield from (name for name in names(getattr(rewrite, each.name)) if name in graph.tensors)


def stand_ins(
    names: Collection[str], graph: SymmetryGraph, checkpoints: Sequence[Checkpoint]
) -> dict[str, TensorEntry]:
    """Return what zeros for tensors look like, by their first names: a distance is then the same for all alignments."""
    entries = {}
    for first in names:
        node = graph.tensors[first]
        dtypes = [checkpoint.dtypes[n] for checkpoint in checkpoints for n in node.names if n in checkpoint]
        entries[first] = TensorEntry(first, dtypes[0] if dtypes else torch.float32, node.shape)
    return entries


def tell_missing(labels: Sequence[object], missing: Sequence[Sequence[str]]) -> list[str]:
    """Say in sentences which tensors networks lack, and what becomes of them."""
    said = [
        f"{label} lacks {list_some(list(map(repr, names)), 3)}"
        for label, names in zip(labels, missing, strict=True)
        if names
    ]
    if not said:
        return []
    rest = "They do not count while units are aligned; an average takes them from the networks that have them"
    return [f"{'; '.join(said)}. {rest}. What is written like a network has no tensors that it lacks."]


def shares_of_present(
    weights: SharesByPattern, method: Method, missing: Sequence[Sequence[str]], graph: SymmetryGraph
) -> Mapping[str, Sequence[float]]:
    """Return weights by which no network counts for the tensors that it lacks.

    Args:
        weights: As `alignkit.average` takes them.
        method: How networks are put together.
        missing: First names of the tensors that each network lacks.
        graph: Their graph.

    Raises:
        MergeError: The base of task vectors lacks a tensor, or the weights are wrong.
    """
    averaging = Averaging.of(len(missing), weights, method).on(graph.first_names)
    is_task = method in TASK_METHODS
    if is_task and missing[0]:
        raise MergeError(f"the first network lacks {missing[0][0]!r}, and it is the base that task vectors start from.")
    shares = {}
    for name, first in graph.first_names.items():
        own = list(averaging.by_name.get(name, averaging.shares))
        has = [first not in names for names in missing[is_task:]]
        present = [share * is_there for share, is_there in zip(own, has, strict=True)]
        # Where those that have it have no share, they have equal ones; where none has it, zeros are averaged.
        shares[name] = present if is_task or any(present) else list(map(float, has)) if any(has) else own
    return {name.replace("[", "[[]"): share for name, share in shares.items()}
