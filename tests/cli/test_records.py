"""Every output says what made it: versions, parameters, check sums of inputs, numbers. A merged folder has a card."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from pathlib import Path

import pytest
import safetensors
import torch
import yaml

import alignkit
from alignkit import read_weights, write_weights
from alignkit.checkpoints.file_set import Member
from alignkit.errors import UsageError, WeightsError
from alignkit.jobs import Record, read_record
from helpers.adapters import random_adapter
from helpers.command_line import run
from helpers.weight_files import GIVEN, JOBS, TUNED, A, B, C, equal, net, weights

NET = ("--model", "job_nets:net")
THING = "thing.safetensors"
CALLS: dict[str, tuple[list[object], list[str], str, list[str]]] = {
    "merge": (["merge", A, B, *GIVEN, "--weight", 3, "--weight", 1], [A, B], "merge", ["out"]),
    "merge as it is": (["merge", A, B, *GIVEN, "--no-align"], [A, B], "merge", ["out"]),
    "merge on disk": (["merge", A, B, *GIVEN, "--memory", "50MB"], [A, B], "merge", ["out"]),
    "merge with data": (["merge", A, B, *NET, "--task", "job_nets:task"], [A, B], "merge", ["out"]),
    "merge three": (["merge", A, B, C, *GIVEN], [A, B, C], "merge", ["out"]),
    "solve": (["solve", A, B, *GIVEN], [A, B], "solve", ["out"]),
    "transport": (["transport", A, TUNED, B, *GIVEN, "--scale", 0.5], [A, TUNED, B], "transport", ["out"]),
    "fold": (["fold", A, *NET], [A], "fold", ["out"]),
    "tensors": (["transport", A, THING, B, *GIVEN, "--layouts", "@0.weight:0"], [A, B, THING], "transport", ["out"]),
    "align-many": (["align-many", A, B, C, *GIVEN], [A, B, C], "align-many", ["out/a", "out/b", "out/c"]),
    "canonical-form": (["canonical-form", A, *GIVEN], [A], "canonical-form", ["out"]),
    "canonicalize": (["canonicalize", A, B, C, *GIVEN], [A, B, C], "canonicalize", ["out/b", "out/c"]),
}  # fmt: skip
SETS = ("align-many", "canonicalize")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(record: Record, job: str, inputs: list[str]) -> None:
    assert record.job == job
    assert record.versions == {
        "alignkit": alignkit.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    assert [read.name for read in record.inputs] == inputs
    for read in record.inputs:
        (file,) = read.files
        assert (file.name, file.bytes, file.sha256) == (
            read.name,
            Path(read.name).stat().st_size,
            sha256(Path(read.name)),
        )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("case", CALLS)
def test_every_output_has_a_record(case: str, suffix: str, folder: Path) -> None:
    call, inputs, job, outputs = CALLS[case]
    write_weights(THING, {"steer": torch.ones(6)})
    if suffix == ".pt" and case in (*SETS, "merge on disk"):
        for name in (A, B, C):
            write_weights(Path(name).with_suffix(".pt"), read_weights(name))
        call = [str(word).replace(".safetensors", suffix) for word in call]
        inputs = [name.replace(".safetensors", suffix) for name in inputs]
    before = {path.name for path in folder.iterdir()}
    run(*call, "-o", "out" if case in SETS else f"out{suffix}")
    for output in outputs:
        path = folder / f"{output}{suffix}"
        record = read_record(path)
        own = inputs if case != "canonicalize" else [inputs[0], f"{path.stem}{suffix}"]
        check(record, job, own)
        assert record.results
        assert not {"seconds", "total_seconds", "peak_memory"} & record.results.keys()
        assert str(folder) not in record.to_json()
        if suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                assert file.metadata().keys() == {"format", "alignkit"}
                assert file.metadata()["format"] == "pt"
    beside = {f"{output}{suffix}.alignkit.json" for output in outputs} if suffix == ".pt" else set()
    new = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - before - {"job_nets.pyc"}
    assert {name for name in new if "__pycache__" not in name} == {f"{output}{suffix}" for output in outputs} | beside


def test_a_record_says_what_the_command_was_given_and_what_came_out(folder: Path) -> None:
    run("transport", A, TUNED, B, *GIVEN, "--scale", 0.5, "-o", "t.safetensors", "--report", "r.md", "--force")
    record = read_record("t.safetensors")
    assert record.parameters == {
        "base_a": A, "tuned_a": TUNED, "base_b": B, "output": "t.safetensors", "spec": "spec.json", "scale": 0.5
    }  # fmt: skip
    said = json.loads(run("merge", A, B, *NET, "-o", "m.safetensors", "--task", "job_nets:task", "--json"))
    results = read_record("m.safetensors").results
    assert {name: said[name] for name in results} == results
    assert {"before", "after", "task", "moved", "function_error"} <= results.keys()


@pytest.mark.parametrize(("case", "output"), [("merge three", "out.safetensors"), ("align-many", "out")])
def test_how_it_is_told_and_where_a_run_goes_on_is_not_recorded(case: str, output: str, folder: Path) -> None:
    call, *_, (name, *_) = CALLS[case]
    run(*call, "-o", output)
    plain = read_record(f"{name}.safetensors")
    run(*call, "-o", output, "--force", "--quiet", "--resume", "kept.jsonl", "--report", "r.html", "--json")
    assert read_record(f"{name}.safetensors") == plain


def test_the_same_run_writes_the_same_bytes(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        run("merge", A, B, *NET, "-o", "m.safetensors", "--task", "job_nets:task", "--force")
        run("merge", A, B, *NET, "-o", "m.pt", "--force")
        for file in ("m.safetensors", "m.pt", "m.pt.alignkit.json"):
            shutil.move(file, folder / name / file)
    files = ("m.safetensors", "m.pt", "m.pt.alignkit.json")
    assert all((folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes() for name in files)


def test_a_record_that_was_changed_is_refused(folder: Path) -> None:
    run("merge", A, B, *GIVEN, "-o", "m.pt")
    path = folder / "m.pt.alignkit.json"
    text = path.read_text()
    for old, new in (('"job": "merge"', '"job": "fold"'), ('"version": 1', '"version": 9'), ("{", "")):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(UsageError, match=r"m\.pt\.alignkit\.json"):
            read_record("m.pt")
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read as a record"):
        read_record("m.pt")


@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
def test_a_record_that_is_there_is_not_replaced_unasked(kind: str, folder: Path) -> None:
    call = ["merge", A, B, *GIVEN, "-o", f"m{kind}"]
    said = run(*call)
    assert f"Written: m{kind}{' and m.pt.alignkit.json' if kind == '.pt' else ''}\n" in said
    beside = folder / "m.pt.alignkit.json"
    if kind == ".pt":
        (folder / "m.pt").unlink()
        assert "m.pt.alignkit.json exists" in run(*call, code=2)
        assert not (folder / "m.pt").exists()
        beside.write_text("old")
    run(*call, "--force", "--weight", 1, "--weight", 2)
    assert read_record(f"m{kind}").parameters["weights"] == {"*": [1, 2]}


def test_what_an_earlier_run_said_is_not_said_again(folder: Path) -> None:
    run("merge", A, B, *GIVEN, "-o", "m.safetensors")
    files = alignkit.open_networks("m.safetensors", spec="spec.json")
    files.write(Path("n.safetensors"), files.weights[0], like=0)
    with safetensors.safe_open("n.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    with pytest.raises(UsageError, match="holds no record"):
        read_record("n.safetensors")
    record = files.record("mine", {"path": Path("x"), "nan": float("nan")}, {"loss": 1.5, "seconds": 3})
    files.write(Path("o.safetensors"), files.weights[0], like=0, record=record)
    read = read_record("o.safetensors")
    assert read == record
    assert (read.parameters, read.results) == ({"path": "x", "nan": None}, {"loss": 1.5})


def test_a_file_that_changed_while_it_was_used_has_no_record(folder: Path) -> None:
    files = alignkit.open_networks(A, B, spec="spec.json")
    write_weights(A, weights(7))
    with pytest.raises(WeightsError, match="was changed while it was being read"):
        files.record("merge", {}, {})


@pytest.mark.parametrize("force", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_output_and_its_record_appear_together_or_not_at_all(
    suffix: str, force: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ["merge", A, B, *GIVEN, "-o", f"m{suffix}", "--report", "r.html", *(["--force"] if force else [])]
    if force:
        run(*call)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    publish, published = Member.publish, []

    def pressed(member: Member) -> None:
        published.append(member.output.name)
        if member.output.name == "r.html":
            raise KeyboardInterrupt
        publish(member)

    monkeypatch.setattr(Member, "publish", pressed)
    assert "Interrupted. Nothing was written." in run(*call, "--weight", 1, "--weight", 4, code=130)
    assert (
        published[: 2 if suffix == ".pt" else 1] == [f"m{suffix}", "m.pt.alignkit.json"][: 2 if suffix == ".pt" else 1]
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_adapters_have_records(folder: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        random_adapter(net(), seed=seed).write(name)
    run("merge", "one", "two", "-o", "merged", "--weight", 1, "--weight", 3)
    record = read_record("merged")
    assert (record.job, [read.name for read in record.inputs]) == ("merge", ["one", "two"])
    assert [file.name for file in record.inputs[0].files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert record.inputs[1].files[1].sha256 == sha256(folder / "two" / "adapter_model.safetensors")
    assert read_record("merged/adapter_model.safetensors") == record
    run("merge", "--recipe", "merged", "-o", "again")
    assert equal(read_weights("again/adapter_model.safetensors"), read_weights("merged/adapter_model.safetensors"))
    run("merge", "one", "two", "-o", "merged", "--force")
    run("transport", A, "one", B, "-o", "carried", *GIVEN)
    assert [read.name for read in read_record("carried").inputs] == [A, B, "one"]
    assert "adapters have one weight each" in run("merge", "one", "two", "-o", "x", "--weight", "0.*=1,0", code=2)


# ---------------------------------------------------------------------- folders


def cards(folder: Path, **of: str) -> None:
    for name, front in of.items():
        (folder / name / "README.md").write_text(f"---\n{front}\n---\n# model card of {name}\n")


def front_matter(path: Path) -> dict[str, object]:
    opening, header, _ = path.read_text().split("---\n", 2)
    assert opening == ""
    values = yaml.safe_load(header)
    assert isinstance(values, dict)
    return values


@pytest.mark.models("transformers")
def test_a_merged_folder_has_a_record_and_a_card_of_its_own(transformers_folders: Path) -> None:
    cards(transformers_folders, a="license: mit\nlibrary_name: transformers\npipeline_tag: magic", b="license: mit")
    run("merge", "a", "b", "-o", "m", "--weight", 3, "--weight", 1)
    record = read_record("m")
    shards = sorted(Path("a").glob("*.safetensors"))
    assert [file.name for file in record.inputs[0].files] == [*(path.name for path in shards), "config.json"]
    assert [file.sha256 for file in record.inputs[0].files] == [*map(sha256, shards), sha256(Path("a/config.json"))]
    for shard in Path("m").glob("*.safetensors"):
        assert read_record(shard) == record
    card = Path("m/README.md").read_text()
    assert front_matter(Path("m/README.md")) == {
        "base_model": [], "library_name": "transformers", "license": "mit", "tags": ["alignkit", "merge"]
    }  # fmt: skip
    assert "model card of" not in card
    assert "magic" not in card
    assert "```yaml\nmodels: [a, b]\noutput: m\nweights:\n  '*': [3.0, 1.0]\n```" in card
    for said in ("# m\n", "| `a` | weight 3 |", "| `b` | weight 1 |", "Squared distance of the two", sha256(shards[0])):
        assert said in card
    run("merge", "--recipe", "m", "-o", "again")
    assert equal(read_weights("again"), read_weights("m"))
    run("merge", "--recipe", "m/alignkit.json", "--force")
    assert Path("m/README.md").read_text() == card
    run("merge", "m", "a", "-o", "next")
    assert [read.name for read in read_record("next").inputs] == ["m", "a"]


@pytest.mark.models("transformers")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("license: mit", "license: apache-2.0"),
        ("license: mit", "tags: [x]"),
        ("license: other\nlicense_name: x", "license: other\nlicense_name: y"),
        ("license: mit", "license: [unclosed"),
        ("license: mit", "license: &x mit"),
    ],
)
def test_licences_that_differ_are_told_and_not_given(a: str, b: str, transformers_folders: Path) -> None:
    cards(transformers_folders, a=a, b=b)
    run("merge", "a", "b", "-o", "m")
    assert "license" not in front_matter(Path("m/README.md"))
    assert "none is given here, because the networks do not agree: `a` says" in Path("m/README.md").read_text()


@pytest.mark.models("transformers")
def test_networks_that_stay_what_they_are_keep_their_cards(transformers_folders: Path) -> None:
    cards(transformers_folders, a="license: mit", b="license: mit")
    for job, call, output in (
        ("fold", ["fold", "a"], "f"), ("rotate", ["rotate", "b"], "r"), ("solve", ["solve", "a", "b"], "s")
    ):  # fmt: skip
        run(*call, "-o", output)
        assert read_record(output).job == job
        assert (Path(output) / "README.md").read_text() == (Path(call[-1]) / "README.md").read_text()
    run("align-many", "a", "b", "-o", "many")
    assert [read.name for read in read_record("many/b").inputs] == ["a", "b"]
    assert "model card of b" in Path("many/b/README.md").read_text()
    run("transport", "a", "a", "b", "-o", "t")
    assert "| `b` | the base that got it |" in Path("t/README.md").read_text()
    run("transport", "a", "a", "b", "-o", "t", "--force")


@pytest.mark.models("transformers")
def test_the_folder_is_replaced_with_its_record_and_card_and_nothing_else_is(transformers_folders: Path) -> None:
    run("merge", "a", "b", "-o", "m")
    assert not Path("a/README.md").exists()
    run("merge", "a", "b", "-o", "m", "--force")
    (transformers_folders / "m" / "thesis.tex").write_text("years of work")
    assert "thesis.tex, which would be lost" in run("merge", "a", "b", "-o", "m", "--force", code=1)
    shutil.copytree("a", "n")
    (transformers_folders / "n" / "README.md").write_text("mine")
    assert "README.md, which would be lost" in run("merge", "a", "b", "-o", "n", "--force", code=1)


@pytest.mark.models("transformers")
def test_the_merged_folder_is_loaded_by_its_library(transformers_folders: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run("merge", "a", "b", "-o", "m", "--dtype", "bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained("m")
    merged = read_weights("m")
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in merged.items() if name in state)


def test_the_jobs_that_write_are_those_with_records() -> None:
    assert {call[0] for call, output in JOBS.values() if output} <= {call[0] for call, *_ in CALLS.values()}


@pytest.mark.models("transformers")
@pytest.mark.parametrize("field", ["_name_or_path", "name_or_path"])
@pytest.mark.parametrize(
    ("origins", "said"),
    [
        (("owner/one", "owner/two"), ["owner/one", "owner/two"]),
        (("owner/one", "owner/one"), ["owner/one"]),
        (("./somewhere", "owner/two"), ["owner/two"]),
        ((7, None), []),
    ],
)
def test_a_card_names_where_local_folders_come_from(
    transformers_folders: Path, field: str, origins: tuple[object, object], said: list[str]
) -> None:
    for name, origin in zip("ab", origins, strict=True):
        config = Path(name, "config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), field: origin}))
    run("merge", "a", "b", "-o", "m")
    assert front_matter(Path("m/README.md"))["base_model"] == said
