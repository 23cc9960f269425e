"""Recipes: a file, switches and a record of one merge write one network, and what is wrong is named by its line."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from alignkit import average, read_weights, write_weights
from alignkit.cli import app
from alignkit.jobs import MergeRecipe, read_record
from helpers.command_line import run
from helpers.weight_files import GIVEN, A, B, C, equal, solved

PLAIN = "models: [a.safetensors, b.safetensors]\nspec: spec.json\noutput: m.safetensors\n"
SAME: dict[str, tuple[str, list[object]]] = {
    "shares": ("weights: [3, 1]", ["--weight", 3, "--weight", 1]),
    "shares by pattern": (
        "weights:\n  0.*: [1, 0]\n  '*': [1e-1, 3.0e-1]",
        ["--weight", "0.*=1,0", "--weight", 0.1, "--weight", 0.3],
    ),
    "no alignment": ("align: false", ["--no-align"]),
    "slerp": ("method: slerp\nweights: [1, 2]", ["--method", "slerp", "--weight", 1, "--weight", 2]),
    "ties": ("method: ties\ndensity: 0.3", ["--method", "ties", "--density", 0.3]),
    "dare": ("method: dare\nseed: 4", ["--method", "dare", "--seed", 4]),
    "dare, as they are": ("method: dare\nseed: 4\nalign: no", ["--method", "dare", "--seed", 4, "--no-align"]),
    "a solver": (
        "solver: weight_matching > sinkhorn\noptions: {max_steps: 3}",
        ["--solver", "weight_matching > sinkhorn", "--option", "max_steps=3"],
    ),
    "a dtype": ("dtype: bfloat16", ["--dtype", "bfloat16"]),
    "memory": ("memory: 50MB", ["--memory", "50MB"]),
    "a task": ("model: job_nets:net\ntask: job_nets:task", ["--model", "job_nets:net", "--task", "job_nets:task"]),
    "stretched": (
        "model: job_nets:net\ntask: job_nets:task\nsymmetries: all\nstretch: 5",
        ["--model", "job_nets:net", "--task", "job_nets:task", "--symmetries", "all", "--stretch", 5],
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_recipe_switches_and_record_write_the_same(case: str, folder: Path) -> None:
    lines, switches = SAME[case]
    given = () if "--model" in switches else GIVEN
    text = PLAIN.replace("spec: spec.json\n", "" if "--model" in switches else "spec: spec.json\n")
    (folder / "recipe.yaml").write_text(f"{text}{lines}\n")
    run("merge", "--recipe", "recipe.yaml")
    run("merge", A, B, *given, "-o", "s.safetensors", *switches)
    run("merge", "--recipe", "m.safetensors", "-o", "r.safetensors")
    m, s, r = (read_record(f"{name}.safetensors") for name in "msr")
    assert equal(read_weights("m.safetensors"), read_weights("s.safetensors"))
    assert equal(read_weights("m.safetensors"), read_weights("r.safetensors"))
    assert m.parameters == {**s.parameters, "output": "m.safetensors"} == {**r.parameters, "output": "m.safetensors"}
    assert (m.inputs, m.results) == (s.inputs, s.results) == (r.inputs, r.results)


def test_switches_count_more_than_the_recipe_also_where_they_say_the_default(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(f"{PLAIN}weights: [3, 1]\nalign: false\nmethod: slerp\n")
    run("merge", "--recipe", "recipe.yaml", "--method", "linear", "--align", "-o", "n.safetensors")
    a, b = read_weights(A), read_weights(B)
    assert equal(read_weights("n.safetensors"), average([a, solved(folder).apply(b)], [3, 1]))
    run("merge", A, C, "--recipe", "recipe.yaml", "--method", "linear")
    assert equal(read_weights("m.safetensors"), average([a, read_weights(C)], [3, 1]))


def switches_of_merge() -> dict[str, Any]:
    (command,) = (command for command in app.registered_commands if command.name == "merge")
    assert command.callback is not None
    parameters = inspect.signature(command.callback).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.annotation is not typer.Context}


def test_a_recipe_has_a_field_for_every_switch_with_the_same_default() -> None:
    looks = {"dry_run", "report", "as_json", "force", "quiet", "verbose", "recipe", "resume"}
    called = {"weight": "weights", "option": "options"}
    switches = {
        called.get(name, name): parameter for name, parameter in switches_of_merge().items() if name not in looks
    }
    assert switches.keys() == MergeRecipe.model_fields.keys()
    for name, parameter in switches.items():
        field = MergeRecipe.model_fields[name]
        if not field.is_required():
            assert (parameter.default or None) == (field.get_default(call_default_factory=True) or None), name


WRONG: dict[str, tuple[str, str]] = {
    "an unknown field": ("modls: [c]", "recipe.yaml, line 4: modls: there is no such field. Did you mean 'models'?"),
    "mergekit's field": ("merge_method: ties", "merge_method: there is no such field. It is called 'method' here."),
    "a name twice": ("spec: other.json", "recipe.yaml, line 4: 'spec' comes twice, first in line 2"),
    "a name twice inside": ("weights:\n  '*': [1, 1]\n  '*': [2, 1]", "line 6: '*' comes twice, first in line 5"),
    "an anchor": ("weights: &w [1, 1]", "line 4: write the value again in place of the anchor 'w'"),
    "an alias": ("weights: *w", "line 4: write the value again in place of the anchor 'w'"),
    "a tag": ("solver: !!python/object/apply:os.system ['touch ran']", "line 4: the tag"),
    "a harmless tag": ("seed: !!int '3'", "line 4: the tag"),
    "a merge key": ("<<: {seed: 3}", "line 4: <<: there is no such field"),
    "no YAML": ("weights: [1, 1", "this is not YAML"),
    "two documents": ("---\nmodels: [a]", "this is not YAML"),
    "tabs": ("options:\n\tmax_steps: 3", "line 5: this is not YAML"),
    "weights of another number": ("weights: [1, 2, 3]", "3 weights for 2 models"),
    "weights that are 0": ("weights: [0, 0]", "all weights are 0"),
    "a weight below 0": ("weights: [1, -1]", "shares are finite and not negative"),
    "nan": ("weights: [1, .nan]", "recipe.yaml, line 4: weights.*.1: give a finite number"),
    "infinity": ("weights:\n  0.*: [.inf, 1]", "recipe.yaml, line 5: weights.0.*.0: give a finite number"),
    "weights of no number": ("weights: [one, two]", "line 4: weights.*.0: 'one'"),
    "truth values": ("weights: [yes, no]", "line 4: weights.*.0: True"),
    "one weight": ("weights: 1", "line 4: weights: 1 is not a table"),
    "a pattern without tensors": ("weights: {1.*: [1, 0]}", "'1.*': no tensor has such a name. There are '0.bias'"),
    "another method": ("method: tie", "line 4: method: 'tie': take 'linear'"),
    "a wrong density": ("method: ties\ndensity: 2", "density is 2"),
    "a text for a number": ("seed: many", "line 4: seed: 'many'"),
    "a number below 0": ("seed: -1", "line 4: seed: -1"),
    "a number for a text": ("solver: 3", "line 4: solver: 3 is not a text: put quotes around it"),
    "nothing for a text": ("solver:", "line 4: solver: None is not a text"),
    "a table for a list": ("outputs: {a: b}", "line 4: outputs: {'a': 'b'} is not a list"),
    "an argument of Python": ("options: {pair: 3}", "'pair' is not an option of a solver"),
    "an unknown option": ("options: {max_step: 3}", "max_step"),
    "another tokenizer": ("tokenizer: c", "'c' is not one of the models. There are a.safetensors, b.safetensors"),
    "no tokenizer": ("tokenizer: b.safetensors", "b.safetensors: it has no files of a tokenizer"),
    "repair without data": ("repair: true", "--repair runs the networks on data"),
    "a stretch without data": ("stretch: 5", "--stretch runs the networks on data"),
    "a stretch below 0": ("stretch: -1", "line 4: stretch: -1"),
    "a stretch of permutations": ("task: job_nets:task\nstretch: 5", "no scale or matrix of this graph is free"),
    "memory beside a task": ("memory: 50MB\ntask: job_nets:task", "--memory does not go with --task"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_by_its_line_and_nothing_is_written(case: str, folder: Path) -> None:
    lines, said = WRONG[case]
    (folder / "recipe.yaml").write_text(f"{PLAIN}{lines}\n")
    before = sorted(path.name for path in folder.iterdir())
    told = run("merge", "--recipe", "recipe.yaml", code=None)
    assert told.startswith("Error: ")
    assert said in " ".join(told.split())
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "recipe.yaml: it is empty"),
        ("[a, b]", "has to name fields"),
        ("a", "has to name fields"),
        ("models: [a.safetensors]\noutput: m.safetensors", "line 1: models: give two or more"),
        ("models: a.safetensors\noutput: m.safetensors", "line 1: models: 'a.safetensors' is not a list"),
        ("models: [a.safetensors, {path: b.safetensors}]\noutput: m.safetensors", "line 1: models.1: {'path'"),
        ("models: [a.safetensors, '']\noutput: m.safetensors", "line 1: models.1: ''"),
        ("models: [a.safetensors, b.safetensors]\nspec: spec.json", "recipe.yaml, line 1: output: it is missing"),
        ("[" * 5000, "recipe.yaml"),
        ("a: b\x00c", "this is not YAML"),
        ("? [a]\n: b", "line 1: the name of an entry has to be a text"),
        ("x: " + "y" * 1_100_000, "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text: str, said: str, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(text)
    assert said in " ".join(run("merge", "--recipe", "recipe.yaml", code=2).split())
    (folder / "recipe.yaml").write_bytes(b"\xff\xfe")
    assert "is not a text in UTF-8" in run("merge", "--recipe", "recipe.yaml", code=2)
    assert "cannot be read" in run("merge", "--recipe", "none.yaml", code=2)


def test_wrong_switches_are_named_as_switches(folder: Path) -> None:
    for switches, said in (
        (["--weight", "one"], "--weight one: write numbers"),
        (["--weight", "=1,2"], "name a pattern"),
        (["--weight", "0.*=1,0", "--weight", "0.*=0,1"], "the pattern comes twice"),
        (["--method", "cubic"], "--method: 'cubic': take 'linear'"),
        (["--tokenizer", "x"], "'x' is not one of the models"),
    ):
        assert said in " ".join(run("merge", A, B, "-o", "m.safetensors", *GIVEN, *switches, code=2).split())
    assert "--output: it is missing" in run("merge", A, B, *GIVEN, code=2)
    assert "MODELS: it is missing" in run("merge", "-o", "m.safetensors", *GIVEN, code=2)
    assert "MODELS: give two or more" in run("merge", A, "-o", "m.safetensors", *GIVEN, code=2)


def test_a_recipe_may_name_its_own_output_and_never_replaces_it_unasked(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(PLAIN.replace("m.safetensors", "a.safetensors"))
    before = read_weights(A)
    assert "exists" in run("merge", "--recipe", "recipe.yaml", code=2)
    assert equal(read_weights(A), before)
    run("merge", "--recipe", "recipe.yaml", "--force")
    assert equal(read_weights(A), average([before, solved_with(before, read_weights(B))]))
    again = run("merge", "--recipe", A, "-o", "n.safetensors")
    assert "Note: a.safetensors changed since the record was written" in again
    (folder / "recipe.yaml").write_text(PLAIN.replace("m.safetensors", "recipe.yaml"))
    assert "end its name in" in run("merge", "--recipe", "recipe.yaml", "--force", code=2)


def solved_with(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import alignkit
    from helpers.weight_files import SPEC

    return alignkit.solve(alignkit.SymmetryGraph.from_spec(SPEC, like=a), a, b).apply(b)


def test_only_records_of_merges_are_recipes(folder: Path) -> None:
    run("solve", A, B, "-o", "s.safetensors", *GIVEN)
    assert "is the record of alignkit solve" in run("merge", "--recipe", "s.safetensors", code=2)
    assert "holds no record" in run("merge", "--recipe", A, code=2)
    assert "is not a record" in run("merge", "--recipe", "spec.json", code=2)
    run("merge", A, B, "-o", "m.pt", *GIVEN)
    sidecar = folder / "m.pt.alignkit.json"
    changed = json.loads(sidecar.read_text())
    changed["parameters"]["models"] = ["x", "y"]
    sidecar.write_text(json.dumps(changed))
    assert "its check sum is not that of its values" in run("merge", "--recipe", "m.pt", "-o", "n.pt", code=2)


def test_a_dry_run_of_a_recipe_writes_nothing(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(PLAIN)
    assert "Estimate of merge" in run("merge", "--recipe", "recipe.yaml", "--dry-run")
    assert not (folder / "m.safetensors").exists()


# ---------------------------------------------------------------------- partial checkpoints


def test_tensors_may_be_missing_where_a_pattern_says_so(folder: Path) -> None:
    a, b = read_weights(A), read_weights(B)
    headless = {name: tensor for name, tensor in b.items() if not name.startswith("2.")}
    write_weights("headless.safetensors", headless)
    told = run("merge", A, "headless.safetensors", "-o", "m.safetensors", *GIVEN, code=1)
    assert "it lacks '2.bias', '2.weight'" in told
    assert "--allow-missing '2.*'" in told
    some = run("merge", A, "headless.safetensors", "-o", "m.safetensors", *GIVEN, "--allow-missing", "2.bias", code=1)
    assert "it lacks '2.weight'. " in some
    said = run("merge", A, "headless.safetensors", "-o", "m.safetensors", *GIVEN, "--allow-missing", "2.*")
    assert "headless.safetensors lacks '2.bias', '2.weight'" in said
    merged = read_weights("m.safetensors")
    whole = average([a, solved(folder).apply(b)])
    assert all(torch.equal(merged[name], a[name]) for name in ("2.weight", "2.bias"))
    assert all(torch.allclose(merged[name], whole[name]) for name in headless)
    run("merge", "headless.safetensors", A, "-o", "n.safetensors", *GIVEN, "--allow-missing", "2.*")
    assert read_weights("n.safetensors").keys() == headless.keys()
    run("solve", A, "headless.safetensors", "-o", "s.safetensors", *GIVEN, "--allow-missing", "2.*")
    assert equal(read_weights("s.safetensors"), {n: t for n, t in solved(folder).apply(b).items() if n in headless})
    near = run("merge", A, B, "-o", "o.safetensors", *GIVEN, "--allow-missing", "2.weigth", code=1)
    assert "Did you mean '2.weight'?" in near
    base = ["merge", "headless.safetensors", A, "-o", "o.safetensors", *GIVEN, "--allow-missing", "2.*"]
    assert "it is the base that task vectors start from" in run(*base, "--method", "ties", code=1)


# ---------------------------------------------------------------------- tokenizers


@pytest.mark.models("transformers")
def test_the_tokenizer_is_that_of_the_model_that_is_named(transformers_folders: Path) -> None:
    b = transformers_folders / "b"
    (b / "tokenizer.json").write_text('{"b": 1}')
    (b / "chat_template.jinja").write_text("b")
    (transformers_folders / "a" / "vocab.txt").write_text("only a has it")
    said = run("merge", "a", "b", "-o", "m")
    assert "The tokenizers of a and b differ" in said
    assert Path("m/tokenizer.json").read_text() == "{}"
    run("merge", "a", "b", "-o", "n", "--tokenizer", "./b")
    assert Path("n/tokenizer.json").read_text() == '{"b": 1}'
    assert Path("n/chat_template.jinja").read_text() == "b"
    assert not Path("n/vocab.txt").exists()
    shutil.rmtree("n")
    for path in b.glob("*token*"):
        path.unlink()
    (b / "chat_template.jinja").unlink()
    assert "it has no files of a tokenizer" in run("merge", "a", "b", "-o", "n", "--tokenizer", "b", code=2)


@pytest.mark.parametrize("name", ["merge.yaml", "merge.yml"])
def test_a_recipe_among_the_models_is_told_its_switch(folder: Path, name: str) -> None:
    (folder / name).write_text(PLAIN)
    for call in (["merge", name, "out"], ["merge", name], ["merge", A, name, "-o", "m.safetensors"]):
        assert f"{name} is a recipe: say --recipe {name}" in run(*call, code=2)
