"""`alignkit merge` and `alignkit transport` write networks whose running statistics fit, or say that they do not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import alignkit
from helpers.command_line import run
from helpers.weight_files import equal

MODULE = """
import torch
from torch import nn
import alignkit

def net():
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    return nn.Sequential(*layers).eval(), torch.randn(5, 4)

def task():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=generator) * 2 + 1
    return alignkit.Task(net()[0], (inputs, torch.randn(64, 3, generator=generator)), "mse")
"""
SPEC = {"0.weight": "h .", "0.bias": "h", "3.weight": ". h", "3.bias": ".", "1.num_batches_tracked": ""}
SPEC |= {f"1.{name}": "h" for name in ("weight", "bias", "running_mean", "running_var")}
OUT = "out.safetensors"
NOT_USABLE = "Not usable yet: running statistics (1.running_mean, 1.running_var) do not fit the new weights"
JOBS = {
    "merge two": ["merge", "a.pt", "b.pt"],
    "merge three": ["merge", "a.pt", "b.pt", "c.pt"],
    "merge unaligned": ["merge", "a.pt", "b.pt", "c.pt", "--no-align"],
    "transport": ["transport", "a.pt", "c.pt", "b.pt"],
}
ARCHITECTURES = {"model": ["--model", "norm_nets:net"], "spec": ["--spec", "norm_spec.json"]}


@pytest.fixture(autouse=True)
def norms(folder: Path) -> Iterator[Path]:
    """Three networks with BatchNorm, their module and their spec, in the current folder."""
    (folder / "norm_nets.py").write_text(MODULE)
    (folder / "norm_spec.json").write_text(json.dumps(SPEC))
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        for _ in range(3 + seed):
            model(torch.randn(32, 4) + 1)
        alignkit.write_weights(folder / f"{name}.pt", model.state_dict())
    yield folder
    sys.modules.pop("norm_nets", None)


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest) -> list[str]:
    return [*JOBS[request.param], "-o", OUT]


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> list[str]:
    return ARCHITECTURES[request.param]


def test_with_data_the_file_has_statistics_that_fit_it(job, architecture):
    left = run(*job, *architecture, "--task", "norm_nets:task", "--no-reset-batchnorm")
    assert NOT_USABLE in left
    before = alignkit.read_weights(OUT)
    said = run(*job, *architecture, "--task", "norm_nets:task", "--force", "--report", "r.md")
    assert "Running statistics (BatchNorm) were recomputed on the inputs of the task." in said
    assert "Not usable" not in said
    after = alignkit.read_weights(OUT)
    task = alignkit.Task.from_name("norm_nets:task")
    expected = alignkit.reset_batchnorm(task.network(before), task).state_dict()
    assert all(torch.allclose(after[name], expected[name], atol=1e-6) for name in expected)
    assert not torch.allclose(after["1.running_var"], before["1.running_var"])
    facts = json.loads(run(*job, *architecture, "--task", "norm_nets:task", "--force", "--json"))
    assert (facts["running_statistics"], facts["running_statistics_left"]) == ("recomputed", [])
    told = facts["task"]
    loss = told["loss"]["carried"] if job[0] == "transport" else told["loss_average_aligned"]
    assert loss == pytest.approx(task.evaluate(after).loss)
    assert f"{loss:.5g}" in Path("r.md").read_text()


def test_repair_is_written(job, architecture):
    run(*job, *architecture, "--task", "norm_nets:task")
    reset = alignkit.read_weights(OUT)
    said = run(*job, *architecture, "--task", "norm_nets:task", "--repair", "--force")
    assert "Every channel was given the mean and deviation that its parents have" in said
    repaired = alignkit.read_weights(OUT)
    assert not torch.equal(repaired["3.bias"], reset["3.bias"])
    assert torch.allclose(repaired["1.running_mean"], reset["1.running_mean"], atol=1e-5)


def test_without_data_it_says_so_with_a_command_that_mends_it(job, architecture):
    said = run(*job, *architecture)
    assert NOT_USABLE in said
    assert "model = alignkit.reset_batchnorm(model, batches)" in said
    switches = said[said.index("with --task") :].split(",")[0].split()[1:]
    assert switches == ["--task", "package.module:function", "--force"]
    mended = run(
        *job, *architecture, *(switch.replace("package.module:function", "norm_nets:task") for switch in switches)
    )
    assert "Not usable" not in mended


def test_from_disk_it_says_so_too(architecture):
    job = [*JOBS["merge two"], "-o", "out.pt", *architecture, "--memory", "10MB"]
    said = run(*job)
    assert NOT_USABLE in said
    assert "without --memory" in said
    data = ("--task", "norm_nets:task", "--repair", "--force")
    assert "--memory does not go with --task" in run(*job, *data, code=2)


def test_repair_without_data_is_refused_before_anything_is_written(job, architecture, folder):
    assert "--repair runs the networks on data" in run(*job, *architecture, "--repair", code=2)
    assert not (folder / OUT).exists()


def test_networks_without_statistics_are_told_nothing_about_them(folder):
    for job in (["merge", "a.safetensors", "b.safetensors"], ["merge", *(f"{n}.safetensors" for n in "abc")]):
        said = run(*job, "-o", OUT, "--spec", "spec.json", "--force", "--task", "job_nets:task")
        assert "statistics" not in said
        assert "their average" in said
    assert not equal(alignkit.read_weights(OUT), alignkit.read_weights("a.safetensors"))
