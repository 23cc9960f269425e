"""`check`: proof that the symmetries of a model leave its function as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from alignkit.arguments import check_arguments
from alignkit.graph import SymmetryGraph
from alignkit.graph.kinds import KINDS
from alignkit.graph.proof.perturb import perturbed
from alignkit.graph.proof.verify import Equivalence, Verification, same_function, verify
from alignkit.jobs.distance import Distance, distance
from alignkit.jobs.fold import Folded, fold, fold_tables
from alignkit.reports import Facts, Report, Section, Table, Text
from alignkit.reports.sections import facts_section, uncovered_section
from alignkit.text import Explained, plural
from alignkit.tracing import trace
from alignkit.tracing.tracer import Symmetries

ROUNDINGS, LARGEST_ROUNDING = 100, 0.01
"""Differences of outputs, in units in the last place of weights, that folding and rotating in their dtype explains; and
the largest that still does. A wrong symmetry changes more."""


@dataclass(frozen=True, eq=False, repr=False)
class Checked(Explained):
    """A graph that was proved on a model, with ``proofs`` by the kind of weights: perturbed ones, and its own.

    ``folded`` says what folding and balancing did to them, where the graph needs that.
    """

    graph: SymmetryGraph
    proofs: Mapping[str, Verification]
    folded: Mapping[str, Folded] = field(default_factory=dict)

    def __repr__(self) -> str:
        largest = max(proof.error for proof in self.proofs.values())
        return f"Checked({plural(len(self.graph.groups), 'group')}, largest change {largest:.1g})"

    def explain(self) -> str:
        """Say in a few lines what was tried and what it changed."""
        lines = [f"Folded {kind}: {folded.summary}" for kind, folded in self.folded.items()]
        lines += [f"Passed with {kind}: {proof.explain()}" for kind, proof in self.proofs.items()]
        return "\n".join((*lines, f"{plural(len(self.graph.groups), 'group')}, {self.graph.extent}."))

    def facts(self) -> dict[str, Any]:
        """Return what was measured as plain values, as JSON takes them."""
        graph = self.graph
        return {
            "groups": len(graph.groups),
            "log10_order": graph.log10_order,
            "dimension": graph.dimension,
            "checks": {kind: {**vars(proof), "passed": True} for kind, proof in self.proofs.items()},
            "folded": {kind: folded.facts() for kind, folded in self.folded.items()},
        }

    @check_arguments
    def report(self, title: str = "Function check", *, facts: Facts = None) -> Report:
        """Show what was measured, and the groups."""
        rows = tuple(
            (kind, f"{proof.error:.2g}", f"{proof.tolerance:.0e}", proof.dtype, str(proof.draws))
            for kind, proof in self.proofs.items()
        )
        measured = Table(("weights", "largest change", "tolerance", "run in", "symmetries tried"), rows)
        graph = self.graph
        groups = tuple(
            (
                name,
                str(graph.unit_count(name)),
                KINDS[group.kind].words,
                group.parent or "-",
                str(len(graph.tensors_of(name))),
            )
            for name, group in graph.groups.items()
        )
        passed = Text("Passed: random symmetries leave the outputs of the network as they are.")
        summary = facts_section({**(facts or {}), "symmetries": graph.extent})
        proved = Section("Function check", (passed, measured))
        listed = Section("Groups", (Table(("group", "units", "kind", "nested in", "tensors"), groups),))
        rewrites = next((fold_tables(folded) for folded in self.folded.values()), ())
        return Report(title, (summary, proved, listed, *rewrites, uncovered_section(graph)))


@check_arguments
def check(
    model: nn.Module,
    *args: Any,
    graph: SymmetryGraph | None = None,
    draws: int = 3,
    seed: int = 0,
    outputs: str | Sequence[str] = (),
    symmetries: Symmetries = "permutation",
    **kwargs: Any,
) -> Checked:
    """Prove on a model that its symmetries leave its function as it is.

    Random symmetries are applied to the weights and the outputs compared, in float64 where the model runs in it: once
    with noise on norms, running statistics, gates and biases, since freshly initialised ones hide mistakes, and once
    with the weights of the model as they are. Where the graph has folds and balances, these are carried out and proved
    before.

    Args:
        model: The model; it is left as it is.
        *args: Example inputs.
        graph: The graph to prove. None: what `alignkit.trace` finds.
        draws: Number of random symmetries.
        seed: Seed of the symmetries and of the noise.
        outputs: Names of the outputs that count, see `alignkit.trace`; those of the graph where there is one.
        symmetries: What is looked for where no graph is given, see `alignkit.trace`.
        **kwargs: Example inputs by name.

    Raises:
        VerificationError: The function changes; the message names the groups, or the fold.
        FoldError: The model cannot be folded.
        TraceError: The model cannot be traced.
    """
    if graph is None:
        graph = trace(model, *args, outputs=outputs, symmetries=symmetries, **kwargs)
    networks: dict[str, nn.Module] = {"perturbed weights": perturbed(model, seed), "its own weights": model}
    folded: dict[str, Folded] = {}
    if graph.folds or graph.balances:
        folded = {kind: fold(network, graph, *args, **kwargs) for kind, network in networks.items()}
        networks |= {kind: done.network for kind, done in folded.items() if isinstance(done.network, nn.Module)}
    proofs = {
        kind: verify(graph, network, *args, draws=draws, seed=seed, **kwargs) for kind, network in networks.items()
    }
    return Checked(graph, proofs, folded)


@dataclass(frozen=True, eq=False, repr=False)
class Sameness(Explained):
    """Whether two networks compute the same (outputs), and one is the other with its units reordered (weights)."""

    equivalence: Equivalence
    distance: Distance
    names: tuple[str, str] = ("A", "B")

    @property
    def same(self) -> bool:
        """Whether the outputs differ by no more than rounding."""
        return self.equivalence.same

    def __repr__(self) -> str:
        return f"Sameness(same={self.same}, outputs differ by {self.equivalence.error:.2g}, {self.distance!r})"

    def explain(self) -> str:
        """Say in a line or two what was measured."""
        (a, b), apart, runs = self.names, self.distance, self.equivalence
        measured = f"outputs differ by {runs.error:.2g} of their size, tolerance {runs.tolerance:.0e} in {runs.dtype}"
        if self.same:
            return f"Passed: {b} computes what {a} does ({measured}). Weights: {apart.verdict}."
        where = f"after alignment the tensor that differs most is {apart.differs!r}"
        if apart.same:
            where = f"its units are those of {a} in another order that the model does not allow"
        return f"{b} does not compute what {a} does: {measured}; {where}."

    def facts(self) -> dict[str, Any]:
        """Return what was measured as plain values, as JSON takes them."""
        return {
            "same_function": self.same,
            "error": self.equivalence.error,
            "tolerance": self.equivalence.tolerance,
            "same_up_to_permutation": self.distance.same,
            "differs": self.distance.differs,
        }

    @check_arguments
    def report(self, title: str = "Two networks", *, facts: Facts = None) -> Report:
        """Show how far outputs and weights are apart."""
        return self.distance.report(title, facts={**(facts or {}), "outputs": self.explain()})


@check_arguments
def check_same(
    graph: SymmetryGraph, a: nn.Module, b: nn.Module, *args: Any, names: tuple[str, str] = ("A", "B"), **kwargs: Any
) -> Sameness:
    """Run two networks of one architecture on an example call, and hold their weights against each other.

    Args:
        graph: Their graph.
        a: The first network.
        b: The second network.
        *args: Example inputs.
        names: What the two are called.
        **kwargs: Example inputs by name.

    Raises:
        VerificationError: The outputs cannot be compared.
        BindError: A network does not fit the graph.
    """
    runs = same_function(a, b, *args, outputs=graph.provenance.outputs, **kwargs)
    is_rewritten = graph.folds or graph.balances or any(map(graph.rotates, graph.groups))
    if is_rewritten:
        eps = max(torch.finfo(t.dtype).eps for t in a.parameters() if t.is_floating_point())
        runs = replace(runs, tolerance=max(runs.tolerance, min(LARGEST_ROUNDING, ROUNDINGS * eps)))
    return Sameness(runs, distance(graph, a, b), names)
