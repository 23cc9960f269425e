"""The notation: what it reads, what it writes, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.errors import SpecError
from alignkit.graph import Axis, Fixed, Segment, Units, format_layout, parse_layout


def one(*factors: object) -> Axis:
    return Axis((Segment(factors),))


READ = {
    "": (),
    "h": (one(Units("h")),),
    "h1 .": (one(Units("h1")), one(Fixed())),
    ". (c 49)": (one(Fixed()), one(Units("c"), Fixed(49))),
    "h:8": (one(Units("h", None, 8)),),
    "d[heads]:64": (one(Units("d", "heads", 64)),),
    "layer1.0.conv1 stem-a/b_2": (one(Units("layer1.0.conv1")), one(Units("stem-a/b_2"))),
    "a+b": (Axis((Segment((Units("a"),)), Segment((Units("b"),)))),),
    "(heads qk[heads])+v": (
        Axis((Segment((Units("heads"), Units("qk", "heads"))), Segment((Units("v"),)))),
    ),
    "(heads (q[heads]+v[heads]))": (
        one(Units("heads"), Axis((Segment((Units("q", "heads"),)), Segment((Units("v", "heads"),))))),
    ),
    "(a (b c))": (one(Units("a"), Units("b"), Units("c")),),
    "  a   b ": (one(Units("a")), one(Units("b"))),
    "( a 2 ) + b": (Axis((Segment((Units("a"), Fixed(2))), Segment((Units("b"),)))),),
    "0a": (one(Units("0a")),),
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_reading(text: str) -> None:
    assert parse_layout(text) == READ[text]


@pytest.mark.parametrize("text", [text for text in READ if "  " not in text and "( " not in text and ":" not in text])
def test_reading_what_was_written_gives_the_same_layout(text: str) -> None:
    assert parse_layout(format_layout(parse_layout(text))) == parse_layout(text)


def test_sizes_are_written_for_the_groups_asked_for() -> None:
    layout = parse_layout("(a:2 b[a]:3) a:2")
    assert format_layout(layout) == "(a b[a]) a"
    assert format_layout(layout, {"b"}) == "(a b[a]:3) a"


REFUSED = {
    "a * b": r"position 2: '\*' is not part",
    "(a b": "position 4: the text ends too early",
    "a+": "the text ends too early",
    "+a": r"not '\+'",
    "a++b": r"position 2: .*not '\+'",
    "a)": r"position 1: .*not '\)'",
    "()": "empty parentheses",
    "(a)+()": "position 5: empty parentheses",
    "0": "a fixed size of 0",
    "h:0": "group 'h' has size 0",
    "3:4": "may not be a number",
    "d[7]": "may not be a number",
    "d[]": r"'\[' is not part",
    "d[a": r"'\[' is not part",
    "d[a][b]": r"'\[' is not part",
    "h:": "':' is not part",
    "h:-1": "':' is not part",
    "[a]": r"'\[' is not part",
    "größe": "'ö' is not part",
    "h:99999999999999999999": "more than 15 digits",
    "1234567890123456": "more than 15 digits",
    "(" * 40 + "a" + ")" * 40: "more than 32 parentheses",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_notation_is_refused_with_tensor_and_place(text: str) -> None:
    with pytest.raises(SpecError, match=REFUSED[text]) as caught:
        parse_layout(text, "fc1.weight")
    assert str(caught.value).startswith("tensor 'fc1.weight': cannot read the layout")


def test_a_layout_has_to_be_text() -> None:
    with pytest.raises(SpecError, match=r"'w': a layout is a string such as 'h2 h1', found list"):
        parse_layout(["h", "."], "w")


def test_a_long_layout_is_cut_in_the_message() -> None:
    with pytest.raises(SpecError) as caught:
        parse_layout("h " * 5000 + "*")
    assert len(str(caught.value)) < 500


@settings(max_examples=500)
@given(st.text() | st.text("ab1.()[]+: ", max_size=24))
def test_any_text_is_refused_or_read_and_written_stably(text: str) -> None:
    try:
        layout = parse_layout(text)
    except SpecError:
        return
    written = format_layout(layout)
    assert format_layout(parse_layout(written)) == written


def joined(sign: str, inner: st.SearchStrategy[str], least: int) -> st.SearchStrategy[str]:
    return st.lists(inner, min_size=least, max_size=3).map(lambda parts: f"({sign.join(parts)})")


atoms = st.sampled_from(["a", "b[a]", "c:3", "2", "."])
sentences = st.recursive(atoms, lambda inner: joined(" ", inner, 1) | joined("+", inner, 2), max_leaves=8)


@settings(max_examples=300)
@given(sentences)
def test_every_sentence_of_the_grammar_is_read(text: str) -> None:
    layout = parse_layout(text)
    assert len(layout) == 1
    written = format_layout(layout, {"c"})
    again = parse_layout(written)
    assert again == layout or layout[0].is_fixed
