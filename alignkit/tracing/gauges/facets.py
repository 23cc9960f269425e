"""Facets: how the value at one part of a tensor moves when its space turns, and what the second pass collects.

Values start at parameters: each of their segments is a vector of its space with an unknown degree. Operations make new
facets of those of their operands (`alignkit.tracing.gauges.laws`), and say in passing what the space admits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, TypeAlias

from alignkit.graph.kinds import GroupKind
from alignkit.graph.rewrites import AxisOf, BlockReason
from alignkit.tracing.gauges.degrees import ZERO, Form, combine
from alignkit.tracing.gauges.parts import Part, Spaces
from alignkit.tracing.labels.writes import share_elements
from alignkit.tracing.recording.recorder import OpRecord, TensorRef

ROTATIONS: frozenset[GroupKind] = frozenset(("orthogonal", "centred", "planes", "adjacent_planes"))
"""Kinds that a space may have as long as no operation says otherwise, and the largest that is left is taken."""
MEAN_KEEPING: frozenset[GroupKind] = frozenset(("centred",))
"""Kinds that keep sums over a space."""


@dataclass(frozen=True)
class Norm:
    """Gain and shift of one norm, which wait for all that reads them.

    ``number`` tells norms apart. The norm multiplies by ``offset + gain``; ``where`` is its module.
    """

    number: int
    gain: str
    offset: float = 0.0
    shift: str | None = None
    where: str = ""


@dataclass(frozen=True)
class Facet:
    """How a value moves at one part.

    Attributes:
        degree: The power of a unit's factor in it.
        form: ``"vector"``: it turns with the space. ``"square"``: it is the square of one that does, elementwise.
            ``"other"``: it has units of the space, and cannot turn.
        segment: The segment of a parameter that it is, untouched; else None.
        offset: A number that was added to that parameter.
        writers: Segments that it is a linear function of, if nothing else is; each of them is read here only.
        mixed: Segments of biases that went through averages over positions, whose weights sum to 1.
        norm: The norm whose gain and shift it carries.
        centred: Whether its mean along the space was subtracted.
        level: Whether what was added to all of its positions still stands at all of them, once: it goes through a
            reader into the bias there. Padding with zeros, sums over positions and factors take that away.
    """

    degree: Form = ZERO
    form: Literal["vector", "square", "other"] = "other"
    segment: int | None = None
    offset: float = 0.0
    writers: frozenset[int] = frozenset()
    mixed: frozenset[int] = frozenset()
    norm: Norm | None = None
    centred: bool = False
    level: bool = True


@dataclass(frozen=True)
class Obstacle:
    """An operation in a module, and what it left of a space."""

    op: str
    where: str
    words: str = ""

    def __str__(self) -> str:
        place = f" in {self.where}" if self.where else ""
        return (f"{self.words}: " if self.words else "") + f"{self.op}{place}"


@dataclass(frozen=True)
class SpaceReading:
    """A contraction of a value with a segment of a parameter; ``bias`` is added to it, and can take what was."""

    segment: int
    facet: Facet
    bias: str | None
    where: str


Key: TypeAlias = tuple[tuple[int, ...], int, int, tuple[int, ...]]
"""A part of a value."""


def key_of(ref: TensorRef, part: Part) -> Key:
    """Return the part of a value as a key."""
    return ref.key, part.space, part.source, part.dims


@dataclass(frozen=True)
class Added:
    """A bias in a value: the segment of the parameter, and what one more in it adds to the value."""

    segment: int
    frequency: float = 1.0
    factors: tuple[str, ...] = ()


@dataclass
class Trails:
    """Which biases are added to values, see `alignkit.tracing.gauges.bias_trails`.

    Attributes:
        scalars: The names of tensors of one number that a network keeps.
        values: The biases in each part of a value.
        unknowns: The number that stands in forms for each bias in each frequency with which it reached a sine.
        forms: For what sines returned, the unknowns that change its sign.
        stuck: What else reads a bias, by its segment.
        without: Spaces that reached a sine without a bias.
    """

    scalars: Mapping[tuple[int, ...], str] = field(default_factory=dict)
    values: dict[Key, tuple[Added, ...]] = field(default_factory=dict)
    unknowns: dict[Added, int] = field(default_factory=dict)
    forms: dict[Key, Form] = field(default_factory=dict)
    stuck: dict[int, Obstacle] = field(default_factory=dict)
    without: set[int] = field(default_factory=set)

    def stop(self, biases: Iterable[Added], cause: Obstacle) -> None:
        """Record what keeps biases where they are."""
        for bias in biases:
            self.stuck.setdefault(bias.segment, cause)


@dataclass
class SpaceFacts:
    """What is known of one space.

    `equations` hold for degrees of any kind, `of_scales` for positive factors only, `of_signs` for signs only.
    `causes` say which operation took which kinds away. `gains` are segments of gains of norms that are not folded.
    """

    kinds: frozenset[GroupKind] = ROTATIONS
    equations: list[Form] = field(default_factory=list)
    of_scales: list[Form] = field(default_factory=list)
    of_signs: list[Form] = field(default_factory=list)
    causes: list[tuple[frozenset[GroupKind], Obstacle]] = field(default_factory=list)
    readings: list[SpaceReading] = field(default_factory=list)
    gains: set[int] = field(default_factory=set)
    unknown: bool = False
    unit_length: bool = False


@dataclass
class Findings:
    """What the second pass collects, by the numbers of spaces, segments and norms.

    `facts` are those of each space. `used_otherwise` names what uses a segment other than as the reader of a value.
    `zero_values` are values that are zero, `zero_ranges` the positions of those that are laid beside others, along one
    dimension. `blocked` are norms that something reads which cannot take them, with the reason of
    `alignkit.graph.rewrites`.
    """

    spaces: Spaces
    shapes: Mapping[str, tuple[int, ...]]
    consumers: Mapping[tuple[int, ...], int]
    names: Mapping[tuple[int, ...], str]
    facts: dict[int, SpaceFacts] = field(default_factory=lambda: defaultdict(SpaceFacts))
    used_otherwise: dict[int, Obstacle] = field(default_factory=dict)
    blocked: dict[int, tuple[BlockReason, str]] = field(default_factory=dict)
    norms: list[tuple[int, Norm]] = field(default_factory=list)
    output_scales: list[tuple[int, str, frozenset[int]]] = field(default_factory=list)
    zeros: set[int] = field(default_factory=set)
    means: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    weights_of_one: set[tuple[int, ...]] = field(default_factory=set)
    zero_values: set[tuple[int, ...]] = field(default_factory=set)
    zero_ranges: dict[tuple[int, ...], tuple[int, tuple[range, ...]]] = field(default_factory=dict)
    scores: dict[tuple[int, ...], frozenset[int]] = field(default_factory=dict)
    trails: Trails = field(default_factory=Trails)
    _facets: dict[tuple[int, ...], dict[tuple[int, int, tuple[int, ...]], Facet]] = field(default_factory=dict)
    _keys_of_storage: dict[int, set[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(set))

    def set(self, ref: TensorRef, part: Part, facet: Facet) -> None:
        """Record the facet of a part of a value."""
        self._facets.setdefault(ref.key, {})[part.space, part.source, part.dims] = facet
        self._keys_of_storage[ref.storage].add(ref.key)

    def get(self, ref: TensorRef, part: Part, cause: Obstacle) -> Facet:
        """Return the facet of a part of a value; where it is not known, its space is permuted only."""
        known = self.known(ref, part)
        if known is not None:
            return known
        self.facts[part.space].unknown = True
        self.cap(part.space, frozenset(), Obstacle(cause.op, cause.where, "it reads what was made in an unknown way"))
        return Facet()

    def known(self, ref: TensorRef, part: Part) -> Facet | None:
        """Return the facet of a part of a value, None where it is not known."""
        return self._facets.get(ref.key, {}).get((part.space, part.source, part.dims))

    def forget(self, ref: TensorRef) -> None:
        """Forget the facets of a tensor that was written, and of all that share elements with it."""
        keys = self._keys_of_storage[ref.storage]
        for key in keys:
            if key in self._facets and share_elements(key, ref.key, keys):
                self._facets.pop(key)

    def forget_marks(self, ref: TensorRef) -> None:
        """Forget what else is known of the tensors of a storage that was written: zeros, averages, scores."""
        for marked in (self.zero_values, self.weights_of_one):
            marked.difference_update([key for key in marked if key[0] == ref.storage])
        for known in (self.means, self.scores, self.zero_ranges):
            for key in [key for key in known if key[0] == ref.storage]:
                del known[key]

    def name_of(self, ref: TensorRef) -> str | None:
        """Return the name of a parameter, None for another tensor."""
        return self.names.get(ref.key)

    def cap(self, space: int, kinds: frozenset[GroupKind], cause: Obstacle) -> None:
        """Leave a space only those of its rotations that are among ``kinds``."""
        facts = self.facts[space]
        if facts.kinds - kinds:
            facts.causes.append((facts.kinds - kinds, cause))
            facts.kinds &= kinds

    def require(self, space: int, form: Form, *, scales: bool = True, signs: bool = True) -> None:
        """Require that a degree is zero, for factors of any kind, for positive ones or for signs."""
        facts = self.facts[space]
        if form and (scales or signs):
            (facts.equations if scales and signs else facts.of_scales if scales else facts.of_signs).append(form)

    def block(self, facet: Facet, reason: BlockReason, where: str) -> None:
        """Record that a norm cannot be folded, because of something that reads a value with its gain."""
        if facet.norm is not None:
            self.blocked.setdefault(facet.norm.number, (reason, where))

    def add_shift(self, norm: Norm, shift: str) -> Norm:
        """Record that a norm has a shift behind its gain; return the norm with it."""
        shifted = replace(norm, shift=shift)
        (space,) = [space for space, known in self.norms if known == norm]
        self.norms[norm.number] = (space, shifted)
        return shifted

    def place_for(self, segment: int, vector: str) -> AxisOf | None:
        """Return where a vector fits at a segment: as many positions as it has, or the whole axis around them."""
        axis = self.spaces.segments[segment].axis
        places = (axis, AxisOf(axis.tensor, axis.axis))
        return next((at for at in places if len(at.positions(self.shapes)) == prod(self.shapes[vector])), None)

    def require_of_scales(self, space: int, form: Form) -> None:
        """Require that each unknown of a form is zero, but for signs."""
        for unknown, _ in form:
            self.require(space, ((unknown, 1),), signs=False)

    def is_vector(self, facet: Facet) -> bool:
        """Return whether a value is a parameter with one number for each unit of the space, or such plus a number."""
        if facet.segment is None:
            return False
        axis = self.spaces.segments[facet.segment].axis
        shape = self.shapes[axis.tensor]
        return max(shape) == shape[axis.axis] and sum(n > 1 for n in shape) == 1


@dataclass(frozen=True)
class Carrier:
    """An operand, the part of it that a law looks at, and its facet."""

    ref: TensorRef
    part: Part
    facet: Facet


def same_degree(findings: Findings, space: int, carriers: Iterable[Carrier]) -> Form:
    """Require that all carriers have one degree, and return it."""
    degrees = [carrier.facet.degree for carrier in carriers]
    for degree in degrees[1:]:
        findings.require(space, combine([(1, degrees[0]), (-1, degree)]))
    return degrees[0]


def obstacle_of(step: OpRecord, words: str = "") -> Obstacle:
    """Return a step as a cause."""
    return Obstacle(step.op.replace("::", "."), step.where, words)
