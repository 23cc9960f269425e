"""`rotate`: the residual stream of a network, and the spaces inside its heads, rotated. It computes the same.

Rotations spread outliers of weights and activations over all units of a space, so that they can be rounded to fewer
bits (Ashkboos et al., "QuaRot: outlier-free 4-bit inference in rotated LLMs", 2024; Liu et al., "SpinQuant", 2024).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.errors import AlignmentError
from alignkit.graph import SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.elements.element import identity_element, random_element
from alignkit.graph.elements.hadamard import random_hadamard
from alignkit.graph.kinds import KINDS, PLANES
from alignkit.jobs.fold import count_folds
from alignkit.jobs.rewritten import FoldCheck, Rewriting
from alignkit.reports import Facts, Report, Section, Table, Text
from alignkit.reports.sections import facts_section
from alignkit.rewriting import fold_weights
from alignkit.text import Explained, list_some

Rotation: TypeAlias = Literal["hadamard", "random", "none"]


@dataclass(frozen=True, eq=False, repr=False)
class Rotated(Explained):
    """A rotated network.

    Attributes:
        network: A module where one was given, else a dict.
        rotation: What rotated the folded network; its inverse turns it back.
        spaces: The groups that were rotated, with the way: ``"hadamard"`` or ``"random"``.
        left: Groups of heads that stay as they are although heads were to be rotated: rotary planes have no Hadamard
            matrices.
        check: The function check; None where the network was not run.
        peak_before: Largest entry of a tensor that rotates, in units of the root mean square of its entries, of the
            folded network; the largest of all tensors.
        peak_after: The same of the rotated network.
        untied: Heads that were tied to an embedding, whose name stands beside them, and became tensors of their own.
    """

    network: nn.Module | dict[str, Tensor]
    rotation: Alignment
    spaces: Mapping[str, Rotation]
    left: tuple[str, ...]
    check: FoldCheck | None
    peak_before: float
    peak_after: float
    untied: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Rotated({', '.join(self.spaces)}, largest entry {self.peak_before:.3g} -> {self.peak_after:.3g})"

    @property
    def graph(self) -> SymmetryGraph:
        """The graph of the network."""
        assert isinstance(self.rotation.graph, SymmetryGraph)
        return self.rotation.graph

    def explain(self) -> str:
        """Say in a few lines what was rotated, and what it did to weights and outputs."""
        lines = [f"{count_folds(self.graph.folds)}."]
        for name, way in self.spaces.items():
            count, size = self.graph.instances(name), self.graph.groups[name].size
            lines.append(f"{name}: {count} x {size} units {KINDS[self.graph.groups[name].kind].words}, {way}.")
        if self.left:
            lines.append(f"Rotary planes stay as they are, with random rotations they turn: {list_some(self.left, 4)}.")
        for head, source in self.untied.items():
            lines.append(f"{head} is no longer tied to {source}: {prod(self.graph.tensors[head].shape)} numbers more.")
        peaks = f"{self.peak_before:.3g} before, {self.peak_after:.3g} after"
        lines.append(f"Largest entry of a tensor, in units of its root mean square: {peaks}.")
        checked = "not done, it runs the network on inputs" if self.check is None else self.check.explain()
        return "\n".join([*lines, f"Function check: {checked}."])

    def facts(self) -> dict[str, Any]:
        """Return what was done and measured as plain values, as JSON takes them."""
        return {
            "rotated": dict(self.spaces),
            "left": list(self.left),
            "folds": list(map(str, self.graph.folds)),
            "untied": dict(self.untied),
            "peak_before": self.peak_before,
            "peak_after": self.peak_after,
            "function_error": None if self.check is None else self.check.exact.error,
            "rounding_error": None if self.check is None else self.check.rounded.error,
        }

    @check_arguments
    def report(self, title: str = "A rotated network", *, facts: Facts = None) -> Report:
        """List what was rotated and folded, and what running the network showed."""
        peaks = {"largest entry before": f"{self.peak_before:.3g}", "after": f"{self.peak_after:.3g}"}
        rows = tuple(
            (
                name,
                str(self.graph.instances(name)),
                str(self.graph.groups[name].size),
                self.graph.groups[name].kind,
                way,
            )
            for name, way in self.spaces.items()
        )
        table = Table(("space", "how many", "units", "kind", "rotation"), rows)
        folds = Table(("fold", "what it did"), tuple((type(fold).__name__, str(fold)) for fold in self.graph.folds))
        checked = "Not done." if self.check is None else f"Passed: {self.check.explain()}."
        sections = (
            facts_section({**(facts or {}), **peaks}),
            Section("Function check", (Text(checked),)),
            Section("Rotations", (table,)),
            Section("Folds", (folds if self.graph.folds else Text("None."),)),
        )
        return Report(title, sections)


@check_arguments
def rotate(
    network: WeightsSource,
    graph: SymmetryGraph,
    *args: Any,
    residual: Rotation = "hadamard",
    heads: Rotation = "hadamard",
    seed: int = 0,
    model: nn.Module | None = None,
    **kwargs: Any,
) -> Rotated:
    """Fold a network, and rotate its residual stream and the spaces inside its heads. It computes the same.

    Everything is computed in float64 and rounded once, to the dtype that each tensor has. Where there is a module it is
    run before and after.

    Args:
        network: A module, a state dict or a checkpoint path. It is left as it is.
        graph: Its graph, from ``alignkit.trace(model, x, symmetries="all")``.
        *args: Example inputs for the function check; a single dict holds inputs by name. None: random ones of the
            shapes that the graph was traced with, where it was.
        residual: How streams that layers add to are rotated. ``"hadamard"``: by a Hadamard matrix with random signs of
            rows and columns, which spreads outliers evenly; where LayerNorms keep the vector of ones, a reflection
            follows that brings it back. ``"random"``: by a matrix from the Haar measure. ``"none"``: not at all.
        heads: How the spaces inside heads are rotated, each instance by a matrix of its own. Planes of rotary positions
            turn by random phases with ``"random"``, and stay otherwise.
        seed: Seed of matrices and signs.
        model: A module of the architecture that is run for the function check, where the network is not one.
        **kwargs: Example inputs by name.

    Raises:
        AlignmentError: Nothing that was asked for rotates, with the reason; or there is no Hadamard matrix of the size.
        FoldError: As for `alignkit.fold`.
        VerificationError: The rotated network does not compute the same, so the graph is wrong.
    """
    inside = {balance.group for balance in graph.balances if balance.kind in ("invertible", "complex_planes")}
    spaces: dict[str, Rotation] = {}
    left = []
    for name, group in graph.groups.items():
        way = heads if name in inside or group.parent is not None else residual
        if not graph.rotates(name) or way == "none":
            continue
        if group.kind in PLANES and way == "hadamard":
            left.append(name)
        else:
            spaces[name] = way
    is_inside = {name: name in inside or graph.groups[name].parent is not None for name in (*spaces, *left)}
    if residual != "none" and all(is_inside.values()):
        raise AlignmentError(f"no residual stream of this network rotates{_why(graph)}. Leave it: residual='none'.")
    if heads != "none" and not any(is_inside[name] for name in spaces):
        raise AlignmentError("no space inside heads of this network rotates in this way. Leave them: heads='none'.")
    if not spaces:
        raise AlignmentError("residual='none' and heads='none' leave nothing to be rotated: alignkit.fold folds alone.")
    work, generator = Rewriting(network, graph), torch.Generator().manual_seed(seed)
    elements = {}
    for name, group in graph.groups.items():
        shape = graph.unit_shape(name)
        if name not in spaces:
            elements[name] = identity_element(group.kind, shape)
        elif spaces[name] == "random":
            elements[name] = random_element(group.kind, shape, generator)
        else:
            try:
                elements[name] = random_hadamard(group.kind, shape[:-1], shape[-1], generator)
            except AlignmentError as error:
                raise AlignmentError(f"space {name!r} needs {error}") from error
    rotation = Alignment(graph, elements)
    fold_weights(work.wide, graph.folds)
    moved = [name for name, node in graph.tensors.items() if set(node.groups) & spaces.keys()]
    before = max(_peak(work.wide[name]) for name in moved)
    for name in moved:
        work.wide.wide[name] = rotation.apply_tensor(name, work.wide[name])
    after = max(_peak(work.wide[name]) for name in moved)
    check = work.check(model, args, kwargs)
    return Rotated(work.result(), rotation, spaces, tuple(left), check, before, after, work.untied)


def _why(graph: SymmetryGraph) -> str:
    """Say what keeps the space of most tensors from rotating, as part of a sentence; an output of it fixes it."""
    if graph.provenance.proved is None and not graph.provenance.limits:
        return ': trace it with symmetries="all"'
    roots = {name for name, group in graph.groups.items() if group.parent is None}
    limits = [limit for limit in graph.provenance.limits if limit.group in roots and limit.reason]
    most = max(limits, key=lambda limit: len(graph.tensors_of(limit.group)), default=None)
    returned = Counter(pin.op for pin in graph.provenance.pinned if pin.op.partition(" ")[0] == "output")
    for output, axes in returned.most_common(1):
        if most is None or axes > len(graph.tensors_of(most.group)):
            count = "if it does not count, name those that do, by outputs= of alignkit.trace or --outputs"
            return f": it is the {output} of the model, which stays; {count}"
    if most is not None:
        return f": {most.group} is {most.kind}, {most.reason}"
    return ""


def _peak(tensor: Tensor) -> float:
    size = float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
    return float(tensor.abs().max()) / size if size else 0.0
