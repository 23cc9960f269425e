"""`alignkit merge`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignkit import read_weights, write_weights
from alignkit.jobs.average import average
from helpers.command_line import run
from helpers.weight_files import GIVEN, JOBS, equal, solved, weights


def test_merge_writes_the_average_of_aligned_models(folder):
    said = run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *GIVEN)
    a, b = read_weights("a.safetensors"), read_weights("b.safetensors")
    assert equal(read_weights("m.safetensors"), average([a, solved(folder).apply(b)]))
    for word in ("units moved", "unaligned", "aligned", "Function check: not done", "Written: m.safetensors"):
        assert word in said


def test_merge_with_a_model_checks_its_function(folder):
    said = run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", "--model", "job_nets:net")
    assert "3 random reorderings of all groups change the outputs by at most" in said
    assert equal(
        read_weights("m.safetensors"),
        average([read_weights("a.safetensors"), solved(folder).apply(read_weights("b.safetensors"))]),
    )


def test_merge_takes_shares_methods_and_no_alignment(folder):
    a, b = read_weights("a.safetensors"), read_weights("b.safetensors")
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.pt", *GIVEN, "--weight", 3, "--weight", 1, "--no-align")
    assert equal(read_weights("m.pt"), average([a, b], [3, 1]))
    run("merge", "a.safetensors", "b.safetensors", "-o", "s.pt", *GIVEN, "--method", "slerp")
    assert equal(read_weights("s.pt"), average([a, solved(folder).apply(b)], method="slerp"))


def test_merge_of_three_models(folder):
    names = [f"{name}.safetensors" for name in "abc"]
    facts = json.loads(run("merge", *names, "-o", "m.safetensors", *GIVEN, "--json"))
    assert facts["after"] < 0.1 * facts["before"]
    a, merged = read_weights("a.safetensors"), read_weights("m.safetensors")
    assert all(torch.allclose(a[name], merged[name], atol=0.05) for name in a)


def test_a_wrong_model_is_refused_before_anything_is_written(folder):
    write_weights(folder / "wide.safetensors", {**weights(0), "extra": torch.zeros(2)})
    for wrong in ("wide.safetensors", "missing.safetensors"):
        run("merge", "a.safetensors", wrong, "-o", "m.safetensors", *GIVEN, code=1)
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", code=2)
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *GIVEN, "--model", "x:y", code=2)
    run("merge", "a.safetensors", "-o", "m.safetensors", *GIVEN, code=2)
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *GIVEN, "--method", "cubic", code=2)
    run("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *GIVEN, "--weight", 1, code=1)
    assert not (folder / "m.safetensors").exists()


def test_merge_with_a_task_tells_the_losses(folder: Path) -> None:
    call = [*JOBS["merge"][0], "--task", "job_nets:task", "--solver", "activation_matching", "--report", "r.md"]
    said = run(*call)
    assert "Loss: A " in said
    assert "activation_matching" in said
    text = (folder / "r.md").read_text()
    assert "loss of the average" in text
    assert (folder / "r_files" / "line.png").exists()
    found = json.loads(run(*call, "--json", "--force"))["task"]
    assert found["loss_average_aligned"] == pytest.approx(found["loss_a"], rel=0.1)
    assert found["loss_average_unaligned"] != pytest.approx(found["loss_a"], rel=0.1)
    plain = json.loads(run(*JOBS["merge"][0], "--task", "job_nets:task", "--no-align", "--json", "--force"))["task"]
    assert plain["loss_average_unaligned"] == plain["loss_average_aligned"]
