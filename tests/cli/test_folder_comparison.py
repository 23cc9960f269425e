"""Folders of the same shapes and another configuration: every job refuses them, and names the fields."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import alignkit
from alignkit import SymmetryGraph, read_weights, write_weights
from alignkit.errors import BindError, VerificationError
from alignkit.jobs import FolderWarning
from helpers.command_line import run

pytestmark = pytest.mark.models("transformers")


def change(folder: str, **fields: Any) -> None:
    path = Path(folder, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


JOBS = {
    "merge": ["merge", "a", "b", "-o", "m"],
    "merge of three": ["merge", "a", "a", "b", "-o", "m"],
    "merge from disk": ["merge", "a", "b", "-o", "m", "--memory", "50MB"],
    "merge without aligning": ["merge", "a", "b", "-o", "m", "--no-align"],
    "dry run": ["merge", "a", "b", "-o", "m", "--dry-run"],
    "solve": ["solve", "a", "b", "-o", "m"],
    "solve from disk": ["solve", "a", "b", "-o", "m", "--memory", "50MB"],
    "distance": ["distance", "a", "b"],
    "compare": ["compare", "a", "b"],
    "transport": ["transport", "a", "a", "b", "-o", "m"],
    "tuned": ["transport", "a", "b", "a", "-o", "m"],
    "align-many": ["align-many", "a", "b", "-o", "m"],
    "canonicalize": ["canonicalize", "a", "b", "-o", "m"],
    "check": ["check", "a", "--against", "b"],
}


@pytest.mark.parametrize("job", JOBS)
def test_every_job_refuses_another_configuration(job: str, transformers_folders: Path) -> None:
    change("b", n_head=4, layer_norm_epsilon=1e-3)
    said = run(*JOBS[job], code=1)
    assert "n_head (2 in a, 4 in b)" in said
    assert "layer_norm_epsilon (1e-05 in a, 0.001 in b)" in said
    assert "--ignore-config" in said
    assert not Path("m").exists()


def test_python_refuses_it_too(transformers_folders: Path) -> None:
    change("b", activation_function="relu")
    with pytest.raises(BindError, match="activation_function"):
        alignkit.open_networks("a", "b")


def test_a_field_can_be_ignored_and_each_network_runs_with_its_own(transformers_folders: Path) -> None:
    change("b", layer_norm_epsilon=10.0)
    said = run("merge", "a", "b", "-o", "m", "--ignore-config", "layer_norm_epsilon")
    assert "Function check of a, b:" in said
    files = alignkit.open_networks("a", "b", ignore_config=["layer_norm_epsilon"])
    example = files.example
    assert example is not None
    outputs = [files.module(index)(**example[2]).logits for index in (0, 1)]
    assert not torch.allclose(*outputs, atol=1e-3)  # the weights are the same up to their order


def test_what_is_ignored_is_only_what_was_named(transformers_folders: Path) -> None:
    change("b", layer_norm_epsilon=10.0, n_head=4)
    said = run("merge", "a", "b", "-o", "m", "--ignore-config", "layer_norm_epsilon", code=1)
    assert "n_head" in said
    assert "layer_norm_epsilon" not in said


def test_names_and_versions_do_not_matter(transformers_folders: Path) -> None:
    change("b", _name_or_path="elsewhere", transformers_version="4.1", attn_pdrop=0.3, torch_dtype="float16")
    said = run("merge", "a", "b", "-o", "m")
    assert "Note:" not in said


def test_other_tokenizers_and_labels_are_told(transformers_folders: Path) -> None:
    Path("b", "tokenizer.json").write_text('{"model": {"vocab": {"x": 0}}}')
    change("b", id2label={"0": "cat", "1": "dog"}, label2id={"cat": 0, "dog": 1})
    said = run("merge", "a", "b", "-o", "m")
    assert "Note: The tokenizers of a and b differ: tokenizer.json (model)." in said
    assert "id2label.0 ('LABEL_0' in a, 'cat' in b)" in said
    assert len(json.loads(run("distance", "a", "b", "--json"))["notes"]) == 2
    with pytest.warns(FolderWarning):
        alignkit.open_networks("a", "b")


def test_a_folder_without_a_configuration_is_told(transformers_folders: Path) -> None:
    Path("b", "config.json").unlink()
    assert "Note: b has no config.json of a model" in run("merge", "a", "b", "-o", "m")


def test_a_folder_of_another_library_is_refused(transformers_folders: Path) -> None:
    Path("b", "config.json").write_text('{"mine": 1}')
    assert "names no model of transformers" in run("merge", "a", "b", "-o", "m", code=2)


@pytest.mark.parametrize("job", ["merge", "solve", "merge from disk"])
def test_a_configuration_that_leaves_weights_out_is_refused(job: str, transformers_folders: Path) -> None:
    # Whole layers would stay those of the first network beside weights of the second.
    for name in "ab":
        change(name, n_layer=1)
    said = run(*JOBS[job], code=1)
    assert "transformer.h.1" in said
    assert not Path("m").exists()


def test_quantised_folders_are_refused(transformers_folders: Path) -> None:
    for name in "ab":
        change(name, quantization_config={"quant_method": "fp8"})
    assert "weights are quantised" in run("merge", "a", "b", "-o", "m", code=1)


def test_the_function_of_every_network_is_checked(transformers_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("b", "c")
    assert "Function check of a, b, c: 3 random reorderings" in run("merge", "a", "b", "c", "-o", "m")
    verify, third = SymmetryGraph.verify, read_weights("c")["transformer.h.0.mlp.c_fc.bias"] + 1
    write_weights("d.safetensors", {**read_weights("c"), "transformer.h.0.mlp.c_fc.bias": third})
    shutil.copy("a/config.json", "config.json")

    def refuse_third(graph: SymmetryGraph, model: nn.Module, *args: Any, **kwargs: Any) -> object:
        if torch.equal(model.state_dict()["transformer.h.0.mlp.c_fc.bias"], third):
            raise VerificationError("an output changes.")
        return verify(graph, model, *args, **kwargs)

    monkeypatch.setattr(SymmetryGraph, "verify", refuse_third)
    assert "d.safetensors: an output changes." in run("merge", "a", "b", "d.safetensors", "-o", "n", code=1)
