"""`--symmetries all` on every job: networks are folded first, and what comes out is a network of the same architecture.

Families: decoders with tied and untied heads, grouped queries, vision, post-LN, experts, and plain nets.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import alignkit
from alignkit import Alignment, open_networks, read_weights, write_weights
from alignkit.graph.phases import move_phases, phases_in
from alignkit.graph.proof.perturb import perturbed
from alignkit.jobs.near_phases import with_near_phases
from helpers.command_line import run
from helpers.family_folders import load_like, save_family
from helpers.symmetry_nets import MODULE, NETS

FAMILIES = ["gpt2", "llama", "vit", "bert", "gpt_neox tied", "mixtral"]
folders = [pytest.param(name, marks=pytest.mark.models("transformers")) for name in FAMILIES]
networks = pytest.mark.parametrize("name", [*NETS, *folders])
ALL = ("--symmetries", "all")


class Pair:
    """Networks on disk: a and b (two seeds), twin (a under a random element of its whole group), and how they run."""

    def __init__(self, name: str, here: Path) -> None:
        self.name, self.is_folder, self.here = name, name in FAMILIES, here
        self.suffix = "" if self.is_folder else ".safetensors"
        self.model: Any
        if self.is_folder:
            self.given: tuple[str, ...] = ()
            models = [perturbed(save_family(name, here / side, seed)) for seed, side in enumerate("ab")]
            for side, model in zip("ab", models, strict=True):
                model.save_pretrained(here / side)
        else:
            self.given = ("--model", f"symmetry_nets:{name}")
            models = [perturbed(NETS[name]()[0], seed) for seed in range(2)]
            for side, model in zip("ab", models, strict=True):
                write_weights(here / f"{side}.safetensors", model.state_dict())
        self.model = models[0].eval()
        files = open_networks(here / self.file("a"), model=None if self.is_folder else self.given[1], symmetries="all")
        twin = {name: tensor.clone() for name, tensor in files.weights[0].items()}
        move_phases(files.graph, phases_in(files.graph), twin, torch.Generator().manual_seed(5))
        files.write(here / self.file("twin"), Alignment.random(files.graph, 5).apply(twin), like=0)

    def file(self, name: str) -> str:
        return name + self.suffix

    def answer(self, name: str) -> Tensor:
        """What a network on disk computes, as its own library loads it."""
        if self.is_folder:
            model = load_like(self.model, self.here / name)
            tokens = torch.arange(20, 26).reshape(1, 6)
            pixels = torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)
            inputs = {model.main_input_name: tokens if model.main_input_name == "input_ids" else pixels}
            with torch.no_grad():
                return model(**inputs).logits
        model, example = NETS[self.name]()
        model.load_state_dict(read_weights(self.here / self.file(name)))
        with torch.no_grad():
            return model(example.fill_(0.5).cumsum(-1))


@pytest.fixture
def pair(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    (tmp_path / "symmetry_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield Pair(name, tmp_path)
    __import__("sys").modules.pop("symmetry_nets", None)


def close(left: Tensor, right: Tensor) -> bool:
    return float((left - right).abs().max()) < 2e-5 * float(right.abs().max())


@networks
def test_twins_are_the_same_and_their_merge_is_the_network(name: str, pair: Pair) -> None:
    a, twin, merged = pair.file("a"), pair.file("twin"), pair.file("m")
    assert close(pair.answer("twin"), pair.answer("a"))
    said = run("distance", a, twin, *pair.given, *ALL, "--same", "--tolerance", "1e-4")
    assert "the same up to permutation" in said
    assert name != "siren" or "the same up to permutation, signs and phases" in said
    said = run("merge", a, twin, "-o", merged, *pair.given, *ALL, "--report", "report.md")
    assert (
        f"Folded {a}: " in said and "Function check of" in said and "Outputs differ, once networks are folded" in said
    )
    assert "Networks were folded first" in (pair.here / "report.md").read_text()
    assert close(pair.answer("m"), pair.answer("a"))


@networks
def test_a_merge_is_what_python_makes_of_the_networks(name: str, pair: Pair) -> None:
    run("merge", pair.file("a"), pair.file("b"), "-o", pair.file("m"), *pair.given, *ALL)
    model = None if pair.is_folder else pair.given[1]
    files = open_networks(pair.file("a"), pair.file("b"), model=model, symmetries="all")
    left, right = (alignkit.fold(weights, files.graph).network for weights in files.given)
    aligned = alignkit.solve(files.graph, left, right).apply(right)
    average = alignkit.average([left, with_near_phases(files.graph, left, aligned)])
    files.write(pair.here / pair.file("by-hand"), average, like=0)
    by_hand, written = read_weights(pair.file("by-hand")), read_weights(pair.file("m"))
    assert by_hand.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in by_hand.items())


@networks
def test_every_job_keeps_the_functions_of_its_networks(name: str, pair: Pair) -> None:
    a, b = pair.file("a"), pair.file("b")
    run("solve", a, b, "-o", pair.file("solved"), *pair.given, *ALL, "--save-alignment", "p.safetensors")
    assert close(pair.answer("solved"), pair.answer("b"))
    run("align-many", a, b, pair.file("twin"), "-o", "many", *pair.given, *ALL)
    run("canonicalize", a, b, pair.file("twin"), "-o", "canonical", *pair.given, *ALL)
    for made in ("many/b", "many/twin", "canonical/b", "canonical/twin"):
        assert close(pair.answer(made), pair.answer("b" if made.endswith("b") else "a"))
    # A fine-tune that changes nothing is nothing on any base.
    run("transport", a, a, b, "-o", pair.file("carried"), *pair.given, *ALL, "--alignment", "p.safetensors")
    assert close(pair.answer("carried"), pair.answer("b"))
    facts = json.loads(run("compare", a, b, *pair.given, *ALL, "--solver", "weight_matching", "--json"))
    assert set(facts["folded"]) == {a, b}
    assert {row["solver"]: row["status"] for row in facts["rows"]}.keys() >= {"identity", "weight_matching"}
    assert not [row for row in facts["rows"] if row["status"] != "OK"]
    run("merge", a, a, "-o", pair.file("plain"), *pair.given, *ALL, "--no-align")
    assert close(pair.answer("plain"), pair.answer("a"))


@networks
def test_a_dry_run_says_what_would_be_folded_and_writes_nothing(name: str, pair: Pair) -> None:
    before = sorted(map(str, pair.here.rglob("*")))
    call = ("merge", pair.file("a"), pair.file("b"), "-o", pair.file("m"), *pair.given, *ALL, "--dry-run")
    facts = json.loads(run(*call, "--json"))
    graph = open_networks(pair.file("a"), model=None if pair.is_folder else pair.given[1], symmetries="all").graph
    assert facts["folds"] == list(map(str, graph.folds)) and facts["blocked"] == list(map(str, graph.blocked))
    assert len(facts["balanced"]) == len(graph.balances)
    assert {row["name"]: row["kind"] for row in facts["groups"]} == {n: g.kind for n, g in graph.groups.items()}
    said = run(*call)
    for told in [*map(str, graph.blocked), *(["Folds first"] if graph.folds else []), *facts["untied"]]:
        assert told in said
    assert sorted(map(str, pair.here.rglob("*"))) == before


@pytest.mark.models("transformers")
@pytest.mark.parametrize("name", ["gpt2"])
class TestTiedHeads:
    def test_a_head_is_untied_and_the_configuration_says_so(self, name: str, pair: Pair) -> None:
        said = run("merge", "a", "b", "-o", "m", *ALL)
        assert "lm_head.weight is no longer tied to transformer.wte.weight: 640 numbers more." in said
        assert json.loads((pair.here / "m" / "config.json").read_text())["tie_word_embeddings"] is False

    @pytest.mark.parametrize("memory", [(), ("--memory", "50MB")])
    def test_a_reference_may_have_a_head_of_its_own_beside_a_tied_one(
        self, name: str, memory: tuple[str, ...], pair: Pair
    ) -> None:
        said = run("distance", "twin", "a", *ALL, *memory, "--tolerance", "1e-4", "--same")
        assert "the same up to" in said
        run("solve", "twin", "a", "-o", "solved", *ALL, *memory)
        run("merge", "twin", "a", "-o", "merged", *ALL, *memory)
        run("transport", "twin", "twin", "a", "-o", "carried", *ALL, *memory)
        for made in ("solved", "merged", "carried"):
            assert close(pair.answer(made), pair.answer("a"))
        assert "tie_word_embeddings" in run("distance", "twin", "a", *ALL, *memory, "--keep-tied", code=1)

    def test_a_network_is_checked_against_one_with_a_head_of_its_own(self, name: str, pair: Pair) -> None:
        for one, other in (("a", "twin"), ("twin", "a")):
            assert "Passed" in run("check", one, "--against", other, *ALL)

    def test_models_that_were_loaded_and_built_are_one_architecture(self, name: str, pair: Pair) -> None:
        tokens = torch.arange(6)[None]
        task = alignkit.Task(type(pair.model)(pair.model.config), [{"input_ids": tokens, "labels": tokens}], "model")
        for folder in ("a", "twin"):  # in the second the head is untied, which a module of the first does not take
            loaded = load_like(pair.model, pair.here / folder)
            loss = loaded(input_ids=tokens, labels=tokens).loss.item()
            assert task.evaluate(loaded if folder == "a" else loaded.state_dict()).loss == pytest.approx(loss)
            assert task.evaluate(task.network(loaded.state_dict()).state_dict()).loss == pytest.approx(loss)

    def test_a_head_stays_tied_where_that_is_wanted(self, name: str, pair: Pair) -> None:
        said = run("merge", "a", "b", "-o", "m", *ALL, "--keep-tied")
        assert "Untie the head to fold it" in said and "no longer tied" not in said
        assert (pair.here / "m" / "config.json").read_text() == (pair.here / "a" / "config.json").read_text()
        assert "lm_head.weight" not in read_weights("m")
        run("solve", "a", "b", "-o", "s", *ALL, "--keep-tied")
        assert close(pair.answer("s"), pair.answer("b"))

    def test_bfloat16_is_rounded_and_told(self, name: str, pair: Pair) -> None:
        for side in "ab":
            weights = {n: t.bfloat16() if t.is_floating_point() else t for n, t in read_weights(side).items()}
            write_weights(pair.here / side / "model.safetensors", weights)
        facts = json.loads(run("solve", "a", "b", "-o", "s", *ALL, "--json"))
        assert 1e-4 < facts["rounding_error"] < 0.2
        assert {tensor.dtype for tensor in read_weights("s").values()} == {torch.bfloat16}
        files = open_networks("a", symmetries="all")
        files.write(Path("moved"), Alignment.random(files.graph, 1).apply(files.weights[0]), like=0)
        facts = json.loads(run("distance", "a", "moved", *ALL, "--json"))
        assert not facts["same"]
        assert "No element differs by more than rounding to bfloat16 does" in run("distance", "a", "moved", *ALL)


@pytest.mark.parametrize("name", ["relu"])
class TestRefused:
    @pytest.mark.parametrize(
        ("switches", "message"),
        [
            (("--symmetries", "rotations"), "--symmetries 'rotations': take permutation, all."),
            (("--keep-tied",), "--keep-tied goes with --symmetries all"),
        ],
    )
    def test_switches_that_make_no_sense(self, switches: tuple[str, ...], message: str, pair: Pair) -> None:
        call = ("solve", pair.file("a"), pair.file("b"), "-o", pair.file("s"), *pair.given)
        assert message in run(*call, *switches, code=2)
        assert not (pair.here / pair.file("s")).exists()

    def test_a_spec_says_nothing_of_folds(self, name: str, pair: Pair) -> None:
        (pair.here / "spec.json").write_text("{}")
        call = ("solve", pair.file("a"), pair.file("b"), "-o", pair.file("s"), "--spec", "spec.json", *ALL)
        assert "a trace finds: say --model" in run(*call, code=2)

    def test_a_network_that_cannot_be_folded_is_named_before_anything_is_written(self, name: str, pair: Pair) -> None:
        broken = read_weights(pair.file("b"))
        write_weights(pair.file("b"), {n: t * torch.nan for n, t in broken.items()})
        for job in (("solve", "-o", pair.file("s")), ("align-many", "-o", "many"), ("distance",)):
            said = run(job[0], pair.file("a"), pair.file("b"), *job[1:], *pair.given, *ALL, code=1)
            assert f"{pair.file('b')}: " in said and "holds NaN" in said
        assert not (pair.here / pair.file("s")).exists() and not (pair.here / "many").exists()


@networks
def test_a_fine_tune_is_balanced_as_its_base_is(name: str, pair: Pair) -> None:
    suffix = "/model.safetensors" if pair.is_folder else ""
    weights = read_weights(pair.file("a"))
    if pair.is_folder:
        shutil.copytree(pair.here / "a", pair.here / "tuned")
    moved = {n: t + 0.05 * torch.linspace(-1, 1, t.numel()).view_as(t) for n, t in weights.items()}
    write_weights(pair.here / f"{pair.file('tuned')}{suffix}", moved)
    paths = [pair.file(side) for side in ("a", "tuned", "twin")]
    run("transport", *paths, "-o", pair.file("half"), *pair.given, *ALL, "--scale", "0.5")
    model = None if pair.is_folder else pair.given[1]
    files = open_networks(*paths, pair.file("half"), model=model, symmetries="all")
    a, tuned, b, written = files.given
    bases = [alignkit.fold(network, files.graph) for network in (a, b)]
    carried = alignkit.transport(files.graph, *bases, tuned=tuned, scale=0.5).network
    assert all(torch.allclose(written[name], tensor, atol=1e-4) for name, tensor in carried.items())


@networks
def test_twins_have_one_canonical_form(name: str, pair: Pair) -> None:
    forms = {}
    for side in ("a", "twin"):
        said = run("canonical-form", pair.file(side), "-o", pair.file(f"form-{side}"), *pair.given, *ALL)
        assert f"Folded {pair.file(side)}: " in said and "Function check of" in said
        assert close(pair.answer(f"form-{side}"), pair.answer("a"))
        forms[side] = read_weights(pair.file(f"form-{side}"))
    if "Every unit has its place" in said:
        size = max(float(tensor.abs().max()) for tensor in forms["a"].values())
        assert all(torch.allclose(t, forms["twin"][n], atol=1e-4 * size) for n, t in forms["a"].items())


@networks
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare"])
def test_fine_tunes_that_equal_their_base_change_nothing(name: str, method: str, pair: Pair) -> None:
    run("fold", pair.file("a"), "-o", pair.file("folded"), *pair.given)
    sides = [pair.file(side) for side in ("a", "a", "twin", "folded")]
    run("merge", *sides, "-o", pair.file("m"), *pair.given, *ALL, "--method", method, "--density", "1")
    assert close(pair.answer("m"), pair.answer("a"))
    base, merged = read_weights(pair.file("folded")), read_weights(pair.file("m"))
    largest = max(float(tensor.abs().max()) for tensor in base.values())
    assert all(torch.allclose(merged[n].float(), t.float(), atol=1e-5 * largest) for n, t in base.items())


@networks
def test_folded_networks_stay_on_disk(name: str, pair: Pair) -> None:
    limit = ("--memory", "60MB")
    if name == "mixtral":
        pytest.skip("its experts are stored one by one, which --memory refuses")
    if name == "siren":
        pytest.skip("biases of aligned B are brought near to those of A in memory only")
    given = [pair.file(side) for side in "ab"]
    methods = {f"merge --method {method}": "merge" for method in ("task_arithmetic", "ties", "dare", "slerp")}
    for words in ("merge", *methods, "solve", "align-many", "canonicalize"):
        job, *more = words.split()
        in_folder = job in ("align-many", "canonicalize")
        on_disk, in_memory = (f"{job}-{how}" if in_folder else pair.file(f"{job}-{how}") for how in ("disk", "memory"))
        said = run(job, *given, "-o", on_disk, *pair.given, *ALL, *more, *limit, "--force")
        assert f"Folded {given[0]}: " in said
        run(job, *given, "-o", in_memory, *pair.given, *ALL, *more, "--force")
        left, right = (read_weights(f"{at}/{given[1]}" if in_folder else at) for at in (on_disk, in_memory))
        assert left.keys() == right.keys()
        assert all(torch.allclose(t.float(), right[n].float(), atol=2e-5) for n, t in left.items())
    assert "the same" in run("distance", given[0], given[0], *pair.given, *ALL, *limit, "--same")
    tuned = {n: 1.01 * t if t.is_floating_point() else t for n, t in read_weights(given[0]).items()}
    open_networks(given[0], model=None if pair.is_folder else pair.given[1]).write(
        pair.here / pair.file("tuned"), tuned, like=0
    )
    for how, more in {"disk": limit, "memory": ()}.items():
        sides = (given[0], pair.file("tuned"), given[1])
        run("transport", *sides, "-o", pair.file(f"carried-{how}"), *pair.given, *ALL, *more)
    left, right = (read_weights(pair.file(f"carried-{how}")) for how in ("disk", "memory"))
    assert left.keys() == right.keys()
    assert all(torch.allclose(t.float(), right[n].float(), atol=2e-5) for n, t in left.items())
    assert not [path for path in pair.here.rglob(".*") if "scratch" in path.name]
    apart = [json.loads(run("distance", *given, *pair.given, *ALL, *more, "--json")) for more in (limit, ())]
    assert apart[0]["squared_distance_after"] == pytest.approx(apart[1]["squared_distance_after"], rel=1e-4)


@networks
@pytest.mark.parametrize("more", [(), ("--no-balance",), ("--keep-tied",), ("--dtype", "float64"), ("--dtype", "bf16")])
def test_a_fold_on_disk_is_the_fold_in_memory(name: str, more: tuple[str, ...], pair: Pair) -> None:
    if name == "mixtral":
        pytest.skip("its experts are stored one by one, which --memory refuses")
    for how, limit in {"disk": ("--memory", "60MB"), "memory": ()}.items():
        run("fold", pair.file("a"), "-o", pair.file(how), *pair.given, *more, *limit)
    left, right = (read_weights(pair.file(how)) for how in ("disk", "memory"))
    assert list(left) == list(right)
    assert all(t.dtype == right[n].dtype and torch.equal(t, right[n]) for n, t in left.items())
    if pair.is_folder:
        assert (pair.here / "disk/config.json").read_text() == (pair.here / "memory/config.json").read_text()
