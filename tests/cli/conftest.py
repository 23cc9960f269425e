"""Fixtures of the tests of `alignkit.cli`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

import alignkit
from alignkit import Alignment, SymmetryGraph, write_weights
from helpers.model_modules import model_modules as model_modules
from helpers.weight_files import MODULE, SPEC, shifted, weights


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with files to run jobs on.

    It has a; b and c, which are a reordered, with a little noise; same, without noise; tuned, which is a fine-tuned; a
    spec; and a module with a model and its task.
    """
    graph = SymmetryGraph.from_spec(SPEC, like=weights(0))
    write_weights(tmp_path / "a.safetensors", weights(0))
    write_weights(tmp_path / "tuned.safetensors", shifted(weights(0), 9))
    for seed, name in ((1, "b"), (2, "c")):
        write_weights(tmp_path / f"{name}.safetensors", Alignment.random(graph, seed).apply(shifted(weights(0), seed)))
    write_weights(tmp_path / "same.safetensors", Alignment.random(graph, 5).apply(weights(0)))
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    (tmp_path / "job_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("job_nets", None)


GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 16,
    "n_head": 2,
    "n_layer": 2,
    "vocab_size": 40,
    "n_positions": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture
def transformers_folders(folder: Path) -> Path:
    """Two folders of a small GPT-2: ``b`` is ``a`` with heads and units reordered; both sharded, ``b`` with noise."""
    from alignkit.models import load_model

    (folder / "config.json").write_text(json.dumps(GPT2))
    model, args, kwargs = load_model(f"transformers:{folder}")
    (folder / "config.json").unlink()
    graph = alignkit.trace(model, *args, **kwargs)
    names = [node.name for node in graph.tensors.values()]
    a = {n: t for n, t in model.state_dict().items() if n in names}
    b = Alignment.random(graph, 3).apply(a)
    for name, values in (("a", a), ("b", b)):
        target = folder / name
        target.mkdir()
        (target / "config.json").write_text(json.dumps(GPT2))
        (target / "tokenizer.json").write_text("{}")
        parts = (names[::2], names[1::2])
        files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for file, part in zip(files, parts, strict=True):
            save_file({n: values[n].contiguous() for n in part}, target / file, {"format": "pt"})
        table = {n: file for file, part in zip(files, parts, strict=True) for n in part}
        (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder
