"""Folds and balances: what has to be done to the weights of one network before a graph holds for them.

A *fold* is an exact rewrite that moves a parameter into another, so that more symmetries are left: a norm's gain into
the weights that read it. A *balance* names two sides of a hidden space between which a scale or a matrix may be moved,
so that it can be moved to one place in every network; a *phase* does so for half periods of sine units. All are data
here; `alignkit.rewriting` carries them out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias, TypeVar

from alignkit.errors import GraphError
from alignkit.graph.nodes import TensorNode
from alignkit.graph.uses import Use
from alignkit.text import did_you_mean, list_some

ValueT = TypeVar("ValueT")
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
BlockReason = Literal["no_bias", "not_contracted", "post_norm", "norm_of_branch", "modulated", "tied"]
BalanceKind = Literal["scaled", "monomial", "invertible", "complex_planes"]
SpaceKind: TypeAlias = BalanceKind | Literal["half_periods"]


@dataclass(frozen=True)
class AxisOf:
    """Axis number ``axis`` of a tensor, or some of its positions.

    They are ``length`` positions from ``start`` on, to the end where ``length`` is None. With ``every`` they come again
    after so many: the keys of a fused axis ``(heads (q k v))`` of 4 heads with 8 dimensions each are ``start=8,
    length=8, every=24``.
    """

    tensor: str
    axis: int
    start: int = 0
    length: int | None = None
    every: int | None = None

    def positions(self, shapes: Shapes) -> range | list[int]:
        """List the positions; raise `GraphError` where the tensor, the axis or the segment does not exist."""
        shape = shape_of(shapes, self.tensor)
        where = f"tensor {self.tensor!r}, axis {self.axis}"
        if not 0 <= self.axis < len(shape):
            raise GraphError(f"{where}: the tensor has {len(shape)} axes (shape {shape}), counted from 0.")
        size = shape[self.axis]
        period = size if self.every is None else self.every
        end = period if self.length is None else self.start + self.length
        if period < 1 or size % period or not 0 <= self.start < end <= period:
            raise GraphError(f"{where}: {self.segment} does not lie on the axis, which has {size} positions.")
        if period == size:
            return range(self.start, end)
        return [again + position for again in range(0, size, period) for position in range(self.start, end)]

    @property
    def segment(self) -> str:
        """The positions in words; ``""`` for the whole axis."""
        last = "" if self.length is None else f" to {self.start + self.length - 1}"
        again = "" if self.every is None else f" of every {self.every}"
        whole = not self.start and self.length is None
        return again.strip() if whole else f"positions {self.start}{last or ' on'}{again}"

    def __str__(self) -> str:
        segment = f", {self.segment}" if self.segment else ""
        return f"{self.tensor} (axis {self.axis}{segment})"


def shape_of(shapes: Shapes, tensor: str) -> tuple[int, ...]:
    """Return the shape of a tensor of the graph; raise `GraphError` where there is none of that name."""
    if tensor not in shapes:
        first = "Tied tensors go by their first name."
        raise GraphError(f"the graph has no tensor {tensor!r}. {first}{did_you_mean(tensor, shapes)}")
    return shapes[tensor]


def _check_vector(shapes: Shapes, vector: str, places: Iterable[AxisOf], *, one: bool = False) -> None:
    """Check that a tensor has one number for each position of each place, or, where allowed, one in all."""
    count = prod(shape := shape_of(shapes, vector))
    for place in places:
        needed = len(place.positions(shapes))
        if max(shape, default=1) != count or count not in ([1, needed] if one else [needed]):
            raise GraphError(f"tensor {vector!r} of shape {shape} does not fit {place}, which has {needed} positions.")


def _check_contraction(shapes: Shapes, reader: AxisOf, bias: str) -> None:
    """Check that a reader without its contracted axis has the shape of a bias, up to the axes of a kernel."""
    rest = [size for axis, size in enumerate(shape_of(shapes, reader.tensor)) if axis != reader.axis]
    shape = list(shape_of(shapes, bias))
    if rest[: len(shape)] != shape or not shape:
        needed = f"{reader.tensor!r} without axis {reader.axis} has shape {tuple(rest)}"
        raise GraphError(f"tensor {bias!r} of shape {tuple(shape)} cannot be the bias of its reader: {needed}.")


@dataclass(frozen=True)
class Untie:
    """A head that is tied to the embedding ``source`` becomes a ``tensor`` of its own, equal at first."""

    tensor: str
    source: str

    def check(self, shapes: Shapes) -> None:
        """Raise `GraphError` where the two do not have one shape."""
        own, other = shape_of(shapes, self.tensor), shape_of(shapes, self.source)
        if own != other:
            raise GraphError(f"{self.tensor!r} of shape {own} cannot be untied from {self.source!r} of shape {other}.")

    def __str__(self) -> str:
        return f"{self.tensor} no longer tied to {self.source}"


@dataclass(frozen=True)
class OutputScale:
    """A scale behind what writes the residual stream (LayerScale, a scalar gate) goes into it, and becomes 1."""

    scale: str
    writers: tuple[AxisOf, ...]

    def check(self, shapes: Shapes) -> None:
        """Raise `GraphError` where the scale does not fit a writer."""
        _check_vector(shapes, self.scale, self.writers, one=True)

    def __str__(self) -> str:
        return f"{self.scale} into {_list(self.writers)}"


@dataclass(frozen=True)
class Shift:
    """The shift of a norm (its beta) goes through the weight of every reader into its bias, and becomes 0.

    ``readers`` are pairs of the axis that reads the norm and the name of the bias. Further axes of a reader, those of a
    convolution without padding, are summed.
    """

    shift: str
    readers: tuple[tuple[AxisOf, str], ...]

    def check(self, shapes: Shapes) -> None:
        """Raise `GraphError` where the shift does not fit a reader, or a bias is not that of its reader."""
        _check_vector(shapes, self.shift, [reader for reader, _ in self.readers])
        for reader, bias in self.readers:
            _check_contraction(shapes, reader, bias)

    def __str__(self) -> str:
        return f"{self.shift} into {list_some([bias for _, bias in self.readers], 4)}"


@dataclass(frozen=True)
class Gain:
    """The gain of a norm is multiplied into the axis of every reader, and becomes 1.

    The norm multiplies by ``offset + gain``: an ``offset`` of 1 is Gemma's, whose gain becomes 0. A ``shift`` that the
    readers have no bias for stays, divided by the gain; it is None where there is none or a `Shift` folds it.
    """

    gain: str
    readers: tuple[AxisOf, ...]
    offset: float = 0.0
    shift: str | None = None

    def check(self, shapes: Shapes) -> None:
        """Raise `GraphError` where the gain does not fit a reader or the shift."""
        _check_vector(shapes, self.gain, self.readers)
        if self.shift is not None and prod(shape_of(shapes, self.shift)) != prod(shape_of(shapes, self.gain)):
            raise GraphError(f"tensors {self.gain!r} and {self.shift!r} cannot belong to one norm: their sizes differ.")

    def __str__(self) -> str:
        stays = f"; {self.shift} stays, divided by it" if self.shift else ""
        return f"{self.gain} into {_list(self.readers)}{stays}"


@dataclass(frozen=True)
class Zero:
    """A bias that changes nothing becomes 0: that of keys without rotary positions, which the softmax takes out."""

    bias: AxisOf

    def check(self, shapes: Shapes) -> None:
        """Raise `GraphError` where the bias does not exist."""
        self.bias.positions(shapes)

    def __str__(self) -> str:
        return f"{self.bias} to 0"


@dataclass(frozen=True)
class Through:
    """The bias of values goes through the output projection into its bias, and becomes 0: attention weights sum to 1.

    A reader that is longer than the bias reads each of its ``heads`` several times in a row, as grouped queries do.
    """

    bias: AxisOf
    reader: AxisOf
    into: str
    heads: int = 1

    def check(self, shapes: Shapes) -> None:
        """Raise `GraphError` where the reader does not repeat the bias, or has another bias."""
        length, read = len(self.bias.positions(shapes)), len(self.reader.positions(shapes))
        if len(shape_of(shapes, self.bias.tensor)) != 1 or self.heads < 1 or length % self.heads or read % length:
            fits = f"{read} positions of {self.reader} do not repeat {self.heads} heads of the {length} of {self.bias}"
            raise GraphError(f"{fits}.")
        _check_contraction(shapes, self.reader, self.into)

    def __str__(self) -> str:
        return f"{self.bias} through {self.reader.tensor} into {self.into}"


@dataclass(frozen=True)
class Mean:
    """The mean along an axis is subtracted: nothing reads it.

    ``writers`` write a stream that only LayerNorms read, or rows of a router before its softmax. ``readers`` read a
    LayerNorm whose gain and shift are folded, so that its output has the mean 0.
    """

    writers: tuple[AxisOf, ...]
    readers: tuple[AxisOf, ...] = ()

    def check(self, shapes: Shapes) -> None:
        """Raise `GraphError` where a tensor or axis does not exist."""
        for place in (*self.writers, *self.readers):
            place.positions(shapes)

    def __str__(self) -> str:
        return f"mean of {_list((*self.writers, *self.readers))} to 0"


Fold: TypeAlias = Untie | OutputScale | Shift | Gain | Zero | Through | Mean
FOLDS: tuple[type[Fold], ...] = (Untie, OutputScale, Shift, Gain, Zero, Through, Mean)
"""All folds in the order in which they are done: a shift goes through weights that do not yet hold the gain."""


@dataclass(frozen=True)
class Balance:
    """Two sides of a group's space between which scales or matrices move, without a change of the function.

    What writes the space takes ``g``, what reads it ``g^-T``. Positions are those at which ``group`` acts by the
    layouts, so that families have one matrix for each unit of the parent.

    Attributes:
        group: The group.
        writes: Axes of tensors that write the space: rows of weights, biases.
        reads: Axes that read it.
        kind: ``"scaled"``: positive factors of units, as ReLU lets through. ``"monomial"``: factors of any sign.
            ``"invertible"``: any matrix. ``"complex_planes"``: a factor for each rotary plane; which positions are a
            plane the kind of the group says.
        degree: The power with which a factor comes out: 2 for squared ReLU.
    """

    group: str
    writes: tuple[AxisOf, ...]
    reads: tuple[AxisOf, ...]
    kind: BalanceKind
    degree: int = 1

    def check(self, shapes: Shapes) -> None:
        """Raise `GraphError` where a tensor or axis does not exist, or one place stands on both sides."""
        if not self.writes or not self.reads:
            raise GraphError(f"the balance of {self.group!r} needs tensors that write and tensors that read it.")
        if self.degree < 1 or (self.degree > 1 and self.kind != "scaled"):
            raise GraphError(f"the balance of {self.group!r} has degree {self.degree}: 1, or more where it is scaled.")
        check_disjoint((*self.writes, *self.reads), shapes, f"the balance of {self.group!r}")
        most = 2 if self.kind in ("scaled", "monomial") and self.degree == 1 else 1
        for tensor, count in axes_between((*self.writes, *self.reads)).items():
            if count > most:
                raise GraphError(
                    f"the balance of {self.group!r} stands at {count} axes of tensor {tensor!r}: at most {most} can be "
                    "balanced, two for factors of degree 1 and one otherwise."
                )

    def __str__(self) -> str:
        return f"{self.group} ({self.kind.replace('_', ' ')}): {_list(self.writes)} against {_list(self.reads)}"


@dataclass(frozen=True)
class Phase:
    """Biases of sine or cosine units, which may move by half periods: ``sin(u + pi)`` is ``-sin(u)``.

    What reads a unit takes its other sign for each half period, without a change of the function. One more in the bias
    adds ``frequency`` times all ``factors`` to the argument of the sine.

    Attributes:
        group: The group of the units.
        bias: Its biases, a number for each unit.
        reads: Axes whose signs change. Nothing where squares of units are read.
        frequency: A number of the code, such as the 30 of SIRENs.
        factors: Tensors of one number, or of one for each unit in the order of the biases.
    """

    group: str
    bias: AxisOf
    reads: tuple[AxisOf, ...]
    frequency: float = 1.0
    factors: tuple[str, ...] = ()

    @property
    def writes(self) -> tuple[AxisOf, ...]:
        """What writes the space, and moves."""
        return (self.bias,)

    @property
    def kind(self) -> SpaceKind:
        """What is moved, as a balance has it."""
        return "half_periods"

    def check(self, shapes: Shapes) -> None:
        """Raise `GraphError` where a tensor or axis does not exist, stands on both sides, or has another size."""
        if not math.isfinite(self.frequency) or not self.frequency:
            raise GraphError(
                f"the phases of {self.group!r} have the frequency {self.frequency}: a number other than 0."
            )
        _check_vector(shapes, self.bias.tensor, [AxisOf(self.bias.tensor, self.bias.axis)])
        for factor in self.factors:
            _check_vector(shapes, factor, self.writes, one=True)
        check_disjoint((self.bias, *self.reads), shapes, f"the phases of {self.group!r}")

    def __str__(self) -> str:
        period = " / ".join(["pi", *([] if self.frequency == 1 else [f"{self.frequency:g}"]), *self.factors])
        return f"{self.group} (half periods, {period}): {self.bias} against signs of {_list(self.reads) or 'nothing'}"


AnyBalance: TypeAlias = Balance | Phase


@dataclass(frozen=True)
class Blocked:
    """A fold that cannot be done: the parameter stays, and the space around it has the smaller group.

    ``reason`` is a key of `REASONS`; ``where`` names what stands in the way: a tensor, a module or an operation.
    """

    tensor: str
    reason: BlockReason
    where: str = ""

    def __str__(self) -> str:
        return f"{self.tensor} stays: {REASONS[self.reason].format(where=self.where or 'another operation')}."


REASONS = {
    "no_bias": "{where} reads it and has no bias that could take the shift",
    "not_contracted": "{where} reads it, which is not a product with a parameter",
    "post_norm": "its norm stands in the residual stream itself (post-LN), so {where} adds the gained output to it",
    "norm_of_branch": "its norm stands behind a branch (post-norm), and {where} adds the gained output to the stream",
    "modulated": "a scale or shift that is computed from the input acts on the norm's output (adaptive norm, {where})",
    "tied": "its reader is tied to {where}. Untie the head to fold it",
}
"""What stands in the way of a fold, as the end of a sentence."""


def untied_heads(folds: Iterable[Fold]) -> dict[str, str]:
    """Return the heads that folds untie, with the embeddings that they are tied to."""
    return {fold.tensor: fold.source for fold in folds if isinstance(fold, Untie)}


def under_both_names(values: Mapping[str, ValueT], folds: Iterable[Fold]) -> dict[str, ValueT]:
    """Complete a mapping by names of tensors: files may hold a head and its embedding under one of the two names."""
    pairs = [pair for tie in untied_heads(folds).items() for pair in (tie, tie[::-1])]
    return {**values, **{name: values[other] for name, other in pairs if name not in values and other in values}}


def in_order(folds: Iterable[Fold]) -> tuple[Fold, ...]:
    """Sort folds into the order in which they are done; those of one kind stay in theirs."""
    return tuple(sorted(folds, key=lambda fold: FOLDS.index(type(fold))))


def uses_at(node: TensorNode, group: str, place: AxisOf) -> list[Use]:
    """List where a group acts on an axis of a tensor, at blocks that begin at one of the positions of a place."""
    positions = set(place.positions({node.name: node.shape}))
    return [
        Use(node.name, block, at)
        for block in node.blocks
        for at, dim in enumerate(block.dims)
        if dim.group == group and dim.axis == place.axis and block.offsets[place.axis] in positions
    ]


def axes_between(places: Iterable[AxisOf]) -> dict[str, int]:
    """Return the tensors that stand between units of a space, as recurrent weights do, and on how many axes."""
    axes: dict[str, set[int]] = defaultdict(set)
    for place in places:
        axes[place.tensor].add(place.axis)
    return {tensor: len(on) for tensor, on in axes.items() if len(on) > 1}


def check_disjoint(places: Iterable[AxisOf], shapes: Shapes, what: str) -> None:
    """Raise `GraphError` where two places share a position of an axis."""
    taken: dict[tuple[str, int], set[int]] = {}
    for place in places:
        known, own = taken.setdefault((place.tensor, place.axis), set()), set(place.positions(shapes))
        if known & own:
            raise GraphError(f"tensor {place.tensor!r}, axis {place.axis}: {what} name the same positions twice.")
        known |= own


def _list(places: Sequence[AxisOf]) -> str:
    return list_some([str(place) for place in places], 4)
