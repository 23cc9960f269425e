"""Folders and files that are damaged or lead astray are refused before anything is read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from alignkit.checkpoints import open_checkpoint
from alignkit.errors import WeightsError
from helpers.checkpoint_folders import hub_folder, tensors


def edited_index(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "a/../../outside.safetensors",
        "..\\outside.safetensors",
        "",
        "x\0y",
        ".",
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    hub_folder(tmp_path / "m")
    safetensors.torch.save_file(tensors(), tmp_path / "outside.safetensors")
    edited_index(tmp_path / "m", lambda table: table.update({"layer.0.weight": name}))
    with pytest.raises(WeightsError, match="names"):
        open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize(
    "table",
    [
        {"x": "\ud800.safetensors"},
        {"x": "a" * 300 + ".safetensors"},
        {"x": "a/" * 5000 + "b.safetensors"},
        {f"x{i}": f"{i}.safetensors" for i in range(20_000)},
        {"x": 3},
        {"x": None},
        {"x": ["a.safetensors"]},
        [],
        ["a"],
        None,
        3,
        "a.safetensors",
        {},
    ],
    ids=lambda table: str(table)[:30],
)
def test_odd_tables_of_an_index_are_refused(tmp_path: Path, table: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    hub_folder(tmp_path / "m")
    shard = tmp_path / "m" / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "outside.safetensors")
    shard.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(WeightsError, match="is a link that leaves the folder"):
        open_checkpoint(tmp_path / "m")
    shard.unlink()
    shard.symlink_to(shard.name)
    with pytest.raises(WeightsError, match="missing or cannot be read"):
        open_checkpoint(tmp_path / "m")
    shard.unlink()
    (tmp_path / "outside.safetensors").rename(shard)
    (tmp_path / "m" / "notes.txt").symlink_to("/etc/hostname")
    with pytest.raises(WeightsError, match=r"notes.txt is a link that leaves the folder"):
        open_checkpoint(tmp_path / "m")


def test_index_and_shards_have_to_agree(tmp_path: Path) -> None:
    first = "model-00001-of-00003.safetensors"
    hub_folder(tmp_path / "missing")
    edited_index(tmp_path / "missing", lambda table: table.update({"ghost": first}))
    with pytest.raises(WeightsError, match=f"says that 'ghost' is in {first}, but it is not there"):
        open_checkpoint(tmp_path / "missing")
    hub_folder(tmp_path / "moved")
    edited_index(tmp_path / "moved", lambda table: table.update({"layer.5.weight": first}))
    with pytest.raises(WeightsError, match="but it is not there"):
        open_checkpoint(tmp_path / "moved")
    hub_folder(tmp_path / "extra")
    edited_index(tmp_path / "extra", lambda table: table.pop("layer.0.weight") and None)
    with pytest.raises(WeightsError, match=r"holds 'layer.0.weight', which .* does not place there"):
        open_checkpoint(tmp_path / "extra")
    hub_folder(tmp_path / "gone")
    (tmp_path / "gone" / first).unlink()
    with pytest.raises(WeightsError, match=f"'{first}', which is missing"):
        open_checkpoint(tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "index of shards"),
        ("[]", "index of shards"),
        ("{}", "index of shards"),
        ('{"weight_map": {}}', "has to map"),
        ('{"weight_map": {"a": 3}}', "has to map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' comes twice"),
        ("[" * 100_000, "index of shards"),
    ],
)
def test_broken_indices_are_refused(tmp_path: Path, text: str, says: str) -> None:
    hub_folder(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=says):
        open_checkpoint(tmp_path / "m")


def raw(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    body = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(body) if length is None else length) + body + data


X = '"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
BROKEN = {
    "empty": (b"", "too short"),
    "short": (b"\0\0\0", "too short"),
    "cut in the header": (raw("{" + X + "}")[:30], "cut short"),
    "cut in the data": (raw("{" + X + "}", b"\0" * 7), "cannot be read"),
    "too much data": (raw("{" + X + "}", b"\0" * 9), "cannot be read"),
    "a huge header": (raw("{}", length=1 << 40), "the maximum is"),
    "a huge header of the right size": (raw("{}", length=100_000_001), "the maximum is"),
    "a name twice": (raw("{" + X + "," + X + "}", b"\0" * 8), "'x' comes twice"),
    "an unknown dtype": (raw("{" + X.replace("F32", "F31") + "}", b"\0" * 8), "cannot be read"),
    "a dtype of another size": (raw("{" + X.replace("F32", "F64") + "}", b"\0" * 8), "cannot be read"),
    "a negative size": (raw("{" + X.replace("[2]", "[-2]") + "}", b"\0" * 8), "cannot be read"),
    "a size that overflows": (
        raw("{" + X.replace("[2]", "[4611686018427387904,4]") + "}", b"\0" * 8),
        "cannot be read",
    ),
    **{
        f"the shape {shape}": (raw("{" + X.replace("[2]", shape).replace("[0,8]", "[0,0]") + "}"), "cannot be read")
        for shape in (
            "[0,9223372036854775808,9223372036854775808]",
            "[0,4611686018427387904,4611686018427387904]",
            "[0,18446744073709551616]",
            "[0,true]",
            "[0,1.5]",
            f"[0{',1' * 64}]",
            "{}",
            "null",
        )
    },
    "overlapping": (raw("{" + X + "," + X.replace('"x"', '"y"') + "}", b"\0" * 8), "cannot be read"),
    "a hole": (raw("{" + X.replace("[0,8]", "[8,16]") + "}", b"\0" * 16), "cannot be read"),
    "no object": (raw("[]"), "cannot be read"),
    "no JSON": (raw("{x}"), "cannot be read"),
    "no UTF-8": (raw(b"{\xff}"), "cannot be read"),
    "deep": (raw("[" * 100_000), "cannot be read"),
    "metadata that is no text": (raw('{"__metadata__":{"a":1},' + X + "}", b"\0" * 8), "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_refused(tmp_path: Path, name: str) -> None:
    content, says = BROKEN[name]
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        open_checkpoint(tmp_path / "w.safetensors")


def test_it_has_to_be_clear_which_weights_are_meant(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(WeightsError, match="holds no weights"):
        open_checkpoint(tmp_path / "m")
    for name in ("a.safetensors", "b.safetensors"):
        safetensors.torch.save_file(tensors(), tmp_path / "m" / name)
    with pytest.raises(WeightsError, match=r"several weights files, a.safetensors, b.safetensors"):
        open_checkpoint(tmp_path / "m")
    (tmp_path / "m" / "a.safetensors").rename(tmp_path / "m" / "model.safetensors")
    assert len(open_checkpoint(tmp_path / "m")) == 6
    with pytest.raises(WeightsError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")


class Exploit:
    """Would make a file if its pickle were trusted."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_no_pickle_runs_code(tmp_path: Path) -> None:
    hub_folder(tmp_path / "m", "bin")
    torch.save({"layer.0.weight": Exploit(tmp_path / "ran")}, tmp_path / "m" / "pytorch_model-00001-of-00003.bin")
    with pytest.raises(WeightsError, match="could run code"):
        open_checkpoint(tmp_path / "m")
    assert not (tmp_path / "ran").exists()
