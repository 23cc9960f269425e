"""Every kind of document: a changed byte is noticed, and a value of a wrong type is refused when it is read."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors
import safetensors.torch
import torch

import alignkit
from alignkit import Alignment, Solution, SymmetryGraph, zoo
from alignkit.checkpoints.documents import ENTRY, with_digest
from alignkit.deepalign import load_aligner, save_aligner
from alignkit.deepalign.dws.aligner import DwsAligner
from alignkit.errors import AlignkitError
from alignkit.jobs.compare.comparison import Comparison, ComparisonRow
from alignkit.jobs.compare.job import ROWS
from alignkit.jobs.row_file import RowFile
from alignkit.tasks.interpolation import Interpolation
from alignkit.training.records import TrainingCheckpoint
from alignkit.zoo.manifest import Manifest, NetworkRecord, SetShard, read_manifest, write_manifest
from helpers.aligner_inputs import encoder
from helpers.documents import unsealed

GRAPH = SymmetryGraph.from_spec({"w": "h .", "v": ". h"}, {"w": (4, 3), "v": (3, 4)})
LINE = Interpolation((0.0, 0.5, 1.0), (1.0, 2.5, 1.25), (0.5, 0.25, 0.75), "accuracy", "one")
ROW = ComparisonRow("identity", 0, "OK", "", 3.5, 2.25, LINE, 1.5, None, 0.125, 1024, 3, {"seed": 0, "start": "centre"})
RUN = {"settings": {"steps": 3}}
OF = {"graph": GRAPH.fingerprint, "points": 3}


def solution() -> Solution:
    generator = torch.Generator().manual_seed(0)
    a, b = ({n: torch.randn(s, generator=generator) for n, s in (("w", (4, 3)), ("v", (3, 4)))} for _ in range(2))
    return alignkit.solve(GRAPH, a, b, solver="sinkhorn > weight_matching")


class Kind(NamedTuple):
    """How a document is written to a path, and what somebody sees who reads it."""

    suffix: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


def row_file(path: Path) -> RowFile[ComparisonRow]:
    return RowFile(path, ROWS, OF, ComparisonRow.from_dict)


def rows(path: Path) -> list[dict[str, Any]]:
    return [row.to_dict() for row in row_file(path).rows]


def write_rows(path: Path) -> None:
    file = row_file(path)
    file.append(ROW.to_dict())
    file.append(ROW.to_dict())


def seen(read: Solution) -> object:
    return read.explain(), read.facts(), read.alignment, [stage.explain() for stage in read.stages], repr(read.soft)


def trained(folder: Path) -> dict[str, Any]:
    state = TrainingCheckpoint.load(folder, RUN)
    return {**vars(state), "aligner": {name: tensor.tolist() for name, tensor in state.aligner.items()}}


def write_set(path: Path) -> None:
    plan = zoo.plan_set(zoo.Mlp(widths=(4,)), zoo.source("digits"), 3)
    networks = [NetworkRecord(index=i, seed=2 * i, target=0, loss=0.5, accuracy=0.75) for i in range(3)]
    shards = (SetShard(file="a", first=0, networks=networks[:2]), SetShard(file="b", first=2, networks=networks[2:]))
    write_manifest(path.parent, Manifest(plan=plan, splits=plan.split(), shards=shards, seconds=1.5))


KINDS: dict[str, Kind] = {
    "solution": Kind(".safetensors", lambda p: solution().save(p), lambda p: seen(Solution.load(p, GRAPH))),
    "alignment": Kind(".safetensors", lambda p: Alignment.random(GRAPH).save(p), lambda p: Alignment.load(p, GRAPH)),
    "aligner": Kind(
        ".safetensors", lambda p: save_aligner(p, encoder(0), {"by": "test"}), lambda p: load_aligner(p).fingerprint
    ),
    "aligner of a graph": Kind(
        ".safetensors",
        lambda p: save_aligner(p, DwsAligner(GRAPH, hidden=2, edges=2, output=2)),
        lambda p: load_aligner(p).fingerprint,
    ),
    "graph": Kind(
        ".json",
        lambda p: p.write_text(GRAPH.to_json()),
        lambda p: SymmetryGraph.from_json(p.read_text(errors="replace")).to_json(),
    ),
    "interpolation": Kind(
        ".json",
        lambda p: p.write_text(LINE.to_json()),
        lambda p: Interpolation.from_json(p.read_text(errors="replace")),
    ),
    "comparison": Kind(
        ".json",
        lambda p: p.write_text(Comparison((ROW,)).to_json()),
        lambda p: Comparison.from_json(p.read_text(errors="replace")),
    ),
    "rows": Kind(".jsonl", write_rows, rows),
    "manifest": Kind("/manifest.json", write_set, lambda p: read_manifest(p.parent)),
    "training": Kind(
        "/checkpoint.pt",
        lambda p: TrainingCheckpoint(RUN, 3, {"w": torch.ones(3)}, {"state": {0: {"step": 1.0}}}).save(p.parent),
        lambda p: trained(p.parent),
    ),
}


def written(kind: str, folder: Path) -> Path:
    path = folder / f"document{KINDS[kind].suffix}"
    path.parent.mkdir(exist_ok=True)
    KINDS[kind].write(path)
    return path


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List every place in plain values, the containers too."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Replace the value at a place."""
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = changed(value[path[0]], path[1:], new)
    return copied


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind: str, tmp_path: Path) -> None:
    path = written(kind, tmp_path)
    assert KINDS[kind].read(path) == KINDS[kind].read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_is_noticed_or_changes_nothing(kind: str, tmp_path: Path) -> None:
    path, generator = written(kind, tmp_path), random.Random(0)
    whole, before = path.read_bytes(), KINDS[kind].read(path)
    digits = [at for at, byte in enumerate(whole) if byte in b"0123456789"]
    noticed = 0
    for trial in range(150):
        damaged = bytearray(whole)
        if trial % 2:
            damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        else:
            at = generator.choice(digits)
            damaged[at] = ord(str((int(chr(whole[at])) + generator.randrange(1, 10)) % 10))
        path.write_bytes(damaged)
        try:
            assert KINDS[kind].read(path) == before
        except AlignkitError:
            noticed += 1
    assert noticed > 100 or kind == "training"


JSON_KINDS = [kind for kind in KINDS if kind not in ("training", "rows")]
WRONG = [None, True, 3, -1, 1e400, "x", [], {}, [None], {"x": 1}, 10**30]


def values_of(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            return unsealed(file.metadata()[ENTRY])
    return unsealed(path.read_text())


def rewrite(path: Path, values: object) -> None:
    if path.suffix == ".safetensors":
        tensors = safetensors.torch.load_file(path)
        safetensors.torch.save_file(tensors, path, {ENTRY: json.dumps(values)})
    else:
        path.write_text(json.dumps(values))


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_values_of_wrong_types_are_refused_when_they_are_read(kind: str, tmp_path: Path) -> None:
    path, generator = written(kind, tmp_path), random.Random(0)
    values = values_of(path)
    cases = [(place, wrong) for place in places(values) for wrong in WRONG]
    for place, wrong in generator.sample(cases, min(len(cases), 250)):
        rewrite(path, changed(values, place, wrong))
        with contextlib.suppress(AlignkitError):
            KINDS[kind].read(path)  # what is accepted can be used


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_a_document_without_a_check_sum_is_read_and_one_with_more_is_not(kind: str, tmp_path: Path) -> None:
    path = written(kind, tmp_path)
    before, values = KINDS[kind].read(path), values_of(path)
    rewrite(path, values)
    assert KINDS[kind].read(path) == before
    rewrite(path, {**values, "digesu": "0"})
    if kind == "comparison":  # the command writes facts of its own beside it
        assert KINDS[kind].read(path) == before
        return
    with pytest.raises(AlignkitError, match="digesu"):
        KINDS[kind].read(path)


@pytest.mark.parametrize("kind", JSON_KINDS)
@pytest.mark.parametrize("text", ["null", "3", "true", "[]", '""', "[" * 100_000, '{"a":' * 100_000, "NaN", "{}"])
def test_texts_that_are_no_document_are_refused(text: str, kind: str, tmp_path: Path) -> None:
    path = written(kind, tmp_path)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({"a": torch.zeros(1)}, path, {ENTRY: text})
    else:
        path.write_text(text)
    with pytest.raises(AlignkitError):
        KINDS[kind].read(path)


@pytest.mark.parametrize("line", ["null", "3", "[]", "{}", "[" * 100_000, '{"solver": 3}', "\x00", '"x"'])
def test_lines_that_are_no_rows_are_refused_with_their_number(line: str, tmp_path: Path) -> None:
    path = written("rows", tmp_path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(AlignkitError, match=r"line 4 of .*document\.jsonl"):
        rows(path)


def test_rows_of_wrong_types_are_refused(tmp_path: Path) -> None:
    path = written("rows", tmp_path)
    lines, row = path.read_text().splitlines(), ROW.to_dict()
    for place in places(row):
        for wrong in WRONG:
            path.write_text("\n".join([*lines, json.dumps(with_digest({"row": changed(row, place, wrong)}))]) + "\n")
            with pytest.raises(AlignkitError, match="line 4"):
                rows(path)
            new = changed(row, place, wrong)
            path.write_text("\n".join([*lines, json.dumps(new)]) + "\n")
            with contextlib.suppress(AlignkitError):
                Comparison(tuple(row_file(path).rows)).explain()
