"""Checkpoints on disk: what is opened, what is refused, and what is written."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from alignkit import SymmetryGraph, open_checkpoint, read_weights, write_checkpoint, write_weights
from alignkit.checkpoints import ByteProgress, Checkpoint
from alignkit.checkpoints.safetensors_file import DTYPES
from alignkit.errors import WeightsError


def tensors(count: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float64, torch.int64]
    return {f"layer.{i}.weight": (10 * torch.randn(5, 3, generator=generator)).to(dtypes[i % 6]) for i in range(count)}


def hub_folder(folder: Path, suffix: str = "safetensors", seed: int = 0) -> dict[str, Tensor]:
    """A folder as transformers saves a model: shards, index, config, tokenizer."""
    folder.mkdir(parents=True)
    weights = tensors(seed=seed)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names, weight_map = list(weights), {}
    for number, part in enumerate((names[:2], names[2:4], names[4:]), 1):
        file = f"{stem}-{number:05}-of-00003.{suffix}"
        weight_map |= dict.fromkeys(part, file)
        if suffix == "safetensors":
            safetensors.torch.save_file({n: weights[n] for n in part}, folder / file, {"format": "pt"})
        else:
            torch.save({n: weights[n] for n in part}, folder / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return weights


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(found: Any, expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[n].dtype == t.dtype and torch.equal(found[n].view(torch.uint8), t.view(torch.uint8))
        for n, t in expected.items()
    )


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_sharded_folder_is_one_mapping(tmp_path: Path, suffix: str) -> None:
    weights = hub_folder(tmp_path / "m", suffix)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert same(checkpoint, weights)
    assert checkpoint.shapes == {name: tuple(t.shape) for name, t in weights.items()}
    assert checkpoint.dtypes == {name: t.dtype for name, t in weights.items()}
    assert checkpoint.nbytes == checkpoint.metadata["total_size"] == sum(t.nbytes for t in weights.values())
    assert checkpoint.config == tmp_path / "m" / "config.json"
    assert {str(side) for side in checkpoint.side_files} >= {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert len(checkpoint.shards) == 3
    assert same(read_weights(tmp_path / "m"), weights)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_one_file_and_the_index_are_opened_too(tmp_path: Path, suffix: str) -> None:
    weights = tensors()
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(weights, path, {"by": "test"})
    else:
        torch.save(weights, path)
    assert same(open_checkpoint(path), weights)
    hub_folder(tmp_path / "m")
    assert same(open_checkpoint(tmp_path / "m" / "model.safetensors.index.json"), weights)


@pytest.mark.parametrize("dtype", [*DTYPES.values()], ids=str)
def test_every_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, (4, 3)).to(dtype)
    safetensors.torch.save_file(
        {"x": values, "scalar": values[0, 0].clone(), "none": values[:0]}, tmp_path / "a.safetensors"
    )
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    write_checkpoint(tmp_path / "b.safetensors", checkpoint, checkpoint.__getitem__)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert checkpoint["x"].dtype == dtype
    assert checkpoint["scalar"].shape == ()
    assert checkpoint["none"].shape == (0, 3)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_rows_are_read_alone(tmp_path: Path, suffix: str) -> None:
    weights = hub_folder(tmp_path / "m", suffix)
    checkpoint = open_checkpoint(tmp_path / "m")
    index = torch.tensor([4, 0, 1, 1])
    for name, tensor in weights.items():
        assert torch.equal(checkpoint.rows(name, 1, 4).double(), tensor.double()[1:4])
        assert torch.equal(checkpoint.take(name, index).double(), tensor.double()[index])


def test_a_snapshot_of_the_hub_is_links_to_blobs(tmp_path: Path) -> None:
    weights = hub_folder(tmp_path / "real")
    model = tmp_path / "models--x--y"
    snapshot, blobs = model / "snapshots" / "0a1b", model / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(p for p in sorted((tmp_path / "real").iterdir()) if p.is_file()):
        shutil.copy(path, blobs / f"{number:064}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064}")
    checkpoint = open_checkpoint(snapshot)
    assert same(checkpoint, weights)
    write_checkpoint(tmp_path / "out", checkpoint, checkpoint.__getitem__)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert same(open_checkpoint(tmp_path / "out"), weights)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    weights = tensors()
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", 900)
    with pytest.raises(WeightsError, match="was changed while it was being read"):
        checkpoint["layer.5.weight"]


# ---------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_output_has_the_same_shards_headers_and_side_files(tmp_path: Path, suffix: str) -> None:
    weights = hub_folder(tmp_path / "m", suffix)
    (tmp_path / "m" / "model.onnx").write_bytes(b"other weights")
    (tmp_path / "m" / "training_args.bin").write_bytes(b"a pickle")
    checkpoint = open_checkpoint(tmp_path / "m")
    seen: list[ByteProgress] = []
    write_checkpoint(tmp_path / "out", checkpoint, lambda name: checkpoint[name].flip(0), seen.append)
    before, after = listing(tmp_path / "m"), listing(tmp_path / "out")
    assert after.keys() == before.keys() - {"model.onnx", "training_args.bin"}
    assert same(open_checkpoint(tmp_path / "out"), {name: t.flip(0).contiguous() for name, t in weights.items()})
    assert all(before[name] == after[name] for name in after if name.endswith(".json"))
    assert all(len(before[name]) == len(after[name]) for name in after)
    if suffix == "safetensors":
        with safetensors.safe_open(tmp_path / "out" / "model-00001-of-00003.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}
    assert seen[-1].done == seen[-1].total == checkpoint.nbytes
    assert seen[-1].remaining == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


def test_rows_can_come_in_pieces(tmp_path: Path) -> None:
    weights = hub_folder(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    write_checkpoint(tmp_path / "out", checkpoint, lambda name: iter(checkpoint[name].split(2)))
    assert same(open_checkpoint(tmp_path / "out"), weights)


def test_ties_and_nesting_of_pickles_are_kept(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    torch.save({"state_dict": {"embed": shared, "head": shared, "x": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    write_checkpoint(tmp_path / "b.pt", checkpoint, lambda name: 2 * checkpoint[name])
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found.keys() == {"state_dict"}
    assert found["state_dict"]["embed"].data_ptr() == found["state_dict"]["head"].data_ptr()
    assert torch.equal(found["state_dict"]["head"], 2 * shared)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (lambda t: t.float(), "is bfloat16 .5, 3., the new values are float32"),
        (lambda t: t[:4], "the new values are bfloat16 .4, 3."),
        (lambda t: iter(t[:4].split(2)), "has 30 bytes, the new values have 24"),
        (lambda t: t.to("meta"), "no dense tensor"),
    ],
)
def test_values_that_do_not_fit_are_refused(tmp_path: Path, values: Callable[[Tensor], Any], says: str) -> None:
    hub_folder(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    with pytest.raises(WeightsError, match=says):
        write_checkpoint(tmp_path / "out", checkpoint, lambda name: values(checkpoint[name]))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_output_is_replaced_only_when_asked_and_only_if_it_is_a_checkpoint(tmp_path: Path) -> None:
    first = hub_folder(tmp_path / "m")
    second = hub_folder(tmp_path / "n", seed=1)
    checkpoint = open_checkpoint(tmp_path / "n")
    with pytest.raises(WeightsError, match="it exists"):
        write_checkpoint(tmp_path / "m", checkpoint, checkpoint.__getitem__)
    (tmp_path / "m" / "thesis.tex").write_text("years of work")
    with pytest.raises(WeightsError, match=r"holds thesis.tex, which would be lost"):
        write_checkpoint(tmp_path / "m", checkpoint, checkpoint.__getitem__, overwrite=True)
    assert same(open_checkpoint(tmp_path / "m"), first)
    (tmp_path / "m" / "thesis.tex").unlink()
    write_checkpoint(tmp_path / "m", checkpoint, checkpoint.__getitem__, overwrite=True)
    assert same(open_checkpoint(tmp_path / "m"), second)
    write_checkpoint(tmp_path / "n", checkpoint, checkpoint.__getitem__, overwrite=True)  # in place
    assert same(open_checkpoint(tmp_path / "n"), second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "n"]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("nowhere/out", "does not exist"),
        ("m/out", "is inside the other"),
        (".", "is inside the other"),
        ("file", "it is a file"),
    ],
)
def test_outputs_in_wrong_places_are_refused(tmp_path: Path, output: str, says: str) -> None:
    hub_folder(tmp_path / "m")
    (tmp_path / "file").write_text("")
    before = listing(tmp_path)
    checkpoint = open_checkpoint(tmp_path / "m")
    with pytest.raises(WeightsError, match=says):
        write_checkpoint(tmp_path / output, checkpoint, checkpoint.__getitem__, overwrite=True)
    assert listing(tmp_path) == before


def test_a_file_gets_the_suffix_of_its_format(tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors(), tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"end the name in .safetensors"):
        write_checkpoint(tmp_path / "b.pt", checkpoint, checkpoint.__getitem__)


def test_disk_space_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_folder(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))

    def never(name: str) -> Tensor:
        raise AssertionError(name)

    with pytest.raises(WeightsError, match=r"it takes 1.05 MB, its disk has 1 bytes left"):
        write_checkpoint(tmp_path / "out", checkpoint, never)


# ---------------------------------------------------------------------- what is refused


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
    "a huge header": (raw("{}", length=1 << 40), "the most is"),
    "a huge header of the right size": (raw("{}", length=100_000_001), "the most is"),
    "a name twice": (raw("{" + X + "," + X + "}", b"\0" * 8), "'x' comes twice"),
    "an unknown dtype": (raw("{" + X.replace("F32", "F31") + "}", b"\0" * 8), "cannot be read"),
    "a dtype of another size": (raw("{" + X.replace("F32", "F64") + "}", b"\0" * 8), "cannot be read"),
    "a negative size": (raw("{" + X.replace("[2]", "[-2]") + "}", b"\0" * 8), "cannot be read"),
    "a size that overflows": (
        raw("{" + X.replace("[2]", "[4611686018427387904,4]") + "}", b"\0" * 8),
        "cannot be read",
    ),
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


def test_a_checkpoint_is_a_mapping_without_values(tmp_path: Path) -> None:
    hub_folder(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert isinstance(checkpoint, Checkpoint)
    assert "layer.0.weight" in checkpoint and "other" not in checkpoint
    assert len(checkpoint) == len(list(checkpoint)) == 6
    with pytest.raises(KeyError):
        checkpoint["other"]
    assert "6 tensors" in repr(checkpoint)


# ---------------------------------------------------------------------- what uses them


def test_graphs_bind_folders_indices_and_checkpoints(tmp_path: Path) -> None:
    weights = {"up": torch.randn(4, 3), "down": torch.randn(2, 4)}
    (tmp_path / "m").mkdir()
    safetensors.torch.save_file(weights, tmp_path / "m" / "model.safetensors")
    graph = SymmetryGraph.from_spec({"up": "h .", "down": ". h"}, weights)
    checkpoint = open_checkpoint(tmp_path / "m")
    pair = graph.bind(tmp_path / "m", checkpoint)
    assert same(pair.a, weights) and same(pair.b, weights)
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "part.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "part.safetensors")}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(graph.bind(tmp_path / "m" / "model.safetensors.index.json", weights).a, weights)
    shapes_only = SymmetryGraph.from_spec({"up": "h .", "down": ". h"}, checkpoint.shapes)
    assert shapes_only.groups == graph.groups


def test_a_disk_that_fills_up_below_torch_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(tensors(), tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")

    def full(*args: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 554")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WeightsError, match=r"cannot write .*b.pt: .*unexpected pos"):
        write_checkpoint(tmp_path / "b.pt", checkpoint, checkpoint.__getitem__)
    with pytest.raises(WeightsError, match=r"cannot write .*b.pt: .*unexpected pos"):
        write_weights(tmp_path / "b.pt", tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
