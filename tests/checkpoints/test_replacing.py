"""Replacing: nothing disappears but what belongs to the checkpoint that is replaced."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alignkit import write_weights
from alignkit.checkpoints import open_checkpoint, write_checkpoint, write_text
from alignkit.errors import WeightsError
from helpers.checkpoint_folders import hub_folder, listing, same

TEXT = b"not ours"
FILES = "optimizer.pt scheduler.pt rng_state.pth training_args.bin model.onnx model-q4.gguf my_other_model.safetensors "
FILES += "data.npz embeddings.h5 notes.txt Model.safetensors model-00004-of-00003.safetensors .hidden x.part "
FILES += "checkpoint-500/optimizer.pt onnx/model.onnx .git/config 1_Pooling/notes.txt .out.0123abcd.part"


def everything(folder: Path) -> dict[str, object]:
    """Every name below a folder: the bytes of files, where links lead, and the kind of anything else."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        found[str(path.relative_to(folder))] = (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else mode
        )
    return found


def linked_file(path: Path) -> None:
    (path.parents[1] / "elsewhere").write_bytes(TEXT)
    path.symlink_to(path.parents[1] / "elsewhere")


def linked_folder(path: Path) -> None:
    (path.parents[1] / "elsewhere").mkdir()
    path.symlink_to(path.parents[1] / "elsewhere")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # its whole path may be too long for a socket


KINDS: dict[str, Callable[[Path], None]] = {
    "link.json": linked_file,
    "link": linked_folder,
    "empty": Path.mkdir,
    "pipe.json": os.mkfifo,
    "socket": a_socket,
}


def put(path: Path, name: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if name in KINDS:
        KINDS[name](path)
    else:
        path.write_bytes(TEXT)


@pytest.mark.parametrize("name", [*FILES.split(), *KINDS])
def test_a_folder_with_anything_else_in_it_is_not_replaced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub_folder(tmp_path / "m")
    hub_folder(tmp_path / "n", seed=1)
    put(tmp_path / "m" / name, name)
    before, asked = everything(tmp_path), []
    checkpoint = open_checkpoint(tmp_path / "n")
    with pytest.raises(WeightsError, match=r"cannot replace .*: it holds .*") as refused:
        write_checkpoint(tmp_path / "m", checkpoint, lambda n: asked.append(n) or checkpoint[n], overwrite=True)
    assert name.split("/")[0] in str(refused.value)
    assert everything(tmp_path) == before
    assert not asked, "it was refused after work was done"


@pytest.mark.parametrize("name", [*FILES.split(), *KINDS])
def test_in_place_everything_else_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub_folder(tmp_path / "m")
    put(tmp_path / "m" / name, name)
    before = everything(tmp_path)
    said = ""
    try:
        checkpoint = open_checkpoint(tmp_path / "m")
        write_checkpoint(tmp_path / "m", checkpoint, lambda n: checkpoint[n].flip(0), overwrite=True)
    except WeightsError as error:
        said = str(error)
    after = everything(tmp_path)
    assert after.keys() == before.keys()
    if said:
        assert name.split("/")[0] in said
        assert after == before
    assert all(after[path] == before[path] for path in before if "/model-0000" not in path or path.endswith(name))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_another_form_are_replaced(name: str, tmp_path: Path) -> None:
    weights = hub_folder(tmp_path / "n", seed=1)
    (tmp_path / "m").mkdir()
    write_weights(tmp_path / "m" / name, {"x": torch.ones(2)})
    (tmp_path / "m" / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "n")
    write_checkpoint(tmp_path / "m", checkpoint, checkpoint.__getitem__, overwrite=True)
    assert listing(tmp_path / "m") == listing(tmp_path / "n")
    assert same(open_checkpoint(tmp_path / "m"), weights)


def test_an_index_cannot_name_what_is_replaced_outside_of_weights(tmp_path: Path) -> None:
    hub_folder(tmp_path / "n", seed=1)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_bytes(TEXT)
    (tmp_path / "m" / "model.safetensors.index.json").write_text('{"weight_map": {"x": "notes.txt"}}')
    checkpoint = open_checkpoint(tmp_path / "n")
    with pytest.raises(WeightsError, match=r"holds notes.txt"):
        write_checkpoint(tmp_path / "m", checkpoint, checkpoint.__getitem__, overwrite=True)
    assert (tmp_path / "m" / "notes.txt").read_bytes() == TEXT


def test_a_file_that_somebody_puts_there_meanwhile_stays(tmp_path: Path) -> None:
    hub_folder(tmp_path / "m")
    hub_folder(tmp_path / "n", seed=1)
    before = listing(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "n")

    def late(name: str) -> torch.Tensor:
        (tmp_path / "m" / "thesis.tex").write_bytes(TEXT)
        return checkpoint[name]

    with pytest.raises(WeightsError, match=r"holds thesis.tex"):
        write_checkpoint(tmp_path / "m", checkpoint, late, overwrite=True)
    assert listing(tmp_path / "m") == {**before, "thesis.tex": TEXT}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "n"]


@pytest.mark.parametrize("make", [os.mkfifo, a_socket, linked_file, linked_folder, Path.mkdir])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_only_files_are_replaced_by_files(
    make: Callable[[Path], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / name)
    before = everything(tmp_path)
    writers = (lambda path: write_weights(path, {"a": torch.ones(2)}), lambda path: write_text(path, "text"))
    if make is linked_file:  # a link is followed, and stays
        writers[0](tmp_path / "in" / name)
        assert (tmp_path / "in" / name).is_symlink()
        assert (tmp_path / "elsewhere").read_bytes() != TEXT
        return
    for write in writers:
        with pytest.raises(WeightsError, match=r"cannot write .*: it is a"):
            write(tmp_path / "in" / name)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_are_equal_in_bytes_from_run_to_run(suffix: str, tmp_path: Path) -> None:
    weights = {"b": torch.randn(4, 3), "a": torch.ones(2)}
    for name in ("one", "two"):
        write_weights(tmp_path / f"{name}{suffix}", weights)
    save = save_file if suffix == ".safetensors" else torch.save
    save(weights, tmp_path / f"in{suffix}")
    checkpoint = open_checkpoint(tmp_path / f"in{suffix}")
    for name in ("three", "four"):
        write_checkpoint(tmp_path / f"{name}{suffix}", checkpoint, checkpoint.__getitem__)
    read = {name: (tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two", "three", "four")}
    assert read["one"] == read["two"]
    assert read["three"] == read["four"]
