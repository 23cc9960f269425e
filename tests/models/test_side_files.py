"""Tokenizers and preprocessing of two folders: what differs in them is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alignkit.models import differing_files

TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": [], "padding": None}
BASE: dict[str, Any] = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {"add_prefix_space": False, "name_or_path": "x", "model_max_length": 512},
    "preprocessor_config.json": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    "merges.txt": "a b",
    "spiece.model": "binary",
}
CASES = {
    "vocabulary": ({"tokenizer.json": {**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": {"b": 0, "a": 1}}}},
                   "tokenizers.*model.vocab"),
    "added tokens": ({"tokenizer.json": {**TOKENIZER, "added_tokens": [{"id": 2, "content": "c"}]}}, "added_tokens"),
    "merges": ({"merges.txt": "b a"}, r"merges\.txt"),
    "sentencepiece": ({"spiece.model": "other"}, r"spiece\.model"),
    "settings": ({"tokenizer_config.json": {"add_prefix_space": True}}, "add_prefix_space"),
    "image mean": ({"preprocessor_config.json": {"image_mean": [0.4, 0.5, 0.5]}}, "preprocessing.*image_mean"),
    "not JSON": ({"tokenizer.json": "{"}, r"tokenizer\.json"),
}  # fmt: skip


def folder(path: Path, files: dict[str, Any]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("case", CASES)
def test_what_differs_is_named(case: str, tmp_path: Path) -> None:
    changed, said = CASES[case]
    sentences = differing_files(folder(tmp_path / "a", BASE), folder(tmp_path / "b", {**BASE, **changed}))
    assert len(sentences) == 1
    assert re.search(said, sentences[0])


SAME = {
    "the same": {},
    "names": {"tokenizer_config.json": {"add_prefix_space": False, "name_or_path": "y", "chat_template": "z"}},
    "order of keys": {"tokenizer.json": dict(reversed(TOKENIZER.items()))},
    "padding": {"tokenizer.json": {**TOKENIZER, "padding": {"length": 5}}},
}


@pytest.mark.parametrize("case", SAME)
def test_what_does_not_matter_is_not_told(case: str, tmp_path: Path) -> None:
    assert differing_files(folder(tmp_path / "a", BASE), folder(tmp_path / "b", {**BASE, **SAME[case]})) == []


def test_a_file_that_one_folder_lacks_matters_where_nothing_has_all(tmp_path: Path) -> None:
    slow = {"vocab.json": {"a": 0}, "merges.txt": ""}
    a, b = folder(tmp_path / "a", slow), folder(tmp_path / "b", {**slow, "added_tokens.json": {"c": 1}})
    assert "added_tokens.json in one of them only" in differing_files(a, b)[0]
    assert differing_files(a, folder(tmp_path / "none", {})) == []
