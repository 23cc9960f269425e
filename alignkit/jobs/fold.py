"""`fold`: a network rewritten so that more of its symmetries can be used. It computes the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.errors import FoldError
from alignkit.graph import SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.rewrites import Fold
from alignkit.graph.stored import Budget, StoredNetwork, parse_memory
from alignkit.graph.stored.opening import open_as_given
from alignkit.jobs.rewritten import FoldCheck, Rewriting
from alignkit.reports import Facts, Report, Section, Table, Text
from alignkit.reports.sections import facts_section, number
from alignkit.rewriting import (
    BalancedSpace,
    FoldedNetwork,
    Taken,
    balance_weights,
    fold_weights,
    folding_bytes,
    follow_balances,
    unfold_weights,
)
from alignkit.text import Explained, list_some, plural


@dataclass(frozen=True, eq=False, repr=False)
class Folded(Explained):
    """A folded network.

    Attributes:
        network: A module where one was given, else a dict; with a limit of memory a network that stays on disk.
        graph: The graph whose folds were done.
        spaces: Spaces that were balanced.
        check: The function check; None where the network was not run.
        taken: What folds took out of the network, which `unfold` puts back.
        untied: Heads that were tied to an embedding, whose name stands beside them, and became tensors of their own.
        like: What folding made of the base of a fine-tune, as which it was balanced.
    """

    network: nn.Module | Mapping[str, Tensor]
    graph: SymmetryGraph
    spaces: tuple[BalancedSpace, ...]
    check: FoldCheck | None
    taken: Taken
    untied: Mapping[str, str]
    like: Folded | None = None

    @property
    def added(self) -> int:
        """Numbers that the network has more than before: those of untied heads."""
        return sum(prod(self.graph.tensors[name].shape) for name in self.untied)

    def __repr__(self) -> str:
        return f"Folded({plural(len(self.graph.folds), 'fold')}, {plural(len(self.spaces), 'balanced space')})"

    @property
    def done(self) -> list[str]:
        """What was folded and what was balanced, in a sentence each."""
        lines = [f"{count_folds(self.graph.folds)}."]
        if balanced := [space for space in self.spaces if space.biases is None]:
            empty = sum(space.empty for space in balanced)
            told = f" {plural(empty, 'unit or direction', 'units or directions')} had an empty side." if empty else ""
            before, after = (sum(getattr(space, key) for space in balanced) for key in ("before", "after"))
            squares = f"their sum of squares {before:.6g} -> {after:.6g}"
            lines.append(f"{plural(len(balanced), 'space')} balanced, {squares}.{told}")
        if phases := [space for space in self.spaces if space.biases is not None]:
            moved = plural(sum(space.moved for space in phases), "bias", "biases")
            lines.append(f"Phases of {plural(len(phases), 'space')}: {moved} moved by half periods.")
        return lines

    @property
    def remarks(self) -> list[str]:
        """Heads that were untied, and what could not be folded, each with the reason."""
        untied = self.untied.items()
        sizes = f"{self.added} numbers more"
        return [f"{head} is no longer tied to {source}: {sizes}." for head, source in untied] + [
            str(blocked) for blocked in self.graph.blocked
        ]

    @property
    def summary(self) -> str:
        """What was done and what it did to the outputs, in a line."""
        return " ".join([*self.done, *([] if self.check is None else [f"Its {self.check.explain()}."])])

    def explain(self) -> str:
        """Say in a few lines what was done, what was not, and what it did to the outputs."""
        why = "holds the whole network" if isinstance(self.network, StoredNetwork) else "runs the network on inputs"
        checked = f"not done, it {why}" if self.check is None else self.check.explain()
        return "\n".join([*self.done, *self.remarks, f"Function check: {checked}."])

    def facts(self) -> dict[str, Any]:
        """Return what was done and measured as plain values, as JSON takes them."""
        return {
            "folds": list(map(str, self.graph.folds)),
            "blocked": list(map(str, self.graph.blocked)),
            "balanced": [
                {
                    "group": s.balance.group,
                    "kind": s.balance.kind,
                    "before": s.before,
                    "after": s.after,
                    "empty": s.empty,
                    "moved": s.moved,
                }
                for s in self.spaces
            ],
            "untied": dict(self.untied),
            "numbers_added": self.added,
            "function_error": None if self.check is None else self.check.exact.error,
            "rounding_error": None if self.check is None else self.check.rounded.error,
        }

    @check_arguments
    def report(self, title: str = "A folded network", *, facts: Facts = None) -> Report:
        """List folds and balanced spaces, what could not be folded, and what running the network showed."""
        summary = facts_section(
            {**(facts or {}), "folds": str(len(self.graph.folds)), "numbers added": str(self.added)}
        )
        kept = list(map(str, self.graph.blocked))
        checked = "Not done." if self.check is None else f"Passed: {self.check.explain()}."
        return Report(
            title,
            (
                summary,
                Section("Function check", (Text(checked),)),
                *fold_tables(self),
                Section("What was not folded", tuple(map(Text, kept or ["Nothing."]))),
            ),
        )

    @check_arguments
    def unfold(self, network: nn.Module | Mapping[str, Tensor] | None = None) -> nn.Module | dict[str, Tensor]:
        """Put the gains, shifts, biases and means that were taken out back into a folded network.

        Args:
            network: A folded network of this graph, such as an average of two. None: this one. Untied heads stay
                untied, and balanced spaces balanced.

        Returns:
            A module where one was given, else a dict; in its dtypes. It computes the same as before.

        Raises:
            FoldError: A gain was 0, the network does not fit the graph, or it was folded on disk.
        """
        if isinstance(self.network, StoredNetwork):
            raise FoldError("a network that stays on disk is not unfolded: fold it in memory, without memory=.")
        work = Rewriting(self.network if network is None else network, self.graph)
        unfold_weights(work.wide, self.taken)
        return work.result()


def fold_tables(folded: Folded) -> tuple[Section, ...]:
    """List folds and balanced spaces, as sections of a report."""
    folds = tuple((type(fold).__name__, str(fold)) for fold in folded.graph.folds)
    spaces = tuple(
        (s.balance.group, s.balance.kind.replace("_", " "), number(s.before), number(s.after), str(s.empty),
         str(s.moved))
        for s in folded.spaces
    )  # fmt: skip
    columns = ("space", "kind", "sum of squares before", "after", "empty", "moved")
    return (
        Section("Folds", (Table(("fold", "what it did"), folds) if folds else Text("None."),)),
        Section("Balanced spaces", (Table(columns, spaces) if spaces else Text("None."),)),
    )


def count_folds(folds: Iterable[Fold]) -> str:
    """Say how many folds of each class there are: ``"3 folds: 1 Untie, 2 Gain"``."""
    kinds = [type(fold).__name__ for fold in folds]
    counts = list_some([f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)])
    return plural(len(kinds), "fold") + (f": {counts}" if kinds else "")


@check_arguments
def fold(
    network: WeightsSource,
    graph: SymmetryGraph,
    *args: Any,
    balance: bool = True,
    like: Folded | None = None,
    model: nn.Module | None = None,
    memory: int | str | None = None,
    scratch: str | Path | None = None,
    **kwargs: Any,
) -> Folded:
    """Carry out the folds of a graph on one network, and balance its spaces. It computes the same.

    Everything is computed in float64 and rounded once, to the dtype that each tensor has. Where there is a module it is
    run before and after.

    Args:
        network: A module, a state dict or a checkpoint path. It is left as it is.
        graph: Its graph, whose folds are done.
        *args: Example inputs for the function check; a single dict holds inputs by name. None: random ones of the
            shapes that the graph was traced with, where it was.
        balance: Whether scales and matrices between the two sides of a space are moved to the one place at which both
            sides are alike, and biases of sine units by half periods to the nearest of 0. Two networks that differ by
            them are then alike up to signs, phases of planes and rotations.
        like: What folding made of the base of this network, if it is a fine-tune. Spaces get the scales and matrices
            that balanced the base, so that the difference of the two is what was tuned and nothing else. Where a
            fine-tune was balanced before it is left so, and one that has scales of its own is balanced by itself.
        model: A module of the architecture that is run for the function check, where the network is not one.
        memory: With a limit the network, a checkpoint then, stays on disk: tensors that folds and balances link are
            rewritten together when one of them is asked for. Nothing is run.
        scratch: With a limit of memory an empty folder for what was rewritten, so that nothing is twice: as much as the
            network at most. Who gives it removes it when the folded network is not needed any more.
        **kwargs: Example inputs by name.

    Raises:
        BindError: A checkpoint on disk does not fit the graph.
        FoldError: The network does not fit the graph, holds whole numbers where something is to be folded, a shift
            cannot be divided by a gain of 0, or a number overflows its dtype; the base was folded for another graph; or
            the limit of memory does not suffice.
        VerificationError: The folded network does not compute the same, so the graph is wrong; the fold is named.
    """
    if like is not None and like.graph != graph:
        raise FoldError("the base was folded for another graph than this network. Trace once, and fold both with it.")
    if memory is not None:
        if args or kwargs or model is not None:
            raise FoldError("a function check holds the whole network: leave its inputs out, or memory=.")
        sources = open_as_given(graph, {"the network": network}, Budget(limit := parse_memory(memory)))
        left = limit - folding_bytes(sources, graph.balances if balance else ())
        place = None if scratch is None else Path(scratch)
        return fold_stored(sources[0].within(Budget(left)), graph, balance=balance, like=like, scratch=place)
    work = Rewriting(network, graph)
    taken = fold_weights(work.wide, graph.folds)
    if like is not None:
        spaces = follow_balances(work.wide, graph, like.spaces)
    else:
        spaces = balance_weights(work.wide, graph) if balance else []
    return Folded(work.result(), graph, tuple(spaces), work.check(model, args, kwargs), taken, work.untied, like)


def fold_stored(
    source: StoredNetwork,
    graph: SymmetryGraph,
    *,
    balance: bool = True,
    like: Folded | None = None,
    dtype: torch.dtype | None = None,
    scratch: Path | None = None,
) -> Folded:
    """Fold a network that stays on disk; see `fold`. Tensors that are narrower than a dtype are widened to it."""
    spaces = None if like is None else like.spaces
    network = FoldedNetwork(source, graph.balances if balance else (), spaces, dtype, scratch)
    return Folded(network, graph, network.spaces, None, network.taken, network.untied, like)


def folded_like(base: Folded, tuned: WeightsSource | Folded) -> WeightsSource:
    """Return a fine-tune folded and balanced as its base was, so that what lies between the two is what was tuned.

    Raises:
        FoldError: It was balanced by itself, or for another graph, or cannot be folded.
    """
    origin = base if base.like is None else base.like
    if not isinstance(tuned, Folded):
        memory = base.network.budget.memory if isinstance(base.network, StoredNetwork) else None
        return fold(tuned, base.graph, like=origin, memory=memory).network
    if tuned.graph != base.graph or (base.spaces and tuned is not base and tuned.like is not origin):
        raise FoldError(
            "the fine-tune was not folded as its base was, so that more lies between the two than what was tuned: give "
            "it as it was trained, or alignkit.fold(tuned, graph, like=base)."
        )
    return tuned.network
