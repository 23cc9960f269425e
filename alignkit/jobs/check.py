"""`check`: proof that reordering the units of a model leaves its function as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from alignkit.arguments import check_arguments
from alignkit.graph import SymmetryGraph
from alignkit.graph.proof.perturb import perturbed
from alignkit.graph.proof.verify import Equivalence, Verification, same_function, verify
from alignkit.jobs.distance import Distance, distance
from alignkit.reports import Facts, Report, Section, Table, Text
from alignkit.reports.sections import facts_section, uncovered_section
from alignkit.text import Explained, plural
from alignkit.tracing import trace


@dataclass(frozen=True, eq=False, repr=False)
class Checked(Explained):
    """A graph that was proved on a model, with ``proofs`` by the kind of weights: perturbed ones, and its own."""

    graph: SymmetryGraph
    proofs: Mapping[str, Verification]

    def __repr__(self) -> str:
        largest = max(proof.error for proof in self.proofs.values())
        return f"Checked({plural(len(self.graph.groups), 'group')}, largest change {largest:.1g})"

    def explain(self) -> str:
        """Say in a few lines what was tried and what it changed."""
        lines = [f"Passed with {kind}: {proof.explain()}" for kind, proof in self.proofs.items()]
        return "\n".join(
            (*lines, f"{plural(len(self.graph.groups), 'group')}, 10^{self.graph.log10_order:.1f} symmetries.")
        )

    def facts(self) -> dict[str, Any]:
        """Return what was measured as plain values, as JSON takes them."""
        checks = {kind: {**vars(proof), "passed": True} for kind, proof in self.proofs.items()}
        return {"groups": len(self.graph.groups), "log10_order": self.graph.log10_order, "checks": checks}

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
            (name, str(graph.unit_count(name)), group.parent or "-", str(len(graph.tensors_of(name))))
            for name, group in graph.groups.items()
        )
        passed = Text("Passed: random symmetries leave the outputs of the network as they are.")
        summary = facts_section({**(facts or {}), "symmetries": f"10^{graph.log10_order:.1f}"})
        proved = Section("Function check", (passed, measured))
        listed = Section("Groups", (Table(("group", "units", "nested in", "tensors"), groups),))
        return Report(title, (summary, proved, listed, uncovered_section(graph)))


@check_arguments
def check(
    model: nn.Module,
    *args: Any,
    graph: SymmetryGraph | None = None,
    draws: int = 3,
    seed: int = 0,
    outputs: str | Sequence[str] = (),
    **kwargs: Any,
) -> Checked:
    """Prove on a model that reordering its units leaves its function as it is.

    Random symmetries are applied to the weights and the outputs compared, in float64 where the model runs in it: once
    with noise on norms, running statistics, gates and biases, since freshly initialised ones hide mistakes, and once
    with the weights of the model as they are.

    Args:
        model: The model; it is left as it is.
        *args: Example inputs.
        graph: The graph to prove. None: what `alignkit.trace` finds.
        draws: Number of random symmetries.
        seed: Seed of the symmetries and of the noise.
        outputs: Names of the outputs that count, see `alignkit.trace`; those of the graph where there is one.
        **kwargs: Example inputs by name.

    Raises:
        VerificationError: The function changes; the message names the groups.
        TraceError: The model cannot be traced.
    """
    checked = trace(model, *args, outputs=outputs, **kwargs) if graph is None else graph
    kinds = {"perturbed weights": perturbed(model, seed), "its own weights": model}
    proofs = {kind: verify(checked, one, *args, draws=draws, seed=seed, **kwargs) for kind, one in kinds.items()}
    return Checked(checked, proofs)


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
            order = "units reordered, every tensor" if apart.same else f"not a reordering, most in {apart.differs}"
            return f"Passed: {b} computes what {a} does ({measured}). Weights: {order}."
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
    return Sameness(
        same_function(a, b, *args, outputs=graph.provenance.outputs, **kwargs), distance(graph, a, b), names
    )
