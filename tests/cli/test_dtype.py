"""`--dtype` on every command that writes weights, and inputs of different dtypes."""

from __future__ import annotations

import json

import pytest
import torch

from alignkit import read_weights, write_weights
from alignkit.checkpoints import open_checkpoint
from helpers.command_line import run
from helpers.weight_files import GIVEN, JOBS

WRITING = [job for job, (_, output) in JOBS.items() if output]


def dtypes_below(place):
    files = [place] if place.is_file() else sorted(place.iterdir())
    return {tensor.dtype for file in files for tensor in read_weights(file).values()}


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp16", "float64"])
@pytest.mark.parametrize("job", WRITING)
def test_every_command_that_writes_takes_a_dtype_and_tells_what_it_rounds(folder, job, dtype, memory):
    if memory and job == "canonical-form":
        pytest.skip("it has no --memory")
    arguments, output = JOBS[job]
    within = ["--memory", "1MB"] if memory else []
    said = json.loads(run(*arguments, "--dtype", dtype, "--json", *within))
    wanted = {"fp16": torch.float16}.get(dtype) or getattr(torch, dtype)
    assert dtypes_below(folder / output) == {wanted}
    assert (said.get("weight_rounding", 0) > 1e-6) == (dtype != "float64")
    assert ("Rounded to" in run(*arguments, "--dtype", dtype, "--force", *within)) == (dtype != "float64")


@pytest.mark.parametrize("job", WRITING)
def test_inputs_of_different_dtypes_give_outputs_in_the_dtypes_of_what_they_are_like(folder, job):
    b = {name: tensor.bfloat16() for name, tensor in read_weights("b.safetensors").items()}
    write_weights("b.safetensors", b)
    arguments, output = JOBS[job]
    run(*arguments)
    place = folder / output
    expected = {torch.bfloat16} if job in ("solve", "transport") else {torch.float32}
    expected = {torch.float32, torch.bfloat16} if place.is_dir() else expected
    assert dtypes_below(place) == expected


@pytest.mark.models("transformers")
def test_folders_say_the_new_dtype(transformers_folders):
    config = transformers_folders / "a" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}))
    index = transformers_folders / "a" / "model.safetensors.index.json"
    facts = json.loads(index.read_text())
    index.write_text(json.dumps({**facts, "metadata": {"total_size": open_checkpoint("a").nbytes}}))
    run("merge", "a", "b", "-o", "m", "--dtype", "bfloat16")
    merged = open_checkpoint("m")
    assert set(merged.dtypes.values()) == {torch.bfloat16}
    assert json.loads(merged.config.read_text())["dtype"] == "bfloat16"
    written = json.loads((transformers_folders / "m" / index.name).read_text())
    assert written["metadata"]["total_size"] == merged.nbytes == open_checkpoint("a").nbytes // 2


def test_a_wrong_dtype_is_refused_before_anything_is_written(folder):
    said = run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *GIVEN, "--dtype", "int8", code=2)
    assert "'int8' is not a floating-point dtype" in said and not (folder / "m.safetensors").exists()
