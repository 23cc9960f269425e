"""The inputs on which a job runs a network to prove what it did: those that were given, or random ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from alignkit.activations.random_inputs import traced_call
from alignkit.errors import VerificationError
from alignkit.graph import SymmetryGraph

DRAWN = (
    "These inputs were drawn at random, in the shapes that the graph was traced with. Give inputs that the model "
    "takes, as it is called: alignkit.fold(model, graph, x). Jobs that take no inputs take what fold returns."
)
"""What to do where a network does not run on random inputs."""


@dataclass(frozen=True)
class ExampleCall:
    """Arguments of a network by position and by name, and whether they were drawn at random."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    is_drawn: bool = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run a network in here: what it refuses is told with where the inputs come from."""
        try:
            yield
        except VerificationError as error:
            if not self.is_drawn:
                raise
            raise VerificationError(f"{error} {DRAWN}") from error


def example_or_random(graph: SymmetryGraph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExampleCall | None:
    """Return an example call; random inputs of the shapes that a graph was traced with, where there is none.

    None where these are not known either.
    """
    if args or kwargs:
        return ExampleCall(args, kwargs)
    if not (traced := graph.provenance.inputs):
        return None
    count = traced[0].shape[0] if traced[0].shape else 1
    return ExampleCall(*traced_call(traced, count, torch.Generator().manual_seed(0)), is_drawn=True)
