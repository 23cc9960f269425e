"""Binding: the weights of models held against one graph, every mismatch found at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from alignkit.checkpoints.checkpoint import Checkpoint
from alignkit.checkpoints.dense import check_name, why_not_dense
from alignkit.checkpoints.fit import Fit
from alignkit.checkpoints.weights import read_weights
from alignkit.errors import AlignkitError, BindError
from alignkit.graph.folded import check_folded
from alignkit.graph.hidden_state import check_constants, check_hidden_state
from alignkit.graph.structure import GraphStructure

StateDict: TypeAlias = Mapping[str, Tensor]
Weights: TypeAlias = nn.Module | StateDict
"""A network in memory: a module, or tensors by name."""
WeightsSource: TypeAlias = Weights | str | Path
"""A network in memory, or the path of a weights file or folder."""


class LazyWeights(Mapping[str, Tensor], ABC):
    """Weights by the first names of a graph, each read when it is asked for: they may be larger than memory."""

    graph: GraphStructure

    @abstractmethod
    def under(self, elements: Mapping[str, Tensor]) -> LazyWeights:
        """Return the same weights under an alignment, given by its elements; nothing is read."""


def weights_of(source: WeightsSource) -> dict[str, Tensor]:
    """Return the named tensors of a module (parameters and saved buffers), a mapping, or a checkpoint; detached.

    Raises:
        BindError: The source is none of these, or holds something that is not a dense tensor.
        WeightsError: A file cannot be read.
    """
    if isinstance(source, nn.Module):
        return weights_of({n: t for n, t in source.state_dict().items() if isinstance(t, Tensor)})
    if isinstance(source, str | Path):
        return read_weights(source)
    if isinstance(source, Checkpoint):
        return source.read_all()
    if not isinstance(source, Mapping):
        raise BindError(f"weights are a module, a state dict or a path, found {type(source).__name__}.")
    for name, value in source.items():
        if not isinstance(value, Tensor):
            raise BindError(f"weights[{name!r}] is not a tensor but {type(value).__name__}.")
        if (kind := why_not_dense(value)) is not None:
            raise BindError(f"weights[{name!r}] is not a dense tensor, but {kind}.")
        try:
            check_name(name)
        except ValueError as error:
            raise BindError(f"the weights cannot be used: {error}.") from error
    return {name: tensor.detach() for name, tensor in source.items()}


def fit_models(
    graph: GraphStructure, models: Mapping[str, WeightsSource], error: type[AlignkitError], what: str, note: str = ""
) -> list[dict[str, Tensor]]:
    """Hold the weights of models against a graph.

    Args:
        graph: What they have to fit.
        models: The weights of each model, by what messages call it.
        error: Class of the error.
        what: Begins the message, such as ``"the weights do not fit the graph"``.
        note: Added to the number of problems, in brackets.

    Returns:
        The weights of each model, by the first name of each tensor; detached, not copied.

    Raises:
        AlignkitError: Names, shapes, dtypes, ties or values do not fit, or are not folded; in the given class.
    """
    fit = fit_of(graph)
    sides = {label: fit.check_tensors(weights_of(source), label) for label, source in models.items()}
    fit.check_dtypes({label: {n: t.dtype for n, t in tensors.items()} for label, tensors in sides.items()})
    fit.raise_if_any(error, what, note)
    check_folded(graph, sides, error)
    check_constants(graph.provenance.constant, models, error)
    check_hidden_state(models, error)
    return list(sides.values())


def fit_of(graph: GraphStructure) -> Fit:
    """Make the check of names, shapes and ties that a graph expects."""
    return Fit({node.name: node.shape for node in graph.tensors.values()}, graph.first_names)
