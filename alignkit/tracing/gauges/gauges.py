"""Gauges: the verdicts of the second pass in the terms of a graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from alignkit.graph.kinds import KINDS
from alignkit.graph.nodes import AxisPositions, SpaceLimit
from alignkit.graph.rewrites import AxisOf, Balance, Blocked, Fold, Gain, OutputScale, Through, Zero
from alignkit.tracing.gauges.facets import Findings
from alignkit.tracing.gauges.turns import Turn
from alignkit.tracing.gauges.verdicts import folds_of_biases, judge
from alignkit.tracing.interpreter import LabelledStep
from alignkit.tracing.labels.writes import Key
from alignkit.tracing.reading.axes import GroupKey
from alignkit.tracing.reading.sign_families import sign_name


@dataclass(frozen=True)
class Gauges:
    """What a traced model has beside permutations.

    Attributes:
        marks: The mark of the kind of each group that has one.
        signs: For groups whose units may change their sign at some places only, these places; by name.
        constants: Gains and scales of spaces that rotate: once folded they are 1 at each unit, and stay.
        folds: What has to be done to weights first.
        balances: Spaces whose scales or matrices may be moved.
        blocked: Parameters that cannot be folded.
        limits: What keeps each space from more.
        lost: Values whose rotary embeddings have to stay, because their planes cannot be turned.
        contracted: Positions of parameters that read a space.
    """

    marks: Mapping[GroupKey, str]
    signs: Mapping[str, tuple[AxisOf, ...]]
    constants: tuple[str, ...]
    folds: tuple[Fold, ...]
    balances: tuple[Balance, ...]
    blocked: tuple[Blocked, ...]
    limits: tuple[SpaceLimit, ...]
    lost: frozenset[Key]
    contracted: tuple[AxisPositions, ...] = ()


def find_gauges(
    findings: Findings,
    names: Mapping[GroupKey, str],
    history: Iterable[LabelledStep],
    refuted: Mapping[str, frozenset[str]],
    before: Gauges,
) -> Gauges:
    """Judge all spaces, and write the verdicts with the names of groups.

    Args:
        findings: What the laws found.
        names: The names of groups and stacks.
        history: The steps with their labels.
        refuted: What was tried of groups, by name, and changed the outputs, see `refute`.
        before: What was found of the same run with more rotary embeddings replaced.
    """
    places = {
        group: f"{names[stack]}.{i}" for stack in names if isinstance(stack, tuple) for i, group in enumerate(stack)
    }
    group_names = {group: name for group, name in names.items() if isinstance(group, int)} | places
    known = {space: group_names.get(space, "") for space in findings.spaces.leaves}
    verdicts = judge(findings, known, refuted)
    taken = {*names.values(), *findings.shapes}
    signs = {
        known[space]: verdict.odd
        for space, verdict in verdicts.items()
        if verdict.odd and space in names and space not in places and sign_name(known[space]) not in taken
    }
    marks: dict[GroupKey, str] = {}
    for group in names:
        kinds = {verdicts[g].kind for g in ((group,) if isinstance(group, int) else group) if g in verdicts}
        kind = next(iter(kinds)) if len(kinds) == 1 else None
        if kind is not None:
            marks[group] = KINDS[kind].mark
    fixed = {space for space, verdict in verdicts.items() if verdict.kind is None}
    turns = (x for x in history if isinstance(x.step, Turn))
    keys = {
        ref.key
        for turn in turns
        for ref in turn.step.inputs
        if any(part.space in fixed for part in findings.spaces.parts(turn.operands[ref.key]))
    }
    limits = [limit for limit in before.limits if limit.kind == "fixed"]
    limits += [SpaceLimit(known[space], verdict.kind or "fixed", verdict.reason) for space, verdict in verdicts.items()]
    order = list(names.values())
    biases = tuple(folds_of_biases(findings, known, refuted))
    rotating = [verdict for verdict in verdicts.values() if verdict.kind is not None and KINDS[verdict.kind].rotates]
    return Gauges(
        marks,
        signs,
        tuple(_vector_of(fold) for v in rotating for fold in v.folds if isinstance(fold, Gain | OutputScale)),
        (*dict.fromkeys(fold for verdict in verdicts.values() for fold in verdict.folds), *biases),
        tuple(_without(balance, biases) for verdict in verdicts.values() for balance in verdict.balances),
        tuple(dict.fromkeys(blocked for verdict in verdicts.values() for blocked in verdict.blocked)),
        tuple(sorted((x for x in limits if x.group), key=lambda x: order.index(x.group) if x.group in order else -1)),
        before.lost | keys,
        _contracted(findings),
    )


def _contracted(findings: Findings) -> tuple[AxisPositions, ...]:
    """Return where values are multiplied with parameters and summed over a space."""
    positions: dict[tuple[str, int], set[int]] = defaultdict(set)
    for facts in findings.facts.values():
        for reading in facts.readings:
            axis = findings.spaces.segments[reading.segment].axis
            positions[axis.tensor, axis.axis].update(axis.positions(findings.shapes))
    return tuple(AxisPositions.of(*axis, sorted(read)) for axis, read in positions.items())


def _without(balance: Balance, biases: Iterable[Fold]) -> Balance:
    """Return a balance without the biases that folds set to 0, which have nothing to be balanced."""
    zero = {fold.bias for fold in biases if isinstance(fold, Zero | Through)}
    writes, reads = (tuple(at for at in side if at not in zero) for side in (balance.writes, balance.reads))
    return replace(balance, writes=writes, reads=reads)


def _vector_of(fold: Gain | OutputScale) -> str:
    return fold.gain if isinstance(fold, Gain) else fold.scale


NO_GAUGES = Gauges({}, {}, (), (), (), (), (), frozenset())
"""Permutations only."""
