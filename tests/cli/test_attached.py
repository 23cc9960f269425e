"""`alignkit transport` and `alignkit merge` with adapters, probes and other tensors beside a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

import alignkit
from alignkit import SymmetryGraph, read_weights, write_weights
from alignkit.jobs import Adapter
from helpers.adapters import random_adapter
from helpers.command_line import run
from helpers.weight_files import GIVEN, SPEC, equal

NAMES = ("a.safetensors", "thing.safetensors", "b.safetensors")
MODEL = ("--model", "job_nets:net")


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def things() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"probe.weight": (2, 6), "probe.bias": (2,), "steer": (6,)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write_weights("thing.safetensors", made)
    return made


@pytest.mark.parametrize("word", ["@0.weight:0", "@2.weight:1", "h"])
def test_one_word_or_a_file_says_where_tensors_stand(folder: Path, word: str) -> None:
    made = things()
    said = run("transport", *NAMES, "-o", "one.safetensors", *GIVEN, "--layouts", "@0.weight:0")
    assert "probe.weight: . h" in said
    layouts = {"probe.weight": f". {word}", "probe.bias": ".", "steer": word}
    Path("layouts.json").write_text(json.dumps(layouts))
    said = run("transport", *NAMES, "-o", "two.safetensors", *GIVEN, "--layouts", "layouts.json", "--json")
    assert json.loads(said)["layouts"]["steer"] == "h"
    a, b = read_weights(NAMES[0]), read_weights(NAMES[2])
    expected = alignkit.transport_tensors(SymmetryGraph.from_spec(SPEC, like=a), a, b, tensors=made, layouts=layouts)
    assert equal(read_weights("one.safetensors"), expected.tensors)
    assert equal(read_weights("two.safetensors"), expected.tensors)
    assert not torch.equal(expected.tensors["steer"], made["steer"])


def test_modules_and_all_symmetries(folder: Path) -> None:
    made = things()
    run("transport", *NAMES, "-o", "one.safetensors", *MODEL, "--layouts", "@1", "--save-alignment", "p.safetensors")
    run("transport", *NAMES, "-o", "two.safetensors", *MODEL, "--layouts", "@1", "--alignment", "p.safetensors")
    run("transport", *NAMES, "-o", "disk.safetensors", *MODEL, "--layouts", "@1", "--memory", "20MB")
    for other in ("two", "disk"):
        assert equal(read_weights("one.safetensors"), read_weights(f"{other}.safetensors"))
    arguments = ("transport", *NAMES, "-o", "all.safetensors", *MODEL, "--symmetries", "all", "--layouts")
    assert "scaled in two ways" in run(*arguments, "@1", code=1)
    assert not Path("all.safetensors").exists()
    run(*arguments, "@2.weight:1")
    graph = alignkit.trace(layers(), torch.randn(5, 4), symmetries="all")
    a, b = read_weights(NAMES[0]), read_weights(NAMES[2])
    expected = alignkit.transport_tensors(graph, a, b, tensors=made, layouts="@2.weight:1")
    assert all(torch.allclose(t, expected.tensors[n], atol=1e-6) for n, t in read_weights("all.safetensors").items())


@pytest.mark.parametrize("memory", [(), ("--memory", "20MB")])
@pytest.mark.parametrize("given", [GIVEN, (*MODEL, "--symmetries", "all")])
def test_an_adapter_is_carried_and_peft_s_folder_written(
    folder: Path, given: tuple[str, ...], memory: tuple[str, ...]
) -> None:
    adapter = random_adapter(layers())
    adapter.write("lora")
    call = ("transport", "a.safetensors", "lora", "b.safetensors", "-o", "carried", *given, *memory)
    said = run(*call, "--report", "r.md")
    assert "Factors of 2 weights carried" in said
    assert Path("r.md").exists()
    a, b = read_weights(NAMES[0]), read_weights(NAMES[2])
    graph = alignkit.trace(layers(), torch.randn(5, 4), symmetries="all" if "all" in given else "permutation")
    expected = alignkit.transport_adapter(graph, a, b, adapter=adapter).adapter
    found = Adapter.read("carried")
    assert found.config["base_model_name_or_path"] == "b.safetensors"
    assert all(torch.allclose(found.tensors[n], t, atol=1e-5) for n, t in expected.tensors.items())
    arguments = ("transport", "a.safetensors", "lora", "b.safetensors", "-o", "carried", *given)
    assert "exists" in run(*arguments, code=2)
    run(*arguments, "--force")


@pytest.mark.parametrize("method", ["products", "factors"])
def test_adapters_are_merged(folder: Path, method: str) -> None:
    one, two = (random_adapter(layers(), seed=seed) for seed in (1, 2))
    one.write("one")
    two.write("two")
    said = run("merge", "one", "two", "-o", "merged", "--method", method, "--weight", "1", "--weight", "3")
    assert "2 weights: " in said
    expected = alignkit.merge_adapters([one, two], [1, 3], method).adapter
    assert all(torch.equal(Adapter.read("merged").tensors[n], t) for n, t in expected.tensors.items())
    facts = json.loads(run("merge", "one", "two", "-o", "again", "--json"))
    assert facts["method"] == "products" and len(facts["apart"]) == 2


def test_switches_that_do_not_go_together_are_refused(folder: Path) -> None:
    things()
    random_adapter(layers()).write("lora")
    for thing, more in (("lora", ()), ("thing.safetensors", ("--layouts", "h"))):
        for switch in (("--scale", "2"), ("--task", "job_nets:task")):
            said = run(
                "transport", "a.safetensors", thing, "b.safetensors", "-o", "out", *GIVEN, *more, *switch, code=2
            )
            assert f"{switch[0]} does not go with" in said
    for switch in (("--task", "job_nets:task"), ("--memory", "1GB"), ("--no-align",), ("--method", "slerp")):
        said = run("merge", "lora", "lora", "-o", "out", *switch, code=2)
        assert switch[0] in said
    assert not Path("out").exists()
    said = run("transport", *NAMES, "-o", "x.safetensors", *GIVEN, "--layouts", "nowhere.json", code=1)
    assert "nowhere.json cannot be read" in said


# ---------------------------------------------------------------------- what made them


def front_matter(card: Path) -> dict[str, object]:
    return yaml.safe_load(card.read_text().split("---")[1])


def made_adapters(origin: str | None) -> None:
    """Write two adapters; ``origin`` is the base that their configurations name."""
    for seed, name in enumerate(("one", "two")):
        random_adapter(layers(), seed=seed).on_base(origin).write(name)
        Path(name, "README.md").write_text(f"---\nlicense: mit\n---\n# card of {name}\n")


CALLS = {
    "merge": (["merge", "one", "two"], ["weight 0.5", "weight 0.5"]),
    "transport": (
        ["transport", "a.safetensors", "one", "b.safetensors", *GIVEN],
        ["the adapter", "the base that it was trained on", "the base that it was carried to"],
    ),
}


@pytest.mark.parametrize("origin", ["somebody/base", "a/local/folder", "base.safetensors", None])
@pytest.mark.parametrize("job", CALLS)
def test_an_adapter_has_a_record_and_a_card(folder: Path, job: str, origin: str | None) -> None:
    made_adapters(origin)
    call, roles = CALLS[job]
    run(*call, "-o", "out")
    card = Path("out/README.md").read_text()
    header = front_matter(Path("out/README.md"))
    assert header["base_model"] == (["somebody/base"] if origin == "somebody/base" else [])
    assert header["library_name"] == "peft"
    assert {"alignkit", "lora"} <= set(header["tags"])  # type: ignore[arg-type]
    assert header.get("license") == ("mit" if job == "merge" else None)
    assert "card of one" not in card
    assert all(f"| {role} |" in card for role in roles)
    record = alignkit.jobs.read_record("out")
    assert record.job == job
    digests = [file.sha256 for each in record.inputs for file in each.files if file.name != "adapter_config.json"]
    assert digests and all(digest in card for digest in digests)
    run(*call, "-o", "out", "--force")
    assert Path("out/README.md").read_text() == card
    Adapter.read("out")
