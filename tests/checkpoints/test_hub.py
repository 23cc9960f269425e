"""Ids of the Hugging Face hub: read from its cache, downloaded only where that is allowed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import alignkit
from alignkit.checkpoints import is_hub_id, open_checkpoint
from alignkit.errors import MissingExtraError, WeightsError
from helpers.checkpoint_folders import hub_folder, same


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with one model, in the layout of huggingface_hub."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs huggingface_hub")
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    model = folder / "models--some-one--tiny.model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    return model


@pytest.mark.parametrize("revision", ["", "@main", "@" + "a" * 40])
def test_a_model_is_read_from_the_cache(cache: Path, revision: str) -> None:
    weights = hub_folder(cache / "snapshots" / ("a" * 40))
    checkpoint = open_checkpoint(f"some-one/tiny.model{revision}")
    assert same(checkpoint.read_all(), weights)
    assert checkpoint.config is not None


def test_a_path_that_exists_is_never_taken_for_an_id(cache: Path, tmp_path: Path) -> None:
    hub_folder(cache / "snapshots" / ("a" * 40), seed=1)
    own = hub_folder(tmp_path / "some-one" / "tiny.model", seed=2)
    assert same(open_checkpoint("some-one/tiny.model").read_all(), own)


@pytest.mark.parametrize("name", ["some-one/other", "some-one/tiny.model@v2", "some-one/tiny.model@" + "b" * 40])
def test_what_the_cache_does_not_hold_is_not_downloaded_unasked(cache: Path, name: str) -> None:
    hub_folder(cache / "snapshots" / ("a" * 40))
    with pytest.raises(WeightsError, match=r"holds no model of this id.*--allow-download"):
        open_checkpoint(name)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_download_asks_for_one_kind_of_weights(
    cache: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def snapshot_download(name: str, *, revision: str | None, local_files_only: bool, allow_patterns: list[str]) -> str:
        assert (name, revision, local_files_only) == ("some-one/new", "v1", False)
        asked.append(allow_patterns)
        folder = tmp_path / f"downloaded-{len(asked)}"
        if f"*.{suffix}" in allow_patterns:
            hub_folder(folder, suffix)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert len(open_checkpoint("some-one/new@v1", download=True)) == 6
    assert all(("*.bin" in patterns) != ("*.safetensors" in patterns) for patterns in asked)
    assert len(asked) == (1 if suffix == "safetensors" else 2)


def test_a_download_that_fails_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(WeightsError, match="some-one/new cannot be downloaded: no route to host"):
        open_checkpoint("some-one/new", download=True)


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"some-one/new does not exist.*pip install huggingface_hub"):
        alignkit.read_weights("some-one/new")


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("a/b", True),
        ("a/b@v1.0", True),
        ("meta-llama/Llama-3.2-1B", True),
        ("a", False),
        ("a/b/c", False),
        ("./a/b", False),
        ("../a", False),
        ("/a/b", False),
        ("runs/a.pt", False),
        ("runs/model.safetensors", False),
        ("a/b.safetensors.index.json", False),
        ("", False),
    ],
)
def test_what_an_id_looks_like(name: str, is_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) is is_id
