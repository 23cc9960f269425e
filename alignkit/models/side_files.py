"""Files beside weights that say how inputs are made: tokenizers and preprocessing. How those of two folders differ."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.arguments import check_arguments
from alignkit.text import list_some

MAX_PARSED = 100_000_000
"""Bytes of a file that is looked into; of a larger one it is only said that it differs."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.*",
             "merges.txt", "*.model", "*.tiktoken")  # fmt: skip
"""Patterns of the files of tokenizers."""
CHAT = ("chat_template.*",)
"""Patterns of files that say how a conversation becomes one text, which go with the tokenizer."""
PREPROCESSING = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
WITH_ALL = "tokenizer.json"
"""The file that has all of a tokenizer in it. Where both folders have it, files that one lacks do not matter."""
NO_MATTER = frozenset(
    (
        *("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file", "transformers_version"),
        *("auto_map", "chat_template", "processor_class", "tokenizer_class", "clean_up_tokenization_spaces"),
        *("image_processor_type", "feature_extractor_type", "model_max_length", "max_length", "stride"),
        *("padding", "padding_side", "truncation", "truncation_side"),
    )
)
"""Keys that do not change which numbers an input becomes."""


@check_arguments
def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """List the files of the tokenizer of a folder, relative to it."""
    found = {path.relative_to(folder) for pattern in (*TOKENIZER, *CHAT) for path in folder.glob(pattern)}
    return tuple(sorted(path for path in found if (folder / path).is_file()))


@check_arguments
def differing_files(a: Path, b: Path) -> list[str]:
    """Say in sentences how the tokenizers and the preprocessing of two folders differ; nothing where one has none."""
    said = []
    for what, patterns in (("tokenizers", TOKENIZER), ("preprocessing steps", PREPROCESSING)):
        sides = [{path.name for pattern in patterns for path in folder.glob(pattern)} for folder in (a, b)]
        if not all(sides):
            continue
        common = sides[0] & sides[1]
        parts = [part for name in sorted(common) if (part := _difference(a / name, b / name))]
        if WITH_ALL not in common:
            parts += [f"{name} in one of them only" for name in sorted(sides[0] ^ sides[1])]
        if parts:
            said.append(f"The {what} of {a} and {b} differ: {list_some(parts, 5)}.")
    return said


def _difference(a: Path, b: Path) -> str:
    """Name a file, and the keys in it, that differ between two folders; "" where they do not."""
    if filecmp.cmp(a, b, shallow=False):
        return ""
    if a.suffix != ".json" or max(a.stat().st_size, b.stat().st_size) > MAX_PARSED:
        return a.name
    try:
        left, right = (json.loads(path.read_text(encoding="utf-8")) for path in (a, b))
    except (ValueError, RecursionError):
        return a.name
    keys = list(_differing_keys(left, right))
    return f"{a.name} ({list_some(keys, 3)})" if keys else ""


def _differing_keys(left: Any, right: Any, levels: int = 2) -> list[str]:
    """List the keys under which two objects of JSON differ, down to some levels."""
    if not (isinstance(left, Mapping) and isinstance(right, Mapping)):
        return [] if left == right else [""]
    differing: list[str] = []
    for key in dict.fromkeys((*left, *right)):
        if key in NO_MATTER or left.get(key) == right.get(key):
            continue
        deeper = _differing_keys(left.get(key), right.get(key), levels - 1) if levels > 1 else [""]
        differing += [f"{key}.{part}" if part else str(key) for part in deeper]
    return differing
