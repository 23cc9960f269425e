"""What all jobs share on the command line: plans, reports, folders, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import alignkit
from alignkit import Alignment, SymmetryGraph, read_weights, write_weights
from alignkit.cli import app
from alignkit.cli.switches import ArchitectureSwitches, command
from alignkit.errors import UsageError
from helpers.weight_files import MODULE, SPEC, equal, shifted, weights

GIVEN = ("--spec", "spec.json")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout if code == 0 else result.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a; b and c, a reordered with noise; tuned; a spec; and the module of a model and its task."""
    graph = SymmetryGraph.from_spec(SPEC, like=weights(0))
    write_weights(tmp_path / "a.safetensors", weights(0))
    write_weights(tmp_path / "tuned.safetensors", shifted(weights(0), 9))
    for seed, name in ((1, "b"), (2, "c")):
        write_weights(tmp_path / f"{name}.safetensors", Alignment.random(graph, seed).apply(shifted(weights(0), seed)))
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    (tmp_path / "job_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("job_nets", None)


A, B, C, TUNED = (f"{name}.safetensors" for name in ("a", "b", "c", "tuned"))
JOBS: dict[str, tuple[list[str], str]] = {
    "merge": (["merge", A, B, "-o", "out.safetensors", *GIVEN], "out.safetensors"),
    "merge three": (["merge", A, B, C, "-o", "out.safetensors", *GIVEN], "out.safetensors"),
    "solve": (["solve", A, B, "-o", "out.safetensors", *GIVEN], "out.safetensors"),
    "check": (["check", "job_nets:net", A], ""),
    "compare": (["compare", A, B, *GIVEN, "--solver", "weight_matching"], ""),
    "align-many": (["align-many", A, B, C, "-o", "out", *GIVEN], "out"),
    "transport": (["transport", A, TUNED, B, "-o", "out.safetensors", *GIVEN], "out.safetensors"),
    "distance": (["distance", A, B, *GIVEN], ""),
    "canonicalize": (["canonicalize", A, B, C, "-o", "out", *GIVEN], "out"),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_dry_run_shows_the_plan_and_writes_nothing(job: str, folder: Path) -> None:
    call, output = JOBS[job]
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    said = run(*call, "--dry-run", "--report", "r.html")
    assert f"Estimate of {call[0]}: nothing was solved or written." in said
    for word in ("3 of 4 tensors move", "2.bias", "Memory: about", "Time: ", f"Would write {output}" if output else ""):
        assert word in said
    found = json.loads(run(*call, "--dry-run", "--json"))
    assert found["job"] == call[0]
    assert found["groups"][0]["units"] == 6
    assert set(found["tensors_moved"]) == {"0.weight", "0.bias", "2.weight"}
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("kind", [".html", ".md"])
def test_a_report_is_written_after_the_work(job: str, kind: str, folder: Path) -> None:
    call, output = JOBS[job]
    said = run(*call, "--report", f"r{kind}")
    assert f"Written: r{kind}" in said
    assert not output or (folder / output).exists()
    text = (folder / f"r{kind}").read_text()
    assert "Summary" in text
    if kind == ".html":
        assert "src=" not in text.replace('src="data:image/png;base64,', "")
    elif call[0] != "check":
        assert list((folder / "r_files").glob("*.png"))


@pytest.mark.parametrize("job", JOBS)
def test_json_is_one_object(job: str, folder: Path) -> None:
    assert isinstance(json.loads(run(*JOBS[job][0], "--json")), dict)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("r.pdf", "end its name in .html or .md"),
        ("nowhere/r.html", "its folder is missing"),
        ("spec.json.html", "exists"),
        ("taken.md", "its pictures go to taken_files, which exists"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(report: str, said: str, folder: Path) -> None:
    (folder / "spec.json.html").write_text("mine")
    (folder / "taken_files").mkdir()
    assert said in run(*JOBS["merge"][0], "--report", report, code=2)
    assert not (folder / "out.safetensors").exists()


def test_a_dry_run_finds_checkpoints_that_do_not_fit(folder: Path) -> None:
    write_weights(folder / "wide.safetensors", {**weights(0), "extra": torch.zeros(2), "2.bias": torch.zeros(9)})
    said = run("merge", A, "wide.safetensors", "-o", "m.safetensors", *GIVEN, "--dry-run", code=1)
    assert "'extra' of wide.safetensors is not in the graph" in said
    assert "'2.bias' has shape (9,)" in said


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


# ---------------------------------------------------------------------- align-many, check --against


def test_align_many_writes_every_model_in_one_order(folder: Path) -> None:
    run(*JOBS["align-many"][0], "--method", "reference")
    a = read_weights(A)
    assert equal(read_weights("out/a.safetensors"), a)
    for name in (B, C):
        assert all(torch.allclose(tensor, a[n], atol=0.1) for n, tensor in read_weights(f"out/{name}").items())
    assert "holds a.safetensors" in run(*JOBS["align-many"][0], code=2)
    for wrong in (["--reference", 3], ["--method", "best"]):
        run("align-many", A, B, "-o", "other", *GIVEN, *wrong, code=2)
    run("align-many", A, "-o", "other", *GIVEN, code=2)
    assert not (folder / "other").exists()


def test_check_against_tells_whether_a_model_is_still_the_same(folder: Path) -> None:
    graph = SymmetryGraph.from_spec(SPEC, like=weights(0))
    write_weights("moved.safetensors", Alignment.random(graph, 4).apply(weights(0)))
    assert "Passed: moved.safetensors computes what" in run(
        "check", "job_nets:net", A, "--against", "moved.safetensors"
    )
    wrong = dict(weights(0), **{"2.bias": weights(0)["2.bias"] + 0.1})
    write_weights("wrong.safetensors", wrong)
    said = run("check", "job_nets:net", A, "--against", "wrong.safetensors", code=1)
    assert "differs most is '2.bias'" in said
    half = {**weights(0), "0.weight": Alignment.random(graph, 4).apply(weights(0))["0.weight"]}
    write_weights("half.safetensors", half)
    assert "does not compute what" in run("check", "job_nets:net", A, "--against", "half.safetensors", code=1)
    facts = json.loads(run("check", "job_nets:net", A, "--against", "moved.safetensors", "--json"))
    assert facts["same_function"]
    assert facts["same_up_to_permutation"]
    run("check", "job_nets:net", "--against", A, code=2)


# ---------------------------------------------------------------------- folders


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


@pytest.mark.models("transformers")
def test_folders_of_transformers_need_no_model(transformers_folders: Path) -> None:
    said = run("merge", "a", "b", "-o", "m")
    assert "Function check: 3 random reorderings" in said
    a, merged = read_weights("a"), read_weights("m")
    assert all(torch.allclose(merged[name], tensor, atol=1e-6) for name, tensor in a.items())
    written = sorted(path.name for path in (transformers_folders / "m").iterdir())
    assert written == sorted(path.name for path in (transformers_folders / "a").iterdir())
    assert "exists" in run("merge", "a", "b", "-o", "m", code=2)
    run("merge", "a", "b", "-o", "m", "--force")


@pytest.mark.models("transformers")
def test_every_job_takes_folders(transformers_folders: Path) -> None:
    run("solve", "a", "b", "-o", "s")
    assert equal(read_weights("s"), read_weights("a"))
    run("solve", "a", "b", "-o", "s.safetensors")
    assert equal(read_weights("s.safetensors"), read_weights("a"))
    assert "the same up to permutation" in run("distance", "a", "b", "--same")
    assert "Passed with its own weights" in run("check", "b")
    assert "Passed: b computes what a does" in run("check", "a", "--against", "b")
    run("transport", "a", "a", "b", "-o", "t")
    assert equal(read_weights("t"), read_weights("b"))
    run("canonicalize", "a", "b", "-o", "canonical")
    assert equal(read_weights("canonical/b"), read_weights("a"))
    run("align-many", "a", "b", "-o", "many")
    assert equal(read_weights("many/b"), read_weights("a"))
    assert "Estimate of merge" in run("merge", "a", "b", "-o", "m", "--dry-run")


@pytest.mark.models("transformers")
def test_tensors_that_the_model_does_not_have_are_kept(transformers_folders: Path) -> None:
    for name in "ab":
        write_weights(f"{name}.st.safetensors", {**read_weights(name), "transformer.h.0.attn.mask": torch.ones(4)})
        (transformers_folders / name / "config.json").replace(transformers_folders / "config.json")
    said = run("merge", "a.st.safetensors", "b.st.safetensors", "-o", "m.safetensors")
    assert "kept as they are in the first input: transformer.h.0.attn.mask" in said
    assert torch.equal(read_weights("m.safetensors")["transformer.h.0.attn.mask"], torch.ones(4))


@pytest.mark.models("transformers")
def test_a_folder_that_names_no_known_model_is_refused(transformers_folders: Path) -> None:
    (transformers_folders / "a" / "config.json").write_text('{"mine": 1}')
    said = run("merge", "a", "b", "-o", "m", code=2)
    assert "either --spec spec.json, or --model" in said
    assert "names no model of transformers" in said


@pytest.mark.models("transformers")
def test_memory_keeps_checkpoints_on_disk_and_finds_the_same(transformers_folders: Path) -> None:
    said = run("merge", "a", "b", "-o", "m", "--memory", "50MB", "--report", "m.html")
    assert "Function check: not done" in said
    run("merge", "a", "b", "-o", "whole")
    assert all(torch.allclose(t, read_weights("whole")[n], atol=1e-6) for n, t in read_weights("m").items())
    run("solve", "a", "b", "-o", "s", "--memory", "50MB", "--save-alignment", "p.safetensors")
    assert equal(read_weights("s"), read_weights("a"))
    assert "Memory: about 50 MB" in run("merge", "a", "b", "-o", "n", "--memory", "50MB", "--dry-run")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--memory", "lots"], "not an amount of memory"),
        (["--memory", "1GB", "--solver", "sinkhorn"], "--solver weight_matching"),
        (["--memory", "1GB", "--no-align"], "--no-align"),
        (["--memory", "1GB", C], "two checkpoints, not 3"),
    ],
)
def test_memory_is_refused_where_it_cannot_be_kept(more: list[str], said: str, folder: Path) -> None:
    assert said in run("merge", A, B, "-o", "m.safetensors", *GIVEN, *more, code=2)
    assert not (folder / "m.safetensors").exists()


# ---------------------------------------------------------------------- switches, exit codes


def test_groups_of_switches_are_spread_and_put_together() -> None:
    seen: list[Any] = []

    @command
    def job(one: int, architecture: ArchitectureSwitches, two: str = "x") -> None:
        seen.append((one, architecture, two))

    job(one=1, spec=None, model="m", two="y")
    assert seen == [(1, ArchitectureSwitches(None, "m"), "y")]
    with pytest.raises(UsageError, match="two switches of one name"):

        @command
        def twice(spec: int, architecture: ArchitectureSwitches) -> None: ...


def test_exit_codes_are_told() -> None:
    said = " ".join(run("--help").split())
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    for code in ("0", "1", "2", "3", "130"):
        assert code in said.split("Exit codes:")[1].split("Options")[0]
        assert f"| {code} |" in page
