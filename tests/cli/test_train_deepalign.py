"""`alignkit train-deepalign`: an aligner with its card, resumed runs and wrong switches."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from alignkit.cli import app
from alignkit.deepalign import load_aligner, read_card


@pytest.fixture(scope="module")
def zoo_folder(tmp_path_factory):
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    from alignkit import zoo

    folder = tmp_path_factory.mktemp("zoo") / "networks"
    plan = zoo.plan_set(
        zoo.Mlp(widths=(8, 8)), zoo.source("digits"), 10, recipe=zoo.Recipe(epochs=2), shares=(0.6, 0.4, 0.0)
    )
    zoo.write_set(folder, plan)
    return folder


SWITCHES = ["--steps", "4", "--setting", "pairs=2", "--setting", "validation_pairs=2", "--encoder-option", "hidden=8"]


def run(*arguments):
    return CliRunner().invoke(app, ["train-deepalign", *map(str, arguments)])


def test_the_command_writes_an_aligner_with_its_card(zoo_folder, tmp_path):
    output = tmp_path / "aligner.safetensors"
    shown = run(zoo_folder, "-o", output, "--encoder", "dws", "--seed", 3, *SWITCHES, "--json")
    assert shown.exit_code == 0, shown.output
    facts = json.loads(shown.stdout)
    aligner = load_aligner(output)
    assert facts["fingerprint"] == aligner.fingerprint
    card = read_card(output)
    assert "mlp 8-8 relu" in card["data"] and "digits" in card["data"]
    assert card["seed"] == "3" and "--encoder dws --steps 4 --seed 3 --setting pairs=2" in card["command"]
    assert str(tmp_path) not in json.dumps(card)
    assert list(json.loads(card["log"])) == ["0", "4"]


def test_the_command_goes_on_where_it_was(zoo_folder, tmp_path):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    assert run(zoo_folder, "-o", one, "--encoder", "dws", *SWITCHES).exit_code == 0
    refused = run(zoo_folder, "-o", other, "--encoder", "dws", *SWITCHES, "--log", tmp_path / "one-training")
    assert refused.exit_code == 1 and "resume it" in refused.output
    log = tmp_path / "one-training"
    resumed = run(zoo_folder, "-o", other, "--encoder", "dws", *SWITCHES, "--log", log, "--resume")
    assert resumed.exit_code == 0 and "weight matching" in resumed.output
    assert load_aligner(one).fingerprint == load_aligner(other).fingerprint
    assert read_card(one) == read_card(other)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        (["--encoder", "dwz"], "Did you mean 'dws'"),
        (["--setting", "pears=3"], "pears"),
        (["--setting", "pairs=0"], "greater than or equal to 1"),
        (["--setting", "steps=3"], "use --steps instead"),
        (["--setting", "noise"], "KEY=VALUE"),
        (["--setting", "pairs.noise=1"], "'pairs' has no settings of its own"),
        (["--encoder-option", "colour=3"], "colour"),
    ],
)
def test_wrong_switches_are_named(switches, message, zoo_folder, tmp_path):
    shown = run(zoo_folder, "-o", tmp_path / "aligner.safetensors", *switches)
    assert shown.exit_code == 2
    assert message in " ".join(shown.output.split())
    assert not list(tmp_path.iterdir())


def test_an_aligner_can_be_the_start_of_the_next(zoo_folder, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert run(zoo_folder, "-o", first, "--encoder", "dws", *SWITCHES).exit_code == 0
    shown = run(zoo_folder, "-o", second, "--start", first, "--steps", 2, "--setting", "pairs=2")
    assert shown.exit_code == 0, shown.output
    wrong = run(zoo_folder, "-o", tmp_path / "third.safetensors", "--start", first, "--encoder", "learned")
    assert wrong.exit_code == 2 and "holds a 'dws' encoder" in " ".join(wrong.output.split())


def test_help_starts_with_an_example():
    shown = run("--help").output
    assert "Example: alignkit train-deepalign" in " ".join(shown.split())


def test_several_sets_of_one_domain_make_an_aligner_that_needs_no_data(zoo_folder, tmp_path):
    from alignkit import solve, zoo

    other = tmp_path / "others"
    plan = zoo.plan_set(
        zoo.Mlp(widths=(12,), activation="tanh"),
        zoo.source("digits"),
        6,
        recipe=zoo.Recipe(epochs=1),
        shares=(0.5, 0.5, 0.0),
    )
    zoo.write_set(other, plan)
    output = tmp_path / "aligner.safetensors"
    quick = ["--steps", 2, "--setting", "pairs=1", "--setting", "validation_pairs=1", "--encoder-option", "channels=4"]
    shown = run(zoo_folder, other, "-o", output, "--domain", *quick)
    assert shown.exit_code == 0, shown.output
    card = read_card(output)
    assert json.loads(card["domain"])["shape"] == [1, 8, 8] and len(json.loads(card["data"])) == 2
    assert "networks others" in card["command"] and "--domain" in card["command"]
    assert set(json.loads(card["schedule"])) == {"rounds", "sharpness", "carry_over", "steps", "rate"}
    assert output.stat().st_size < 60_000
    networks = zoo.NetworkSet.open(other)
    a, b = networks.model(), networks.model()
    a.load_state_dict(networks[0])
    b.load_state_dict(networks[1])
    solution = solve(networks.graph.bind(a, b), solver="deepalign", encoder="learned", checkpoint=output)
    assert "the domain that the aligner knows, 1x8x8" in solution.notes["probes"]
    wrong = run(zoo_folder, "-o", tmp_path / "dws.safetensors", "--encoder", "dws", "--domain")
    assert wrong.exit_code == 2 and "has no use for a domain" in " ".join(wrong.output.split())


def test_a_dry_run_says_how_long_it_takes_and_writes_nothing(zoo_folder, tmp_path):
    call = (zoo_folder, "-o", tmp_path / "aligner.safetensors", "--encoder", "dws", *SWITCHES)
    shown = run(*call, "--dry-run")
    assert shown.exit_code == 0 and "nothing was trained or written" in shown.output and "Time: about" in shown.output
    facts = json.loads(run(*call, "--dry-run", "--json").output)
    assert facts["seconds"] > 0 and facts["settings"]["steps"] >= 1
    assert not list(tmp_path.iterdir())
