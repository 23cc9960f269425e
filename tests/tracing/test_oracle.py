"""Traces of random small networks against the true order of their symmetry groups: sound, and complete."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from helpers.oracle import Network, Recipe, order, tries, varies_by_row, widths_of
from helpers.oracle_ops import Op
from helpers.trace_checks import proved

MOST_TRIES = 3000
UNWRITABLE = "no faithful notation"
"""Given as the op that pins what no notation can write; such networks are checked for soundness only."""


@st.composite
def recipes(draw: st.DrawFn, images: bool) -> Recipe:
    """Draw a recipe: a first linear layer, then a few operations on earlier values."""
    recipe: Recipe = (Op("linear", (0,), (draw(st.sampled_from([2, 3, 4])),)),)
    for _ in range(draw(st.integers(1, 7))):
        step = draw(operations(recipe, images))
        if step is not None and tries((*recipe, step)) <= MOST_TRIES:
            recipe = (*recipe, step)
    return recipe


@st.composite
def operations(draw: st.DrawFn, recipe: Recipe, images: bool) -> Op | None:
    """Draw an operation on values of a recipe, None where the drawn kind does not fit."""
    widths = widths_of(recipe)
    kinds = ["linear", "linear", "activation", "norm", "batch norm", "group norm", "depthwise", "add", "add", "gate"]
    kinds += ["concatenate", "half", "shuffle", "blocks", "blocks", "attention", "attention", "softmax"]
    kinds += ["by position", "by position", "fourier", "sorted", "turned pairs", "distances", "bilinear"]
    kind = draw(st.sampled_from(kinds if images else [*kinds, "recurrent", "mixer"]))
    read = draw(st.integers(max(0, len(widths) - 3), len(widths) - 1))
    width = widths[read]
    if kind == "linear":
        return Op(kind, (read,), (draw(st.sampled_from([2, 3, 4])),))
    if kind == "distances":
        return Op(kind, (read,), (draw(st.integers(2, 3)),))
    if kind in ("by position", "fourier", "sorted"):
        return Op(kind, (read,), (draw(st.integers(0, 3 if kind == "by position" else 1)),))
    if kind == "turned pairs":
        return None if width % 2 else Op(kind, (read,))
    if kind == "bilinear":
        return Op(kind, (read, draw(st.integers(0, len(widths) - 1))), (draw(st.integers(1, 3)),))
    if kind in ("add", "gate", "concatenate"):
        others = [i for i in range(1, len(widths)) if i != read and (widths[i] == width or kind == "concatenate")]
        unrelated = [i for i in others if not _same_source(recipe, i, read)]
        if not unrelated or width + max(widths[i] for i in unrelated) > 8:
            return None
        return Op(kind, (read, draw(st.sampled_from(unrelated))))
    if kind in ("half", "shuffle", "group norm", "blocks"):
        if width % 2 or width < 4 or (kind == "shuffle" and _nested(recipe, read)):
            return None
        if kind == "blocks":
            return Op(kind, (read,), (2, draw(st.sampled_from([1, 2, 3, width // 2])), draw(st.integers(0, 1))))
        return Op(kind, (read,), (draw(st.integers(0, 1)) if kind == "half" else 2,))
    if kind == "attention":
        heads, size = draw(st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]))
        return Op(kind, (read,), (heads, size, draw(st.integers(0, 1))))
    if kind == "recurrent":
        return Op(kind, (read,), (draw(st.integers(2, 3)), draw(st.sampled_from([3, 4])), draw(st.integers(0, 1))))
    if kind == "mixer":
        return Op(kind, (read,), (draw(st.integers(2, 3)),))
    return Op(kind, (read,), (draw(st.integers(0, 3)),) if kind in ("activation", "norm") else ())


def _same_source(recipe: Recipe, one: int, other: int) -> bool:
    """Whether two values are parts of one, so that combining them could have symmetries that exchange the parts."""
    return bool(_halves(recipe, one) & _halves(recipe, other))


def _halves(recipe: Recipe, value: int) -> set[int]:
    if value == 0:
        return set()
    op = recipe[value - 1]
    found = set(op.reads) if op.name == "half" else set()
    for read in op.reads:
        found |= _halves(recipe, read)
    return found


def _nested(recipe: Recipe, value: int) -> bool:
    """Whether a value has units inside blocks: a shuffle puts them left of their blocks, which cannot be written."""
    if value == 0:
        return False
    op = recipe[value - 1]
    return op.name in ("attention", "blocks", "group norm", "half") or any(_nested(recipe, i) for i in op.reads)


def check(recipe: Recipe, images: bool = False) -> str:
    """Trace a recipe's network, prove it, and compare the number of symmetries; return what kind of network it was."""
    model = Network(recipe, images)
    graph = proved(model, model.example(), draws=2)
    if varies_by_row(recipe) or any(pin.op == UNWRITABLE for pin in graph.provenance.pinned):
        return "cannot be written"
    true = order(recipe)
    assert graph.order == true, f"{graph.order} of {true} symmetries\n{recipe}\n{graph.report()}\n{graph.spec()}"
    return f"{len(graph.groups)} groups"


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True)
@given(recipes(images=False))
def test_traces_of_networks_on_tokens_are_exact(recipe: Recipe) -> None:
    event(check(recipe))


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=list(HealthCheck), derandomize=True)
@given(recipes(images=True))
def test_traces_of_networks_on_images_are_exact(recipe: Recipe) -> None:
    event(check(recipe, images=True))


# ---------------------------------------------------------------------- what the oracle found


def test_shuffled_heads_keep_heads_and_give_up_units() -> None:
    # Channel shuffle after attention puts units left of their heads: "(v[heads] heads)" cannot be written.
    recipe = (Op("attention", (0,), (2, 2, 0)), Op("shuffle", (1,), (2,)))
    model = Network(recipe)
    graph = proved(model, model.example())
    heads = 2
    query_units = 2**heads
    assert order(recipe) == heads * query_units * 2**heads
    assert graph.order == heads * query_units


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("shared", [0, 1])
def test_layers_by_blocks_on_a_residual_stream(images: bool, shared: int) -> None:
    # A grouped convolution whose input and output are one stream (wav2vec 2.0): its family acts on both axes
    # of the weight.
    recipe = (
        Op("linear", (0,), (4,)),
        Op("blocks", (1,), (2, 2, shared)),
        Op("add", (1, 2)),
        Op("activation", (3,), (0,)),
    )
    check(recipe, images)


def test_columns_that_move_differently_for_each_block_of_rows_move_together() -> None:
    # Both directions of an LSTM feed a grouped layer: its first rows read units of one group, its last rows of another.
    recipe = (Op("recurrent", (0,), (2, 4, 1)), Op("blocks", (1,), (2, 2, 0)))
    model = Network(recipe)
    graph = proved(model, model.example())
    directions, rows = 2 * 2, 2 * 2
    assert order(recipe) == directions * rows
    assert graph.order == 2 * rows


# ---------------------------------------------------------------------- the oracle itself


@pytest.mark.parametrize(
    ("recipe", "true"),
    [
        ((Op("linear", (0,), (4,)),), 24),
        ((Op("linear", (0,), (3,)), Op("activation", (1,), (0,)), Op("linear", (2,), (4,))), 6 * 24),
        ((Op("linear", (0,), (3,)), Op("linear", (0,), (3,)), Op("add", (1, 2))), 6),
        ((Op("attention", (0,), (2, 2, 0)),), 2 * 2**2 * 2**2),
        ((Op("attention", (0,), (3, 1, 0)),), 6),
        ((Op("linear", (0,), (4,)), Op("group norm", (1,), (2,))), 2 * 2**2),
        ((Op("linear", (0,), (4,)), Op("blocks", (1,), (2, 3, 1))), 2 * 2 * 6),
        ((Op("linear", (0,), (4,)), Op("half", (1,), (0,)), Op("linear", (1,), (2,)), Op("add", (3, 2))), 2 * 2),
        ((Op("recurrent", (0,), (3, 4, 1)),), 6 * 6),
    ],
)
def test_oracle_counts_what_is_known_by_hand(recipe: Recipe, true: int) -> None:
    assert order(recipe) == true
