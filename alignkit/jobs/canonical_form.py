"""`canonical_form`: a network in a form of its own, which all its equals share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.errors import AlignmentError, BindError
from alignkit.graph import SymmetryGraph
from alignkit.graph.bind import WeightsSource, fit_models, weights_of
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.fold import Folded, fold
from alignkit.matching.principal_axes import CanonicalForm
from alignkit.reports import Facts, Report, Section, Table
from alignkit.reports.sections import facts_section, uncovered_section
from alignkit.text import Explained, list_some, plural


@dataclass(frozen=True, eq=False, repr=False)
class Formed(Explained):
    """A network in its canonical form.

    Attributes:
        network: A module where one was given, else a dict.
        alignment: What brought the network there, folded and balanced where the graph says so.
        ties: How many units of some groups have no form: equals of the network may come out otherwise there.
    """

    network: nn.Module | dict[str, Tensor]
    alignment: Alignment
    ties: dict[str, int]

    def __repr__(self) -> str:
        return f"Formed({self.alignment.summary}, {sum(self.ties.values())} tied)"

    def explain(self) -> str:
        """Say in a few lines what was moved, and what has no form."""
        moved = f"{self.alignment.summary}."
        if not self.ties:
            return f"{moved}\nEvery unit has its place: all equals of the network come to the same form."
        counts = list_some([f"{plural(count, 'unit')} of {name}" for name, count in self.ties.items()], 5)
        return f"{moved}\nTied: {counts}. Nothing tells their order, axis or sign, and equals may come out otherwise."

    def facts(self) -> dict[str, Any]:
        """Return what was done as plain values, as JSON takes them."""
        return {"moved": self.alignment.moved(), "ties": self.ties}

    @check_arguments
    def report(self, title: str = "A network in its canonical form", *, facts: Facts = None) -> Report:
        """List the groups, how many of their units moved, and how many are tied."""
        moved = self.alignment.moved()
        rows = tuple((name, str(count), str(self.ties.get(name, 0))) for name, count in moved.items())
        groups = Section("Groups", (Table(("group", "units moved", "tied"), rows),))
        return Report(title, (facts_section(facts or {}), groups, uncovered_section(self.alignment.graph)))


@check_arguments
def canonical_form(network: WeightsSource | Folded, graph: SymmetryGraph, *, tolerance: float = 1e-6) -> Formed:
    """Bring a network to a form that does not depend on which of all its equals is given; it computes the same.

    It is folded and balanced where the graph says so. Units are sorted by sums over their weights that no symmetry
    changes, spaces that rotate turned to their principal axes, and signs and phases chosen such that more of the weight
    of each unit is positive. No other network is looked at: of two networks that differ by noise the forms may be far
    apart, and `alignkit.canonicalize` brings networks to a reference instead.

    Args:
        network: A module, a state dict or a checkpoint path, or what `alignkit.fold` made of it. It is left as it is.
        graph: Its graph.
        tolerance: Numbers that differ by less than this share of the largest of them do not tell units apart.

    Raises:
        BindError: The network does not fit the graph.
        FoldError: It cannot be folded.
        AlignmentError: The tolerance is negative, or a rotation overflows the dtype of a tensor.
    """
    if not tolerance >= 0:
        raise AlignmentError(f"tolerance is {tolerance}: give a number from 0 on, such as 1e-6.")
    if isinstance(network, Folded):
        source: WeightsSource = network.network
    else:
        source = fold(network, graph).network if graph.folds or graph.balances else network

    (weights,) = fit_models(graph, {"the network": source}, BindError, "the network does not fit the graph")
    form = CanonicalForm.of(graph, weights, tolerance)
    moved = form.alignment.apply(source if isinstance(source, nn.Module) else weights_of(source))
    return Formed(moved, form.alignment, form.ties)
