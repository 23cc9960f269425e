"""Random text as specs and as graphs: an error of ours that says what is wrong, never another one, and never a hang.

Counts: 1300 random inputs a run, and 4,400 changes of one character in the JSON text of a graph.
"""

from __future__ import annotations

import copy
import json
import string
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import SymmetryGraph
from alignkit.errors import AlignkitError, SpecError
from alignkit.graph import parse_layout
from alignkit.testing import attention, convnet, mlp

DEADLINE = 20_000  # milliseconds: what takes longer counts as a hang
NOTATION = st.text(alphabet="ab h12.:+[]()-_/ ", max_size=60)
SHAPES = st.lists(st.integers(0, 12), max_size=4).map(tuple)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
GRAPHS = {build.__name__: json.loads(build().graph().to_json()) for build in (convnet, attention)}
GRAPHS["mlp"] = json.loads(mlp(3, 4, 2).graph().to_json())


def told(error: AlignkitError) -> None:
    """An error has to say something."""
    assert str(error).strip()


def built(spec: object, like: object, sizes: object = None) -> SymmetryGraph | None:
    """The graph, or None if it was refused by an error of ours with a text."""
    try:
        graph = SymmetryGraph.from_spec(spec, like=like, sizes=sizes)  # type: ignore[arg-type]
    except AlignkitError as error:
        told(error)
        return None
    return graph


@pytest.mark.slow
@settings(max_examples=300, deadline=DEADLINE)
@given(NOTATION | st.text(max_size=60))
def test_random_notation(text: str) -> None:
    try:
        parse_layout(text, "w")
    except SpecError as error:
        told(error)


@settings(max_examples=300, deadline=DEADLINE)
@given(st.dictionaries(st.text(alphabet="wx.", min_size=1, max_size=3), st.tuples(NOTATION, SHAPES), max_size=3))
def test_random_specs_of_random_shapes(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    graph = built({n: text for n, (text, _) in tensors.items()}, {n: shape for n, (_, shape) in tensors.items()})
    if graph is not None:
        assert SymmetryGraph.from_json(graph.to_json()) == graph


@settings(max_examples=150, deadline=DEADLINE)
@given(VALUES, VALUES)
def test_specs_of_any_type(spec: Any, sizes: Any) -> None:
    like = {"w": torch.zeros(4, 3)}
    built(spec, like)
    built({"w": spec}, like)
    built({"w": "h ."}, like, sizes)


@settings(max_examples=150, deadline=DEADLINE)
@given(st.text() | VALUES.map(json.dumps) | st.binary(max_size=40))
def test_random_text_is_no_graph(text: Any) -> None:
    with pytest.raises(AlignkitError):
        SymmetryGraph.from_json(text)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@pytest.mark.slow
@settings(max_examples=400, deadline=DEADLINE)
@given(st.sampled_from(sorted(GRAPHS)), st.data())
def test_a_graph_with_any_part_replaced_is_refused_or_the_same(name: str, data: st.DataObject) -> None:
    original = GRAPHS[name]
    changed = copy.deepcopy(original)
    *before, last = data.draw(st.sampled_from([place for place in places(original) if place]))
    at = changed
    for key in before:
        at = at[key]
    if data.draw(st.booleans()):
        at[last] = data.draw(VALUES)
    else:
        del at[last]
    try:
        graph = SymmetryGraph.from_json(json.dumps(changed))
    except AlignkitError as error:
        told(error)
        return
    # What is not refused is the same graph, up to what it says of where it came from.
    assert graph.spec() == SymmetryGraph.from_json(json.dumps(original)).spec()


def test_every_single_character_of_a_graph_changed() -> None:
    text = json.dumps(GRAPHS["mlp"])
    original = SymmetryGraph.from_json(text)
    refused = 0
    for at in range(min(len(text), 1500)):
        for letter in "0}x":
            if text[at] == letter:
                continue
            try:
                graph = SymmetryGraph.from_json(text[:at] + letter + text[at + 1 :])
            except AlignkitError:
                refused += 1
            else:
                assert graph.spec() == original.spec()
    assert refused > 2000


HUGE = {
    "deep parentheses": "(" * 50_000 + "h" + ")" * 50_000,
    "long sum": "+".join(["h"] * 20_000),
    "long product": "(" + "h " * 20_000 + ")",
    "many axes": "h " * 20_000,
    "huge size": "h:" + "9" * 5000,
    "brackets": "a[" * 20_000,
    "deep families": f"({' '.join(['a0:1', *(f'a{i}[a{i - 1}]:1' for i in range(1, 5000))])})",
    "other digits": "h:\u0663",
    "null": "h\0",
    "surrogate": "h\ud800",
    "nested sums": "(" + "(a+b) " * 14 + ")",
    "all letters": string.printable,
}


@pytest.mark.parametrize("case", HUGE)
def test_notation_that_is_huge_or_odd_is_refused_soon(case: str) -> None:
    assert built({"w": HUGE[case]}, {"w": torch.zeros(4)}) is None


@pytest.mark.parametrize("size", [10**6, 10**9, 10**15 - 1])
def test_huge_sizes_cost_nothing(size: int) -> None:
    assert built({"w": f"h:{size}"}, {"w": (4,)}) is None
    graph = copy.deepcopy(GRAPHS["mlp"])
    for node in graph["nodes"]:
        if node["node"] == "group":
            node["size"] = size
    with pytest.raises(AlignkitError):
        SymmetryGraph.from_json(json.dumps(graph))
