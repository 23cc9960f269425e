"""Writing checkpoints: shards, headers and side files are those of the input, and nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from alignkit import write_weights
from alignkit.checkpoints import ByteProgress, open_checkpoint, write_checkpoint
from alignkit.errors import WeightsError
from helpers.checkpoint_folders import hub_folder, listing, same, tensors


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
    if suffix == "safetensors":
        assert all(len(before[name]) == len(after[name]) for name in after)
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
    loaded = torch.load(tmp_path / "b.pt", weights_only=True)
    assert loaded.keys() == {"state_dict"}
    assert loaded["state_dict"]["embed"].data_ptr() == loaded["state_dict"]["head"].data_ptr()
    assert torch.equal(loaded["state_dict"]["head"], 2 * shared)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (lambda t: t.float(), "is bfloat16 .5, 3., the new values are float32"),
        (lambda t: t[:4], "the new values are bfloat16 .4, 3."),
        (lambda t: iter(t[:4].split(2)), "has 30 bytes, the new values have 24"),
        (lambda t: t.to("meta"), "not a dense tensor"),
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
