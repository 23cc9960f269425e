"""The methods of mergekit, called on tensors where it is installed. alignkit does the same arithmetic without it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignkit.process_state import watched_state

TaskMethod = Literal["task_arithmetic", "ties", "dare"]
NAMES = {"task_arithmetic": "task_arithmetic", "ties": "ties", "dare": "dare_linear"}
"""What mergekit calls the methods."""

_drawing = threading.Lock()
"""mergekit draws from torch's global generator, which one thread at a time may seed."""


@dataclass(frozen=True)
class Mergekit:
    """An installed mergekit.

    Attributes:
        version: Its version.
        merge_tensors: Its function of that name, which merges one tensor.
    """

    version: str
    merge_tensors: Callable[..., Tensor]

    def combine(
        self,
        method: TaskMethod,
        vectors: Sequence[Float[Tensor, "*shape"]],
        weights: Sequence[float],
        density: float,
        seed: int,
    ) -> Float[Tensor, "*shape"]:
        """Put task vectors together; see `alignkit.jobs.task_vectors.combine`, which means the same.

        For TIES mergekit divides by the weights that agree, with their signs. So vectors are turned by the sign of
        their weights, and the result is multiplied by the sum of their sizes. What DARE keeps is divided by the
        density, as in the paper.
        """
        turned = [vector if weight >= 0 else -vector for vector, weight in zip(vectors, weights, strict=True)]
        sizes = [abs(weight) for weight in weights]
        own = {
            "task_arithmetic": {},
            "ties": {"density": density, "lambda": sum(sizes)},
            "dare": {"density": density, "rescale": False, "lambda": 1 / density},
        }
        device = torch.device("cpu") if method == "dare" else turned[0].device  # draws do not depend on the device
        tensors = [torch.zeros_like(turned[0]), *turned]
        with _drawing, torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            merged = self.merge_tensors(
                [tensor.to(device) for tensor in tensors],
                NAMES[method],
                parameters={"weight": sizes, **own[method]},
                base_index=0,
            )
        return merged.to(turned[0].device)

    def slerp(self, a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
        """Turn from ``a`` to ``b``; see `alignkit.jobs.average.slerp`."""
        with torch.no_grad():
            return self.merge_tensors([a, b], "slerp", parameters={"t": t}, base_index=0)


@cache
def find_mergekit() -> Mergekit | str | None:
    """Return mergekit if its functions can be called, a sentence on why not if it is installed, and None if it is not.

    The first call imports it, which takes seconds.
    """
    try:
        version = metadata.version("mergekit")
    except metadata.PackageNotFoundError:
        return None
    try:
        with watched_state("mergekit"):
            from mergekit.merge_methods import merge_tensors
    except Exception as error:  # what it needs may be missing, or fail in ways of its own
        return f"the mergekit that is installed cannot be used ({type(error).__name__}: {error})"
    return Mergekit(version, merge_tensors)


def name_arithmetic(method: str) -> str | None:
    """Say whose functions do the arithmetic of a method of averages; None for weighted averages, which are ours."""
    if method == "linear":
        return None
    mergekit = find_mergekit()
    if isinstance(mergekit, Mergekit):
        return f"mergekit {mergekit.version}"
    return "alignkit" if mergekit is None else f"alignkit, because {mergekit}"
