"""Sentences of messages."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from alignkit import text
from alignkit.errors import SpecError


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_counts_lists_and_articles() -> None:
    assert [text.plural(1, "file"), text.plural(3, "file")] == ["1 file", "3 files"]
    assert text.plural(2, "matrix", "matrices") == "2 matrices"
    assert [text.with_article("alignment"), text.with_article("solution")] == ["an alignment", "a solution"]
    assert text.list_some(["a", "b"], 2) == "a, b"
    assert text.list_some(["a", "b", "c"], 2, "; ") == "a; b and 1 more"
    assert text.shorten_list(["a", "b", "c"], 1, ", see --json") == ["  a", "  and 2 more, see --json"]


def test_errors_and_values_on_one_line() -> None:
    assert text.describe_error(ValueError("two\n  lines")) == "ValueError: two lines"
    assert text.describe_error(UnprintableError()) == "UnprintableError"
    assert text.first_line(RuntimeError("first.\nsecond")) == "first"
    assert text.first_line(RuntimeError()) == "RuntimeError"
    assert text.explain_error(SpecError("a sentence.")) == "a sentence."
    assert text.explain_error(KeyError("x")) == "KeyError: 'x'"
    assert len(text.one_line(ValueError("x" * 5000))) == text.MAX_LINE
    assert text.show_value(["x" * 500]).endswith("...")
    assert text.show_value(UnprintableError()) == "an object of type UnprintableError"


def test_problems_of_fields_are_one_sentence() -> None:
    class Size(BaseModel):
        width: int
        height: int

    with pytest.raises(ValidationError) as caught:
        Size.model_validate({"width": "wide"})
    said = text.describe_validation(caught.value)
    assert said.startswith("width: ")
    assert "; height: " in said


def test_sizes_are_readable() -> None:
    assert [text.readable_bytes(n) for n in (12, 3400, 5_600_000, 7_800_000_000)] == [
        "12 bytes",
        "3.4 kB",
        "5.6 MB",
        "7.8 GB",
    ]


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("one. \ntwo", "one"),
        (
            "got (list), but expected one of:\n * (Tensor input)\n * (int)",
            "got (list), but expected one of: * (Tensor input)",
        ),
        ("a:\n\nb:\nc.\nd", "a: b: c"),
        ("a:", "a"),
        ("\n", "ValueError"),
        ("", "ValueError"),
    ],
)
def test_the_first_line_of_an_error_is_a_whole_sentence(words: str, first: str) -> None:
    assert text.first_line(ValueError(words)) == first
