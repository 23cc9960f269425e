"""Folders of checkpoints: they need no model, every job takes them, and `--memory` keeps them on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from alignkit import read_weights, write_weights
from helpers.checkpoint_folders import names_in
from helpers.command_line import run
from helpers.weight_files import GIVEN, A, B, equal


@pytest.mark.models("transformers")
def test_folders_of_transformers_need_no_model(transformers_folders: Path) -> None:
    said = run("merge", "a", "b", "-o", "m")
    assert "Function check of a, b: 3 random reorderings" in said
    a, merged = read_weights("a"), read_weights("m")
    assert all(torch.allclose(merged[name], tensor, atol=1e-6) for name, tensor in a.items())
    assert names_in("m") == names_in("a") | {"alignkit.json", "README.md"}
    assert "exists" in run("merge", "a", "b", "-o", "m", code=2)
    run("merge", "a", "b", "-o", "m", "--force")


@pytest.mark.models("transformers")
def test_every_job_takes_folders(transformers_folders: Path) -> None:
    run("solve", "a", "b", "-o", "s")
    assert equal(read_weights("s"), read_weights("a"))
    run("solve", "a", "b", "-o", "s.safetensors")
    assert equal(read_weights("s.safetensors"), read_weights("a"))
    assert "the same up to permutation" in run("distance", "a", "b", "--same")
    assert "Passed with its own weights" in run("check", "b")
    assert "Passed: b computes what a does" in run("check", "a", "--against", "b")
    run("transport", "a", "a", "b", "-o", "t")
    assert equal(read_weights("t"), read_weights("b"))
    run("canonicalize", "a", "b", "-o", "canonical")
    assert equal(read_weights("canonical/b"), read_weights("a"))
    run("align-many", "a", "b", "-o", "many")
    assert equal(read_weights("many/b"), read_weights("a"))
    assert "Estimate of merge" in run("merge", "a", "b", "-o", "m", "--dry-run")


@pytest.mark.models("transformers")
def test_models_of_the_hub_are_read_from_its_cache(transformers_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(transformers_folders / "hub"))
    model = transformers_folders / "hub" / "models--some-one--b"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    shutil.copytree("b", model / "snapshots" / ("a" * 40))
    assert "the same up to permutation" in run("distance", "a", "some-one/b", "--same")
    run("merge", "some-one/b", "a", "-o", "m")
    assert names_in("m") == names_in("b") | {"alignkit.json", "README.md"}
    assert "---\nbase_model: [some-one/b]\n" in Path("m/README.md").read_text()
    assert "Passed" in run("check", "some-one/b")
    run("align-many", "a", "some-one/b", "-o", "many")
    assert equal(read_weights("many/b"), read_weights("a"))
    assert "--allow-download" in run("merge", "a", "some-one/else", "-o", "n", code=1)


@pytest.mark.models("transformers")
def test_tensors_that_the_model_does_not_have_are_kept(transformers_folders: Path) -> None:
    for name in "ab":
        write_weights(f"{name}.st.safetensors", {**read_weights(name), "transformer.h.0.attn.mask": torch.ones(4)})
        (transformers_folders / name / "config.json").replace(transformers_folders / "config.json")
    said = run("merge", "a.st.safetensors", "b.st.safetensors", "-o", "m.safetensors")
    assert "kept as they are in the first input: transformer.h.0.attn.mask" in said
    assert torch.equal(read_weights("m.safetensors")["transformer.h.0.attn.mask"], torch.ones(4))


@pytest.mark.models("transformers")
def test_a_folder_that_names_no_known_model_is_refused(transformers_folders: Path) -> None:
    (transformers_folders / "a" / "config.json").write_text('{"mine": 1}')
    said = run("merge", "a", "b", "-o", "m", code=2)
    assert "either --spec spec.json, or --model" in said
    assert "names no model of transformers" in said


@pytest.mark.models("transformers")
def test_memory_keeps_checkpoints_on_disk_and_finds_the_same(transformers_folders: Path) -> None:
    said = run("merge", "a", "b", "-o", "m", "--memory", "50MB", "--report", "m.html")
    assert "Function check: not done" in said
    run("merge", "a", "b", "-o", "whole")
    assert all(torch.allclose(t, read_weights("whole")[n], atol=1e-6) for n, t in read_weights("m").items())
    run("solve", "a", "b", "-o", "s", "--memory", "50MB", "--save-alignment", "p.safetensors")
    assert equal(read_weights("s"), read_weights("a"))
    assert "Memory: about 50 MB" in run("merge", "a", "b", "-o", "n", "--memory", "50MB", "--dry-run")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--memory", "lots"], "not an amount of memory"),
        (["--memory", "1GB", "--task", "job_nets:task"], "--memory does not go with --task"),
    ],
)
def test_memory_is_refused_where_it_cannot_be_kept(more: list[str], said: str, folder: Path) -> None:
    assert said in run("merge", A, B, "-o", "m.safetensors", *GIVEN, *more, code=2)
    assert not (folder / "m.safetensors").exists()
