"""Folders of checkpoints as libraries write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor


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


def names_in(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def same(found: Any, expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[n].dtype == t.dtype and torch.equal(found[n].view(torch.uint8), t.view(torch.uint8))
        for n, t in expected.items()
    )
