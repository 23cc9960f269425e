"""One model of the coverage run: trace it, and prove the trace on perturbed weights."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import by_hand
import zoo_models
from alignkit.errors import AlignkitError, VerificationError
from alignkit.graph import SymmetryGraph
from alignkit.graph.proof.outputs import output_tensors
from alignkit.graph.proof.perturb import perturbed
from alignkit.tracing import trace
from helpers.nets_by_hand.net import derived, difference

DRAWS = 3
UNSOUND = "permuting"
"""How the message of a verification starts that found a wrong symmetry."""


@dataclass
class Result:
    """A row of the coverage table.

    Attributes:
        source: Library of the model.
        name: Its name there.
        status: ``"verified"``, ``"unsound"``, ``"trace failed"``, ``"not judged"`` (the model itself gives NaN, or the
            verification could not run), ``"no forward"``, ``"time"`` or ``"memory"``.
        model: Class of the model.
        parameters: Number of its parameters.
        tensors: Whether it was traced on fake or real tensors.
        groups: Number of groups without a parent.
        families: Number of groups with one.
        free: Axes with more than one position on which a group acts, as a share of all such axes.
        seconds: Processor time of the trace.
        dtype: Where it was verified.
        error: Largest relative change of the outputs.
        others: Sizes of the inputs that were changed in the verification.
        refused: Sizes that the model takes no other value of.
        gigabytes: Peak of the memory of the process, in GiB.
        by_hand: `"equal"` or `"differ"`, compared with groups derived by hand; empty where nobody derived them.
        unknown: Operators without a rule.
        reason: Why not, where it is not verified.
    """

    source: str
    name: str
    status: str = "no forward"
    model: str = ""
    parameters: int = 0
    tensors: str = ""
    groups: int = 0
    families: int = 0
    free: float = 0.0
    seconds: float = 0.0
    dtype: str = ""
    error: float | None = None
    others: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    gigabytes: float = 0.0
    by_hand: str = ""
    unknown: tuple[str, ...] = ()
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return asdict(self)


class Seeded(nn.Module):
    """A model that draws random numbers in its forward, with the same ones each time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        return self.model(*args, **kwargs)


def judge(source: str, name: str) -> Result:
    """Build, trace and verify a model; whatever happens becomes a row."""
    result = Result(source, name)
    _judge(result, source, name)
    result.gigabytes = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return result


def _judge(result: Result, source: str, name: str) -> None:
    try:
        model, args, kwargs = zoo_models.build(source, name)
        result.model = type(model).__name__
        result.parameters = sum(p.numel() for p in model.parameters())
        model, problem = _repeatable(perturbed(model), args, kwargs)
    except Exception as error:  # a model of another library may fail in any way
        result.reason = said(error)
        return
    started = time.process_time()
    try:
        graph = trace(model, *args, **kwargs)
    except Exception as error:
        result.status, result.reason = "trace failed", said(error)
        return
    result.seconds = round(time.process_time() - started, 2)
    _count(result, graph)
    if (lines := by_hand.lines_for(source, name, model)) is not None:
        result.by_hand = "differ" if difference(derived(model, lines), graph) else "equal"
    if problem:
        result.status, result.reason = "not judged", problem
        return
    _prove(result, graph, model, args, kwargs)


def said(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, AlignkitError) else f"{type(error).__name__}: {text[:300]}"


def _prove(result: Result, graph: SymmetryGraph, model: nn.Module, args: Any, kwargs: Any) -> None:
    try:
        proof = graph.verify(model, *args, draws=DRAWS, **kwargs)
    except VerificationError as error:
        result.status = "unsound" if str(error).startswith(UNSOUND) else "not judged"
        result.reason = said(error)
    except Exception as error:
        result.status, result.reason = "not judged", said(error)
    else:
        result.status, result.dtype, result.error = "verified", proof.dtype, proof.error
        result.others, result.refused = proof.others, proof.refused


def _repeatable(model: nn.Module, args: Any, kwargs: Any) -> tuple[nn.Module, str]:
    """Return the model, seeded if it is random, and why its outputs cannot be judged, if so."""
    model.eval()
    first, second = (_outputs(model, args, kwargs) for _ in range(2))
    if any(not bool(torch.isfinite(t).all()) for t in first):
        return model, "the unpermuted model returns NaN or infinity"
    if len(first) == len(second) and all(torch.equal(x, y) for x, y in zip(first, second, strict=True)):
        return model, ""
    return Seeded(model), ""


def _outputs(model: nn.Module, args: Any, kwargs: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [t for t in output_tensors(model(*args, **kwargs)) if t.is_floating_point()]


def _count(result: Result, graph: SymmetryGraph) -> None:
    axes = [
        any(True for _ in axis.units())
        for t in graph.tensors.values()
        for axis, n in zip(t.layout, t.shape, strict=True)
        if n > 1
    ]
    result.groups = len(graph.roots)
    result.families = len(graph.groups) - len(graph.roots)
    result.free = round(sum(axes) / max(1, len(axes)), 3)
    result.tensors = graph.provenance.tensors or ""
    result.unknown = graph.provenance.unknown_ops
