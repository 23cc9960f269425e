"""`widen`: a network in the shapes of a wider one, with which it can then be aligned. It computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints.dtypes import narrow
from alignkit.errors import WidenError
from alignkit.graph import SymmetryGraph
from alignkit.graph.kinds import KINDS
from alignkit.graph.module_copy import copy_module
from alignkit.graph.proof.verify import Equivalence, same_function
from alignkit.graph.rewrites import untied_heads
from alignkit.jobs.example_inputs import ExampleCall, example_or_random
from alignkit.jobs.fold import count_folds
from alignkit.jobs.rewritten import FoldCheck, Rewriting
from alignkit.reports import Facts, Report, Section, Table, Text
from alignkit.reports.sections import facts_section
from alignkit.rewriting import SCORES, UnitMap, Widening, fold_weights, module_with
from alignkit.text import Explained, list_some


@dataclass(frozen=True, eq=False, repr=False)
class WidenedNetwork(Explained):
    """A widened network.

    Attributes:
        network: A module of the wider architecture.
        graph: The graph of the wider network.
        maps: How the units of each group that has more of them now were mapped.
        check: What running the narrow network and the widened one showed.
        numbers: How many numbers the narrow network has.
        untied: Heads that were tied to an embedding, whose name stands beside them, and became tensors of their own.
        unused: Tensors of another size that the traced runs never read. They are zero.
    """

    network: nn.Module
    graph: SymmetryGraph
    maps: Mapping[str, UnitMap]
    check: FoldCheck
    numbers: int
    untied: Mapping[str, str]
    unused: tuple[str, ...]

    def __repr__(self) -> str:
        return f"WidenedNetwork({self.numbers} -> {self.numbers_after} numbers)"

    @property
    def numbers_after(self) -> int:
        """How many numbers the widened network has."""
        return sum(prod(node.shape) for node in self.graph.tensors.values())

    def _rows(self) -> list[tuple[str, int, int, str]]:
        """Return name, units before and after, and kind of each group that was mapped."""
        groups = self.graph.groups
        return [(n, m.matrix.shape[1], m.matrix.shape[0], KINDS[groups[n].kind].words) for n, m in self.maps.items()]

    def explain(self) -> str:
        """Say in a few lines which spaces got more units, and by how much outputs differ."""
        lines = [f"{count_folds(self.graph.folds)}."]
        for (before, after, words), count in Counter(row[1:] for row in self._rows()).items():
            lines.append(f"{count} x {before} -> {after} units, which are {words}.")
        lines += [f"{head} is no longer tied to {source}." for head, source in self.untied.items()]
        if self.unused:
            lines.append(f"The traced runs never read {list_some(self.unused, 4)}: zero.")
        lines.append(f"Numbers: {self.numbers} -> {self.numbers_after}.")
        return "\n".join([*lines, f"Function check: {self.check.explain()}."])

    def facts(self) -> dict[str, Any]:
        """Return what was done and measured as plain values, as JSON takes them."""
        return {
            "groups": {name: [before, after] for name, before, after, _ in self._rows()},
            "folds": list(map(str, self.graph.folds)),
            "untied": dict(self.untied),
            "unused": list(self.unused),
            "numbers_before": self.numbers,
            "numbers_after": self.numbers_after,
            "function_error": self.check.exact.error,
            "rounding_error": self.check.rounded.error,
        }

    @check_arguments
    def report(self, title: str = "A widened network", *, facts: Facts = None) -> Report:
        """List the spaces with their numbers of units, and what running both networks showed."""
        numbers = {"numbers before": str(self.numbers), "numbers after": str(self.numbers_after)}
        rows = tuple((name, str(before), str(after), words) for name, before, after, words in self._rows())
        table = Table(("space", "units before", "after", "kind"), rows)
        sections = (
            facts_section({**(facts or {}), **numbers}),
            Section("Function check", (Text(f"Passed: {self.check.explain()}."),)),
            Section("Spaces", (table if rows else Text("All have as many units as before."),)),
        )
        return Report(title, sections)


@check_arguments
def widen(
    network: nn.Module, graph: SymmetryGraph, wider: nn.Module, wider_graph: SymmetryGraph, *args: Any, **kwargs: Any
) -> WidenedNetwork:
    """Fold a network, and write its weights in the shapes of a wider one, so that it computes the same.

    Units that are permuted are copied, and what reads them is divided by the number of copies. Spaces that rotate are
    mapped so that means and means of squares stay, which norms subtract and divide by. Queries and keys get the factor
    that the larger size of heads takes from their product. All is computed in float64, proved by running both networks,
    and rounded once.

    Args:
        network: The narrow network. It is left as it is.
        graph: Its graph, from ``alignkit.trace(network, x, symmetries="all")``.
        wider: A network of the wider architecture; its weights do not matter, its dtypes do.
        wider_graph: Its graph, traced in the same way.
        *args: Example inputs for the proof; a single dict holds inputs by name. None: random ones of the shapes that
            the narrow graph was traced with.
        **kwargs: Example inputs by name.

    Raises:
        WidenError: The networks differ in more than numbers of units, or what computes the same does not exist: some
            units have fewer places, planes of rotary positions have other frequencies, or a norm counts copies
            unequally. The message names tensors and groups.
        FoldError: The network does not fit its graph, or cannot be folded.
        VerificationError: The networks return nothing that can be compared.
    """
    if any(one.provenance.proved is None for one in (graph, wider_graph)):
        raise WidenError('widths need graphs that say what reads a space: trace both with symmetries="all".')
    if (call := example_or_random(graph, args, kwargs)) is None:
        raise WidenError("nothing is known of the inputs, so that the widened network cannot be proved. Give some.")
    work, into = Rewriting(network, graph), Rewriting(wider, wider_graph).tensors
    fold_weights(work.wide, graph.folds)
    widening = Widening(graph, wider_graph, {**work.tensors, **work.wide.wide})
    proof = _Proof(network, wider, wider_graph, call)
    errors = []
    for scores in SCORES if widening.unread else SCORES[:1]:
        values = widening.tensors(scores)
        exact = proof.compare(values)
        errors.append(exact.error)
        if exact.same:
            break
    else:
        raise WidenError(_why(widening, min(errors), exact.tolerance))
    rounded = {
        name: narrow(value, into[name].dtype, name, WidenError) if value.is_floating_point() else value
        for name, value in values.items()
    }
    check = FoldCheck(exact, proof.compare(rounded))
    numbers = sum(prod(node.shape) for node in graph.tensors.values())
    made, unused = proof.module(wider, rounded), tuple(sorted(widening.unused))
    return WidenedNetwork(made, wider_graph, widening.maps, check, numbers, work.untied, unused)


@dataclass(frozen=True)
class _Proof:
    """Runs the narrow network and the wider one, with weights by the first names of its graph, on the same inputs."""

    network: nn.Module
    wider: nn.Module
    graph: SymmetryGraph
    call: ExampleCall

    def module(self, module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy of a module of the wider architecture with other weights."""
        named = {name: values[first] for name, first in self.graph.first_names.items()}
        return module_with(module, named, untied_heads(self.graph.folds))

    def compare(self, values: Mapping[str, Tensor]) -> Equivalence:
        """Compare the outputs of both networks in float64."""
        given, target = (copy_module(module).to(torch.float64) for module in (self.network, self.wider))
        outputs = self.graph.provenance.outputs
        with self.call.running():
            return same_function(
                given, self.module(target, values), *self.call.args, outputs=outputs, **self.call.kwargs
            )


def _why(widening: Widening, error: float, tolerance: float) -> str:
    """Say why a widened network does not compute the same, as far as it is known."""
    uneven = [
        f"{name!r} ({len(unit.copies)} to {len(unit.matrix)})"
        for name, unit in widening.maps.items()
        if bool((unit.copies != unit.copies[0]).any())
    ]
    told = f"the widened network does not compute the same: outputs differ by {error:.2g} of their size, tolerance "
    told += f"{tolerance:.0e}."
    if uneven:
        told += f" Some units of {list_some(uneven, 4)} have more copies than others, which a norm or a mean over them "
        return told + "counts: take a multiple of their number."
    if widening.unread:
        names = list_some([repr(name) for name in sorted(widening.unread)], 4)
        told += f" No weight reads {names}: what the model does with these, such as other frequencies of rotary "
        return told + "positions, depends on their number. Keep the size of heads, and take more of them."
    return told + " One tensor writes a space and reads it, or the architectures differ in what no tensor shows."
