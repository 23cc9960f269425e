"""`transport_adapter`: a LoRA adapter carried from one base to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.dtypes import narrow
from alignkit.errors import MergeError
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.proof.verify import TOLERANCE, relative_difference
from alignkit.jobs.adapters import BASE_NAME, BASE_WEIGHT, Adapter, zeros_like_output
from alignkit.jobs.attachments import read_attachments
from alignkit.jobs.fold import Folded
from alignkit.jobs.passage import Passage, alignment_sections
from alignkit.jobs.solve import SolverLike
from alignkit.reports import Check, Facts, Report, Section, Table
from alignkit.solver.solution import Solution
from alignkit.text import Explained, list_some, plural


@dataclass(frozen=True, eq=False, repr=False)
class TransportedAdapter(Explained):
    """A LoRA adapter on another base.

    Attributes:
        adapter: The adapter for base B; its ``write`` makes a folder that peft loads. Its configuration names base B
            where that was given by its path, and no base otherwise: ``on_base`` sets it.
        alignment: Brings base B, folded where the graph has folds, to base A.
        solution: How it was solved; None where the alignment was given.
        biases: Modules whose adapter got a bias (``lora_bias`` of peft): the shift or bias that they read differs.
    """

    adapter: Adapter
    alignment: Alignment
    solution: Solution | None
    biases: tuple[str, ...]

    def __repr__(self) -> str:
        return f"TransportedAdapter({plural(len(self.adapter.factors), 'weight')})"

    def explain(self) -> str:
        """Say in a few lines what was carried, and how the bases were aligned."""
        how = "The bases were aligned before." if self.solution is None else self.solution.explain()
        lines = [how, f"Factors of {plural(len(self.adapter.factors), 'weight')} carried, their ranks as they were."]
        if self.biases:
            why = "the shifts of norms, or the biases of values, that they read are not those of the other base"
            lines.append(f"{plural(len(self.biases), 'weight')} got a bias in the adapter: {why}.")
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """Return what came out as plain values, as JSON takes them."""
        solved = {} if self.solution is None else self.solution.facts()
        return {**solved, "weights": list(self.adapter.factors), "biases": list(self.biases)}

    @check_arguments
    def report(
        self,
        title: str = "An adapter carried to another base",
        *,
        pair: Pair | None = None,
        check: Check = None,
        facts: Facts = None,
    ) -> Report:
        """List the weights, with pictures of the alignment where one was solved."""
        sections = alignment_sections(title, self.alignment, self.solution, pair, check, facts)
        rows = tuple((name, str(self.adapter.rank(name))) for name in self.adapter.factors)
        return Report(title, (*sections[:1], Section("Weights", (Table(("weight", "rank"), rows),)), *sections[1:]))


@check_arguments
def transport_adapter(
    pair: Pair | SymmetryGraph,
    a: WeightsSource | Folded | None = None,
    b: WeightsSource | Folded | None = None,
    *,
    adapter: Adapter | str | Path,
    alignment: Alignment | Solution | None = None,
    solver: SolverLike = "weight_matching",
    **arguments: Any,
) -> TransportedAdapter:
    """Carry a LoRA adapter from base A to base B.

    Its factors move like the axes of the weights that they adapt: what reads moves like what A reads, what writes like
    what A writes, through norm gains, scales and rotations. Ranks and sizes stay. Bases are given as they were trained.

    Args:
        pair: The two bases, ``graph.bind(a, b)``; or a graph, with them beside it.
        a: The base that was adapted, if ``pair`` is a graph: a module, a state dict or a checkpoint path; or what
            `alignkit.fold` made of it.
        b: The base that the adapter is carried to, if ``pair`` is a graph. Both are left as they are.
        adapter: The adapter, or the folder in which peft saved it.
        alignment: Aligns B to A, both as `alignkit.fold` leaves them. None: it is solved.
        solver: Solver of the alignment, as in `alignkit.solve`.
        arguments: Further arguments of `alignkit.solve`: a task, a device, a seed, options.

    Raises:
        MergeError: The adapter is not one of LoRA, does not fit the graph, or a number overflows its dtype.
        WeightsError: A file cannot be read.
        BindError: The bases do not fit the graph.
        FoldError: The bases cannot be folded.
        AlignmentError: The alignment belongs to another graph.
        SolverError: The solver is unknown or failed.
    """
    given = adapter if isinstance(adapter, Adapter) else Adapter.read(adapter)
    way = Passage.between("transport_adapter", pair, a, b, alignment, solver=solver, **arguments)
    layouts: dict[str, str] = {}
    for module, names in given.factors.items():
        weight, reads, writes = given.places(module, way.graph)
        behind = [" ." * (given.tensors[name].ndim - 2) for name in (names.a, names.b)]
        layouts |= {names.a: f". @{weight}:{reads}{behind[0]}", names.b: f"@{weight}:{writes} .{behind[1]}"}
        if names.bias in given.tensors:
            layouts[names.bias] = f"@{weight}:{writes}"
    _check_base_weights(given, way)
    factors = {name: tensor for name, tensor in given.tensors.items() if name in layouts}
    attached = read_attachments(way.graph, factors, layouts, way.output_place)
    moved = way.carry(attached, factors)
    config, biases = dict(given.config), _biases(given, moved, way.constants(attached, factors, moved))
    if biases:
        if any(names.is_embedding for names in given.factors.values()):
            needs = f"{list_some(sorted(biases), 3)} needs a bias in the adapter, and peft has none beside embeddings"
            raise MergeError(f"{given.label}: {needs}. Carry it without the factors of embeddings.")
        config["lora_bias"] = True
        for names in given.factors.values():
            moved.setdefault(names.bias, zeros_like_output(moved[names.b]))
        for module, bias in biases.items():
            name = given.factors[module].bias
            moved[name] = narrow(moved[name].double() + bias, moved[name].dtype, name, MergeError)
    carried = Adapter(config, moved, given.label)
    if BASE_NAME in config:  # it would be loaded on base A
        carried = carried.on_base(str(b) if isinstance(b, str | Path) else None)
    return TransportedAdapter(carried, way.alignment, way.solution, tuple(biases))


def _check_base_weights(adapter: Adapter, way: Passage) -> None:
    """Refuse an adapter that brings other weights than those of its base; the same ones are left out."""
    for name in adapter.base_weights:
        first = adapter.first_name(name.removesuffix(BASE_WEIGHT), way.graph)
        node, tensor = way.graph.tensors[first], adapter.tensors[name].cpu().double()
        own = way.bound.a[first].cpu().double()
        is_own = tensor.shape == own.shape
        if is_own:
            folded = way.changes_a.do(node, tensor, {axis: (first, axis) for axis in range(tensor.ndim)})
            is_own = relative_difference([folded], [own]) <= TOLERANCE[torch.float32]
        if not is_own:
            raise MergeError(f"{adapter.label}: {name!r} is not that of base A. Merge the adapter into its base first.")


def _biases(adapter: Adapter, moved: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the constants of factors that read, ``[rank]``, become behind the factors that write."""
    biases = {}
    for module, names in adapter.factors.items():
        if names.a in constants:
            read = constants[names.a].flatten(1).sum(-1) if constants[names.a].ndim > 1 else constants[names.a]
            biases[module] = moved[names.b].cpu().double().flatten(1) @ read
    return biases
