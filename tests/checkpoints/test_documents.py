"""Versioned documents: what is written is read back, and every kind of damage is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pydantic import BaseModel

from alignkit.checkpoints.documents import Content, Format, without_digest
from alignkit.deepalign import aligner_file
from alignkit.errors import AlignmentError, SpecError, WeightsError
from alignkit.graph import serial
from alignkit.graph.elements import alignment
from alignkit.jobs import demo, record, solve_many
from alignkit.jobs.compare import comparison
from alignkit.jobs.compare import job as comparison_job
from alignkit.solver import solution
from alignkit.tasks import interpolation
from alignkit.training import records
from alignkit.zoo import manifest


class Note(Content):
    text: str = ""
    numbers: tuple[int | float, ...] = ()


NOTE = Format("test.note", "note", "write_note", SpecError, Note, version=2)
MODULES = (
    alignment,
    record,
    solution,
    interpolation,
    comparison,
    demo,
    serial,
    aligner_file,
    records,
    manifest,
)


def test_text_round_trip(tmp_path: Path) -> None:
    NOTE.write(tmp_path / "note.json", {"text": "naïve", "numbers": [1, 2.5]})
    assert NOTE.read(tmp_path / "note.json") == Note(text="naïve", numbers=(1, 2.5))
    document = json.loads(NOTE.to_json({"a": 1}))
    assert without_digest(document) == {"format": "test.note", "version": 2, "a": 1}
    assert len(document["digest"]) == 32


def test_tensors_round_trip(tmp_path: Path) -> None:
    path, shared = tmp_path / "note.safetensors", torch.arange(6.0).reshape(2, 3)
    NOTE.write_tensors(path, {"whole": shared, "turned": shared.T}, {"text": "t"})
    values, tensors = NOTE.read_tensors(path)
    assert values == NOTE.read_values(path) == Note(text="t")
    assert torch.equal(tensors["whole"], shared)
    assert torch.equal(tensors["turned"], shared.T)
    NOTE.write_tensors(path, {}, {})
    assert NOTE.read_tensors(path) == (Note(), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a note: it is not JSON"),
        ("{", "cannot be read as a note: it is not JSON"),
        (b"\xff", "cannot be read as a note: it is not JSON"),
        ("[" * 100_000, "cannot be read as a note: it is not JSON"),
        ("[1]", r"is not a note\. One is written by write_note\."),
        ("null", "is not a note"),
        ("{}", "is not a note"),
        ('{"format": "test.letter"}', "is not a note, it is 'test.letter'"),
        ('{"format": ["test.note"]}', "is not a note, it is"),
        ('{"format": "test.note"}', "has version None of test.note; this release reads version 2"),
        ('{"format": "test.note", "version": 1}', r"version 1 .* Write it again with write_note\."),
        ('{"format": "test.note", "version": "2"}', "has version '2'"),
        ('{"format": "test.note", "version": 3}', "Upgrade alignkit to a newer release"),
    ],
)
def test_damaged_text_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        NOTE.from_json(text)
    path = tmp_path / "note.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SpecError, match=rf"note\.json .*{message}"):
        NOTE.read(path)


def test_damaged_files_of_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "note.safetensors"
    with pytest.raises(SpecError, match="cannot be read as a note: No such file"):
        NOTE.read(path)
    with pytest.raises(SpecError, match="cannot be read as a note"):
        NOTE.read_tensors(path)
    NOTE.write_tensors(path, {"a": torch.zeros(3)}, {})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SpecError, match=r"note\.safetensors cannot be read as a note"):
        NOTE.read_tensors(path)
    for metadata, message in ((None, "is not a note"), ({"alignkit": "{"}, "not JSON"), ({"alignkit": "[]"}, "not a")):
        safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata)
        with pytest.raises(SpecError, match=message):
            NOTE.read_tensors(path)
        with pytest.raises(SpecError, match=message):
            NOTE.read_values(path)


def test_what_fails_while_a_document_is_rebuilt_names_the_document() -> None:
    class Size(BaseModel):
        width: int

    for build, message in (
        (lambda: {}["width"], "n.json is damaged: 'width' is missing."),
        (lambda: [][0], "n.json is damaged: IndexError: list index out of range."),
        (lambda: int("x"), "n.json is damaged: ValueError: invalid literal"),
        (lambda: Size.model_validate({"width": "x"}), "n.json is damaged: width: Input should be a valid integer"),
    ):
        with pytest.raises(SpecError, match=message.replace(".", r"\.")), NOTE.rebuilding("n.json"):
            build()
    with pytest.raises(SpecError, match=r"n.json is damaged: the group has no indices\."), NOTE.rebuilding("n.json"):
        raise AlignmentError("the group has no indices.")


def test_nothing_is_left_of_a_document_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        NOTE.write(tmp_path / "note.json", {"value": float("nan")})
    with pytest.raises(WeightsError, match="does not exist"):
        NOTE.write(tmp_path / "absent" / "note.json", {})
    assert not list(tmp_path.iterdir())


def test_every_format_has_a_name_of_its_own() -> None:
    names = [*(module.FORMAT.name for module in MODULES), comparison_job.ROWS.name, solve_many.ROWS.name]
    assert len(set(names)) == len(names)
    assert all(name.startswith("alignkit.") for name in names)


NAMES = ["note", "note.txt", "note.json.gz", "note.SAFETENSORS", "note.pt"]


@pytest.mark.parametrize("name", [*NAMES, "note.safetensors"])
def test_a_json_document_under_another_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a note is written as \.json: end the name in that"):
        NOTE.write(tmp_path / name, {"text": "t", "numbers": []})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*NAMES, "note.json"])
def test_a_document_with_tensors_under_another_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a note is written as \.safetensors: end the name in that"):
        NOTE.write_tensors(tmp_path / name, {}, {"text": "t", "numbers": []})
    assert list(tmp_path.iterdir()) == []


def test_writing_again_replaces_the_file(tmp_path: Path) -> None:
    for text in ("first", "second"):
        NOTE.write(tmp_path / "note.json", {"text": text, "numbers": []})
        NOTE.write_tensors(tmp_path / "note.safetensors", {}, {"text": text, "numbers": []})
    assert NOTE.read(tmp_path / "note.json").text == "second"
    assert NOTE.read_values(tmp_path / "note.safetensors").text == "second"
