"""Gauges: the verdicts of the second pass in the terms of a graph."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from alignkit.graph.kinds import KINDS
from alignkit.graph.nodes import AxisPositions, SpaceLimit
from alignkit.graph.rewrites import AxisOf, Balance, Blocked, Fold, Gain, OutputScale, Phase, Through, Zero
from alignkit.tracing.gauges.facets import Findings
from alignkit.tracing.gauges.turns import Turn
from alignkit.tracing.gauges.verdicts import Verdict, folds_of_biases, judge
from alignkit.tracing.interpreter import LabelledStep
from alignkit.tracing.labels.writes import Key
from alignkit.tracing.reading.axes import GroupKey

SignPlaces: TypeAlias = tuple[tuple[AxisOf, ...], ...]
"""The places at which units may change a sign, for each of the signs that they have."""
ONE_KIND = "the groups of a stack have one kind"


@dataclass(frozen=True)
class Gauges:
    """What a traced model has beside permutations.

    Attributes:
        marks: The mark of the kind of each group that has one.
        signs: For groups whose units may change signs at some places only, these places for each sign; by name.
        lone: Groups at one place of a stack that tensors mention by themselves, with the name of those of the stack.
        constants: Gains and scales of spaces that rotate: once folded they are 1 at each unit, and stay.
        folds: What has to be done to weights first.
        balances: Spaces whose scales or matrices may be moved.
        phases: Biases of sine units that half periods may move.
        blocked: Parameters that cannot be folded.
        limits: What keeps each space from more.
        lost: Values whose rotary embeddings have to stay, because their planes cannot be turned.
        contracted: Positions of parameters that read a space.
    """

    marks: Mapping[GroupKey, str]
    signs: Mapping[str, SignPlaces]
    lone: Mapping[str, str]
    constants: tuple[str, ...]
    folds: tuple[Fold, ...]
    balances: tuple[Balance, ...]
    phases: tuple[Phase, ...]
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
    stack_of = {group: names[stack] for stack in names if isinstance(stack, tuple) for group in stack}
    signs, marks = dict[str, SignPlaces](), dict[GroupKey, str]()
    fixed = {space for space, verdict in verdicts.items() if verdict.kind is None}
    for key, name in sorted(names.items(), key=lambda item: isinstance(item[0], int)):  # stacks, then parts of them
        spaces = [space for space in ((key,) if isinstance(key, int) else key) if space in verdicts]
        places_of_signs = _signs_of_all([verdicts[space] for space in spaces], findings)
        if len({verdicts[space].kind for space in spaces}) > 1 or places_of_signs is None:
            verdicts |= {space: replace(verdicts[space], kind="permutation", reason=ONE_KIND) for space in spaces}
        elif places_of_signs and key not in stack_of:
            signs[name] = places_of_signs
        kind = verdicts[spaces[0]].kind if spaces else None
        if kind is not None:
            marks[key] = KINDS[kind].mark
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
        {name: stack_of[key] for key, name in names.items() if isinstance(key, int) and key in stack_of},
        tuple(_vector_of(fold) for v in rotating for fold in v.folds if isinstance(fold, Gain | OutputScale)),
        (*dict.fromkeys(fold for verdict in verdicts.values() for fold in verdict.folds), *biases),
        tuple(_without(balance, biases) for verdict in verdicts.values() for balance in verdict.balances),
        tuple(phase for verdict in verdicts.values() for phase in verdict.phases),
        tuple(dict.fromkeys(blocked for verdict in verdicts.values() for blocked in verdict.blocked)),
        tuple(sorted((x for x in limits if x.group), key=lambda x: order.index(x.group) if x.group in order else -1)),
        before.lost | keys,
        _contracted(findings),
    )


def _signs_of_all(verdicts: Sequence[Verdict], findings: Findings) -> SignPlaces | None:
    """Return the places of signs that all groups of a stack have alike, None where they differ."""
    if len({len(verdict.signs) for verdict in verdicts}) > 1:
        return None
    spaces = defaultdict[AxisOf, set[int]](set)
    for segment in findings.spaces.segments:
        spaces[segment.axis].add(segment.space)
    together = [Counter(at for axes in same for at in axes) for same in zip(*(v.signs for v in verdicts), strict=True)]
    alike = all(count == len(spaces[axis]) for axes in together for axis, count in axes.items())
    return tuple(tuple(axes) for axes in together) if alike else None


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


NO_GAUGES = Gauges({}, {}, {}, (), (), (), (), (), (), frozenset())
"""Permutations only."""
