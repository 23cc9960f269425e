"""From findings to the kinds of groups, folds and balances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod

from alignkit.graph.kinds import PLANES, GroupKind
from alignkit.graph.rewrites import (
    AxisOf,
    Balance,
    BalanceKind,
    Blocked,
    Fold,
    Gain,
    Mean,
    OutputScale,
    Phase,
    Shift,
    Through,
    Zero,
    axes_between,
)
from alignkit.tracing.gauges.degrees import Form, combine, is_even, odd_solutions, rest_modulo, solutions
from alignkit.tracing.gauges.facets import MEAN_KEEPING, Added, Findings, Norm, SpaceFacts, SpaceReading
from alignkit.tracing.reading.axes import GroupKey, groups_on

SIGNS, PHASES = "signs", "phases"
"""What is tried of a space beside its kind: signs that its units own, and half periods of its biases."""
LARGEST_FIRST: tuple[GroupKind, ...] = ("orthogonal", "centred", "planes", "adjacent_planes")


@dataclass(frozen=True)
class Verdict:
    """What the second pass concludes about one space.

    ``kind`` is None where nothing but positions stays, as for rotary planes with a gain: the space is no group then.
    ``reason`` says what keeps it from more. ``signs`` are the places at which units of a space that is permuted may
    change their sign, where they may at some places only, or have several signs: one entry a sign.
    """

    kind: GroupKind | None
    reason: str = ""
    folds: tuple[Fold, ...] = ()
    balances: tuple[Balance, ...] = ()
    phases: tuple[Phase, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    signs: tuple[tuple[AxisOf, ...], ...] = ()


def judge(findings: Findings, names: Mapping[int, str], refuted: Mapping[str, frozenset[str]]) -> dict[int, Verdict]:
    """Return the verdict on each space.

    Args:
        findings: What the laws found.
        names: The names of spaces.
        refuted: What was tried of groups, by name, and changed the outputs, see `refute`.
    """
    segments: dict[int, list[int]] = defaultdict(list)
    for number, segment in enumerate(findings.spaces.segments):
        segments[segment.space].append(number)
    judges = {s: _Judge(findings, s, findings.facts[s], segments[s], names[s]) for s in findings.spaces.leaves}
    # A norm over several spaces stays as a whole.
    blocked = [blocked for judge in judges.values() for blocked in judge.find_blocked()]
    for judge in judges.values():
        judge.blocked = tuple(one for one in dict.fromkeys(blocked) if one.tensor in judge.gains)
    return {space: judge.verdict(refuted.get(judge.name, frozenset())) for space, judge in sorted(judges.items())}


@dataclass
class _Judge:
    findings: Findings
    space: int
    facts: SpaceFacts
    segments: list[int]
    name: str
    blocked: tuple[Blocked, ...] = ()

    def verdict(self, refuted: frozenset[str]) -> Verdict:
        """Decide on the kind, and collect folds and balances."""
        blocked = self.blocked
        rotates = not blocked and "folds" not in refuted
        admitted = self.facts.kinds - refuted if rotates else frozenset()
        has_turns = any(cause.op == "alignkit.rotary" for _, cause in self.facts.causes)
        kind = next((kind for kind in LARGEST_FIRST if kind in admitted and (kind in PLANES) == has_turns), None)
        reasons = [f"as {kind} it changes the outputs" for kind in LARGEST_FIRST if kind in refuted]
        reasons += ["its folds change the outputs"] * ("folds" in refuted)
        reasons += [str(one).rstrip(".") for one in blocked]
        lost: GroupKind = "orthogonal" if kind else "centred"  # the smallest kind that it could have beside its own
        reasons += [str(cause) for kinds, cause in self.facts.causes if lost in kinds]
        reason = "" if kind == "orthogonal" else next(iter(reasons), "")
        is_balanced = "balances" not in refuted
        if kind is not None:
            balances = self._balances_of_rotations(kind) if is_balanced else ()
            return Verdict(kind, reason, self._folds(), balances)
        if has_turns:
            return Verdict(None, reason, blocked=blocked)
        equations = self.facts.equations + self.facts.of_signs
        signed = not self.facts.unknown and bool(self.segments) and is_even(equations, self.segments)
        folds = () if "folds" in refuted else self._folds()
        # What a fold leaves at 1 has no sign of its own.
        left = {fold.gain for fold in folds if isinstance(fold, Gain)}
        left |= {fold.scale for fold in folds if isinstance(fold, OutputScale)}
        signed = signed and "signed" not in refuted and left.isdisjoint(self._axis(s).tensor for s in self.segments)
        balances = self._balances() if is_balanced else ()
        phases, stay = self._phases()
        if PHASES in refuted:
            phases, stay = (), "its phases change the outputs"
        reason = "; ".join(filter(None, (reason, stay)))
        signs = () if refuted & {"signed", SIGNS} else self._signs(balances)
        everywhere = set(self._axes(self.segments))
        factors = [balance for balance in balances if balance.kind == "monomial"]
        if (
            signed
            and len(odd_solutions(*self._equations_of_signs())) < 2
            and all({*balance.writes, *balance.reads} == everywhere for balance in factors)
        ):  # units have one sign, which changes at all places at once
            return Verdict("signed", reason, folds, balances, phases, blocked)
        return Verdict("permutation", reason, folds, balances, phases, blocked, signs)

    def _signs(self, balances: Iterable[Balance]) -> tuple[tuple[AxisOf, ...], ...]:
        """Return where units may change each of their signs; nothing where signs are not free.

        Gains of norms and scales keep their sign: that of a gain and of all that reads it may be chosen. So may signs
        between the two sides of a balance, which are chosen there if anything tells them.
        """
        if self.facts.unknown:
            return ()
        odd = odd_solutions(*self._equations_of_signs())
        chosen, telling = [], set[int]()
        for balance in balances:
            places = {segment for segment in self.segments if self._axis(segment) in (*balance.writes, *balance.reads)}
            tell = self._telling(places, balance.writes, frozenset().union(*odd))
            if balance.kind == "monomial" and tell:
                chosen.append(frozenset(places))
                telling |= tell
        left = rest_modulo(odd, chosen, telling)
        return tuple(self._axes(sorted(places)) for places in left)

    def _telling(self, places: Collection[int], writes: Collection[AxisOf], odd: frozenset[int]) -> set[int]:
        """Return the segments of a balance that tell the sign of its factors, see `alignkit.rewriting.unit_signs`.

        Args:
            places: All segments of the balance.
            writes: The axes that write its space.
            odd: Segments that have signs.
        """
        axes = self.findings.spaces.traced.axes

        def beside(segment: int) -> list[tuple[int, list[GroupKey]]]:
            tensor, own = self._axis(segment).tensor, self._axis(segment).axis
            sizes = self.findings.shapes[tensor]
            return [(sizes[at], groups_on(axis)) for at, axis in enumerate(axes[tensor]) if at != own]

        between = axes_between(self._axes(places))
        alone = {segment for segment in places if self._axis(segment).tensor not in between}
        others = [beside(segment) for segment in self.segments if segment not in odd and segment not in places]
        written = {segment for segment in alone if self._axis(segment) in writes and beside(segment) in others}
        return written | {segment for segment in alone if not any(groups for _, groups in beside(segment))}

    def _equations_of_signs(self, turning: Collection[int] = ()) -> tuple[list[Form], list[int]]:
        """Return what signs of segments have to fulfil, and all unknowns, those last that follow from others.

        Args:
            turning: Unknowns of biases that move by half periods; all others stay.
        """
        vectors = self.gains | self._scales()
        still = self.facts.gains | {segment for segment in self.segments if self._axis(segment).tensor in vectors}
        equations = [*self.facts.equations, *self.facts.of_signs]
        mentioned = {segment for form in equations for segment, _ in form}
        known = mentioned.union(segment for form in self.facts.of_scales for segment, _ in form)
        still |= set(self.segments) - known  # nothing is known of it
        still |= mentioned.difference(self.segments)  # it is another space's
        equations += [((segment, 1),) for segment in sorted(still.difference(turning))]
        read = {reading.segment for reading in self.facts.readings}  # has the signs of all factors that it reads
        return equations, sorted(mentioned.union(self.segments), key=lambda segment: (segment in read, segment))

    def _phases(self) -> tuple[tuple[Phase, ...], str]:
        """Return the biases that half periods move, and what keeps others that reach sines from it."""
        trails, phases, stays = self.findings.trails, [], {}
        for segment in self.segments:
            reached = {bias: unknown for bias, unknown in trails.unknowns.items() if bias.segment == segment}
            if segment in trails.stuck:
                if reached or self.space in trails.without:
                    stays[segment] = str(trails.stuck[segment])
            elif reached:
                slowest = min(reached, key=lambda bias: abs(bias.frequency))
                reads = None if self.facts.unknown else self._turned(segment, reached, slowest)
                if reads is None:
                    stays[segment] = "no signs of what reads its units make up for it"
                else:
                    phases.append(Phase(self.name, self._axis(segment), reads, slowest.frequency, slowest.factors))
        said = (f"{self._axis(at).tensor} does not move by half periods: {why}" for at, why in stays.items())
        return tuple(phases), next(said, "")

    def _turned(self, segment: int, reached: Mapping[Added, int], slowest: Added) -> tuple[AxisOf, ...] | None:
        """Return the axes that change their sign with half a period of a bias; None where none can.

        Args:
            segment: The bias.
            reached: The frequencies with which it reached sines, with their unknowns.
            slowest: The lowest of them. All others have to be multiples of it.
        """
        if not all(isfinite(bias.frequency) for bias in reached):
            return None
        times = {unknown: bias.frequency / slowest.frequency for bias, unknown in reached.items()}
        counts = [len(list(self._axis(segment).positions(self.findings.shapes)))]
        sizes = [prod(self.findings.shapes.get(name, ())) for name in slowest.factors]
        if any(bias.factors != slowest.factors for bias in reached) or not {*sizes} <= {1, *counts}:
            return None
        if any(not time.is_integer() for time in times.values()):
            return None
        first, turning = reached[slowest], set(reached.values())
        equations, unknowns = self._equations_of_signs(turning)
        equations += [((segment, 1),)]  # the bias moves, and does not change its sign
        for unknown, time in times.items():
            equations.append(combine([(1, ((unknown, 1),)), (int(time) % 2, ((first, 1),))]))
        ordered = [first, *(unknown for unknown in unknowns if unknown != first)]
        turned = next((odd for odd in odd_solutions(equations, ordered) if first in odd), None)
        return None if turned is None else self._axes(sorted(turned - turning))

    @property
    def gains(self) -> set[str]:
        """The gains of the norms of this space."""
        return {norm.gain for norm in self._norms()}

    def _scales(self) -> set[str]:
        """Return the scales behind what writes this space, such as those of LayerScale."""
        return {scale for space, scale, _ in self.findings.output_scales if space == self.space}

    def _scaled(self) -> dict[str, set[int]]:
        """Return all that writes this space before each scale; without those that multiply something else as well."""
        elsewhere = {scale for space, scale, _ in self.findings.output_scales if space != self.space}
        elsewhere |= {norm.gain for _, norm in self.findings.norms}
        scaled: dict[str, set[int]] = {}
        for _, scale, writers in self.findings.output_scales:
            if scale not in elsewhere:
                scaled.setdefault(scale, set()).update(writers)
        return scaled

    def _norms(self) -> list[Norm]:
        return [norm for space, norm in self.findings.norms if space == self.space]

    def _readings(self, norm: Norm) -> list[SpaceReading]:
        return [r for r in self.facts.readings if r.facet.norm is not None and r.facet.norm.gain == norm.gain]

    def find_blocked(self) -> tuple[Blocked, ...]:
        """Return the norms whose gain something in this space keeps from being folded."""
        blocked = []
        for norm in self._norms():
            readings = self._readings(norm)
            reason = self.findings.blocked.get(norm.number)
            for reading in readings:
                tensor = self._axis(reading.segment).tensor
                others = [r for r in self.facts.readings if r.segment == reading.segment and r not in readings]
                if reading.segment in self.findings.used_otherwise:
                    reason = reason or ("tied", tensor)
                elif others:
                    reason = reason or ("not_contracted", others[0].where)
                elif self.findings.place_for(reading.segment, norm.gain) is None:
                    reason = reason or ("not_contracted", reading.where)
            if not readings:
                reason = reason or ("not_contracted", norm.where)
            if reason is not None:
                blocked.append(Blocked(norm.gain, reason[0], reason[1]))
        return tuple(dict.fromkeys(blocked))

    def _axis(self, segment: int) -> AxisOf:
        return self.findings.spaces.segments[segment].axis

    def _axes(self, segments: Iterable[int]) -> tuple[AxisOf, ...]:
        return tuple(dict.fromkeys(self._axis(segment) for segment in segments))

    def _folds(self) -> tuple[Fold, ...]:
        """Return the folds of the norms, scales and means of a space."""
        folds: list[Fold] = []
        shifts, places_taken = set(), set[AxisOf]()
        stay = {blocked.tensor for blocked in self.blocked}
        for norm in {norm.gain: norm for norm in self._norms() if norm.gain not in stay}.values():
            places = ((self.findings.place_for(r.segment, norm.gain), r.bias) for r in self._readings(norm))
            biases = {place: bias for place, bias in places if place is not None}
            shift = norm.shift
            if shift is not None and all(biases.values()):
                folds.append(Shift(shift, tuple((reader, bias) for reader, bias in biases.items() if bias)))
                shift = None
            if shift is not None:
                shifts.add(norm.gain)
            folds.append(Gain(norm.gain, tuple(biases), norm.offset, shift))
        for scale, writers in self._scaled().items():
            scaled = (self.findings.place_for(segment, scale) for segment in sorted(writers))
            written = tuple(dict.fromkeys(place for place in scaled if place is not None))
            if places_taken.isdisjoint(written):  # a scale behind another one stays
                folds.append(OutputScale(scale, written))
                places_taken.update(written)
        if self.facts.kinds == MEAN_KEEPING and all(reading.facet.centred for reading in self.facts.readings):
            folds.append(self._mean(shifts | stay))
        return tuple(folds)

    def _mean(self, stay: set[str]) -> Mean:
        """Return the fold of means, along a stream that only LayerNorms read, and behind norms that nothing is left of.

        Args:
            stay: Gains of norms whose gain or shift is not folded.
        """
        vectors = {name for norm in self._norms() for name in (norm.gain, norm.shift)}
        vectors |= {scale for _, scale, _ in self.findings.output_scales}
        read = {reading.segment for reading in self.facts.readings}
        dead = {r.segment for r in self.facts.readings if r.facet.norm is None or r.facet.norm.gain not in stay}
        written = [s for s in self.segments if s not in read and self._axis(s).tensor not in vectors]
        return Mean(self._axes(written), self._axes(sorted(dead)))

    def _balances_of_rotations(self, kind: GroupKind) -> tuple[Balance, ...]:
        """Return the balance of a space that any matrix may act on, or any complex factor of a plane."""
        if self.facts.unit_length or self._norms() or self.facts.unknown or kind == "centred":
            return ()
        for solution in solutions(self.facts.equations + self.facts.of_scales, self.segments):
            if len(solution) == len(self.segments) and set(map(abs, solution.values())) == {1}:
                sides = self._sides({segment: int(value) for segment, value in solution.items()})
                word: BalanceKind = "complex_planes" if kind in PLANES else "invertible"
                known = all(sides) and not axes_between(sides[0] + sides[1])
                return (Balance(self.name, *sides, word),) if known else ()
        return ()

    def _balances(self) -> tuple[Balance, ...]:
        """Return the balances of factors of units, but for those of gains and scales, which folds leave at 1."""
        if self.facts.unknown:
            return ()
        balances = []
        stay = {blocked.tensor for blocked in self.blocked}
        gains = ({norm.gain for norm in self._norms()} - stay) | self._scales()
        for solution in solutions(self.facts.equations + self.facts.of_scales, self.segments):
            smallest = min((abs(value) for value in solution.values()), default=1)
            degrees = {segment: value / smallest for segment, value in solution.items()}
            if any(value.denominator != 1 for value in degrees.values()):
                continue
            whole = {segment: int(value) for segment, value in degrees.items()}
            if 1 not in whole.values():
                whole = {segment: -value for segment, value in whole.items()}
            writes, reads = self._sides(whole)
            high = {value for value in whole.values() if value < 0}
            if any(self._axis(segment).tensor in gains for segment in whole):
                continue
            if set(whole.values()) - high != {1} or len(high) != 1:
                continue
            degree = -high.pop()
            between = axes_between(writes + reads)
            if between and (degree != 1 or max(between.values()) > 2):
                continue
            odd = [segment for segment, value in whole.items() if value % 2]
            signs = degree == 1 and is_even(self.facts.equations + self.facts.of_signs, odd)
            balances.append(Balance(self.name, writes, reads, "monomial" if signs else "scaled", degree))
        return tuple(balances)

    def _sides(self, degrees: Mapping[int, int]) -> tuple[tuple[AxisOf, ...], tuple[AxisOf, ...]]:
        """Return the axes that write, by the sign of their degrees those that read; readers are contracted."""
        read = {reading.segment for reading in self.facts.readings}
        signs = {degree > 0 for segment, degree in degrees.items() if segment in read}
        sign = -1 if signs == {True} else 1
        writes = self._axes(segment for segment, degree in degrees.items() if sign * degree > 0)
        reads = self._axes(segment for segment, degree in degrees.items() if sign * degree < 0)
        return writes, reads


def folds_of_biases(
    findings: Findings, names: Mapping[int, str], refuted: Mapping[str, frozenset[str]]
) -> Iterator[Fold]:
    """Yield folds of biases that change nothing: of keys, and of values, which go into the output's bias.

    See `judge` for the arguments.
    """
    segments, shapes = findings.spaces.segments, findings.shapes

    def is_bias(segment: int) -> bool:
        name = names[segments[segment].space]
        return len(shapes[segments[segment].axis.tensor]) == 1 and "folds" not in refuted.get(name, frozenset())

    yield from (Zero(segments[segment].axis) for segment in sorted(filter(is_bias, findings.zeros)))
    for facts in findings.facts.values():
        for reading in facts.readings:
            for segment in sorted(filter(is_bias, reading.facet.mixed)) if reading.bias else ():
                axis = segments[segment].axis
                size = findings.spaces.size_of(segments[segment].space)
                count, reader = len(list(axis.positions(shapes))), segments[reading.segment].axis
                assert reading.bias is not None
                # Where heads alone move, queries and keys are not told from values, and their bias has more positions.
                if count <= len(reader.positions(shapes)):
                    yield Through(axis, reader, reading.bias, count // size)
