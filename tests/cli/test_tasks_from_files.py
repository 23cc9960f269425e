"""`--task` with files of data, in every command that has it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from alignkit import write_weights
from helpers.command_line import run
from helpers.weight_files import GIVEN, TUNED, A, B, C

MODEL = ("--model", "job_nets:net")
SOLVER = ("--solver", "activation_matching")
CALLS = {
    "solve": ["solve", A, B, "-o", "out.safetensors", *SOLVER],
    "distance": ["distance", A, B, *SOLVER],
    "merge": ["merge", A, B, "-o", "out.safetensors", *SOLVER],
    "merge three": ["merge", A, B, C, "-o", "out.safetensors", *SOLVER],
    "transport": ["transport", A, TUNED, B, "-o", "out.safetensors", *SOLVER],
    "align-many": ["align-many", A, B, C, "-o", "out", *SOLVER],
    "compare": ["compare", A, B, "--solver", "activation_matching"],
}
REGRESSION = {"inputs": torch.randn(24, 4), "targets": torch.randn(24, 3)}
TABLES = {
    "numbers.npz": REGRESSION,
    "numbers.safetensors": {"x": REGRESSION["inputs"], "y": REGRESSION["targets"]},
    "classes.pt": {"images": torch.randn(24, 4), "labels": torch.randint(3, (24,))},
}


def write_table(name, table):
    if name.endswith(".npz"):
        np.savez(name, **{key: tensor.numpy() for key, tensor in table.items()})
    else:
        write_weights(name, table)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("call", CALLS)
def test_solvers_that_need_data_run_on_a_table(folder, call, table):
    write_table(table, TABLES[table])
    run(*CALLS[call], *MODEL, "--task", table)


def test_losses_are_those_of_the_table(folder):
    write_table("classes.pt", TABLES["classes.pt"])
    task = json.loads(run(*CALLS["merge"], *MODEL, "--task", "classes.pt", "--json"))["task"]
    assert "accuracy" in json.dumps(task)


WRONG = {
    "nothing.npz": (None, "there is no such file. Give package.module:function"),
    "words.npz": ({"words": torch.zeros(3)}, "holds words. Give package.module:function"),
    "empty.csv": (b"1,2", "is of no known kind. Give"),
    "broken.npz": (b"no archive", "cannot be read"),
    "text.txt": (b"some words", "needs folders of a language model"),
    "folder": ("folder", "is a folder. Give"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_task_is_refused_with_what_to_give(folder, name):
    content, said = WRONG[name]
    if content == "folder":
        (folder / name).mkdir()
    elif isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif content is not None:
        write_table(name, content)
    assert said in run(*CALLS["merge"], *MODEL, "--task", name, code=1)
    assert not (folder / "out.safetensors").exists()


def test_a_spec_cannot_be_run_on_a_table(folder):
    write_table("numbers.npz", REGRESSION)
    assert "say --model" in run(*CALLS["merge"], *GIVEN, "--task", "numbers.npz", code=2)


@pytest.mark.models("transformers")
def test_folders_of_language_models_take_a_text(transformers_folders):
    from tokenizers import Tokenizer, models, pre_tokenizers

    for name in ("a", "b"):
        words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.save(str(transformers_folders / name / "tokenizer.json"))
        (transformers_folders / name / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
        )
    (transformers_folders / "text.txt").write_text("a b ? b a " * 20)
    said = json.loads(
        run("merge", "a", "b", "-o", "m", "--task", "text.txt", "--solver", "activation_matching", "--json")
    )
    assert said["task"]
    (transformers_folders / "short.txt").write_text("a b")
    assert "give a longer text" in run("merge", "a", "b", "-o", "n", "--task", "short.txt", code=1)
