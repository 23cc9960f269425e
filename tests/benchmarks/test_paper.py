"""The scripts of the paper's experiments run, on small sets of digits and sine waves, and say what they should."""

import importlib
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "paper"
NAMES = ("mnist-mlp", "split-a", "split-b", "sine-inr")
TRAINED = {
    "Deep-Align",
    "Deep-Align + consensus",
    "Deep-Align + consensus + midpoint",
    "probe encoder, trained",
    "probe encoder, trained, on data",
}
UNTRAINED = {"naive", "weight matching", "activation matching", "probes only", "probes on data"}
WITH_SINKHORN = {
    "Sinkhorn",
    "weight matching + Sinkhorn",
    "probes on data + Sinkhorn",
    "Deep-Align + Sinkhorn",
    "probe encoder, trained + Sinkhorn",
}


def call(script: str, *arguments: object) -> None:
    """Run a script's main with these arguments."""
    threads = torch.get_num_threads()
    before, sys.argv = sys.argv, [script, *map(str, arguments)]
    sys.path.insert(0, str(FOLDER))
    try:
        importlib.import_module(script).main()
    finally:
        sys.argv = before
        torch.set_num_threads(threads)
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Small sets of networks and one aligner of each kind for the first."""
    folder = tmp_path_factory.mktemp("paper")
    call("paper_data", "--folder", folder, "--tiny", "--only", *NAMES)
    for encoder in ("dws", "learned"):
        call("aligners", "--folder", folder, "--aligners", folder / "aligners", "--set", "mnist-mlp",
             "--encoder", encoder, "--seeds", 0, 1, "--steps", 2)  # fmt: skip
    return folder


def results(made, script: str, *arguments: object) -> dict:
    """What a script writes."""
    output = made / f"{script}-{len(arguments)}.json"
    call(script, "--folder", made, "--aligners", made / "aligners", "--output", output, *arguments)
    return json.loads(output.read_text())


@pytest.mark.parametrize(
    "script", sorted(path.stem for path in FOLDER.glob("*.py") if "def main()" in path.read_text())
)
def test_scripts_read_sets_and_data_by_the_same_switches(script, capsys):
    with pytest.raises(SystemExit) as ended:
        call(script, "--help")
    help_text = capsys.readouterr().out
    assert ended.value.code == 0 and "--folder FOLDER" in help_text and "--data DATA" in help_text


def test_table_holds_every_method_and_seed_and_adds_only_what_is_missing(made, monkeypatch):
    size = ("--set", "mnist-mlp", "--pairs", 2, "--samples", 64, "--images", 64, "--sinkhorn-steps", 2)
    first = results(made, "table", *size, "--only", "naive", "Deep-Align")
    assert set(first["columns"]) == {"naive", "Deep-Align"}
    first["columns"]["naive"]["runs"]["-"]["barriers"] = [7.0, 7.0]
    output = made / "again.json"
    output.write_text(json.dumps(first))
    call("table", "--folder", made, "--aligners", made / "aligners", "--output", output, *size)
    again = json.loads(output.read_text())
    assert set(again["columns"]) >= UNTRAINED | TRAINED | WITH_SINKHORN
    assert again["columns"]["naive"]["runs"]["-"]["barriers"] == [7.0, 7.0], "measured again"
    assert set(again["columns"]["Deep-Align"]["runs"]) == {"0", "1"}
    for column in again["columns"].values():
        for run in column["runs"].values():
            assert len(run["barriers"]) == len(run["seconds"]) == len(again["pairs"]) == 2
    assert str(made) not in output.read_text(), "a path of this machine"


def test_class_splits_tell_how_well_averages_do_beside_their_parents(made):
    found = results(made, "class_splits", "--pairs", 2, "--images", 64, "--sinkhorn-steps", 2)
    assert len(found["parents"]["accuracies"]) == 4
    for column in found["columns"].values():
        for run in column["runs"].values():
            assert all(0 <= accuracy <= 1 for accuracy in run["accuracies"])


def test_runtime_counts_pairs_of_cheap_and_of_dear_methods(made):
    size = ("--pairs", 3, "--sinkhorn-pairs", 1, "--sinkhorn-steps", 2, "--images", 64)
    found = results(made, "runtime", *size, "--pool-pairs", 0)
    counts = {name: entry["pairs"] for name, entry in found["methods"].items()}
    assert {counts[name] for name in WITH_SINKHORN} == {1}
    assert {counts[name] for name in TRAINED | UNTRAINED - {"naive"}} == {3}
    assert found["methods"]["Deep-Align"]["batched_cpu_seconds"] > 0
    with_pool = results(made, "runtime", *size, "--pool-pairs", 2, "--only", "probes only")
    assert with_pool["methods"]["probes only"]["pool"]["pairs"] == 2


def test_curves_from_every_start_never_rise(made):
    found = results(made, "starts", "--pairs", 1, "--samples", 64, "--steps", 20)
    assert set(found["curves"]) == {"weight_matching", "frank_wolfe", "sinkhorn, distance", "sinkhorn, midpoint loss"}
    for by_start in found["curves"].values():
        assert {"identity", "Deep-Align", "probes only"} <= set(by_start)
        for name in ("weight_matching", "sinkhorn, distance"):
            for curve in found["curves"][name].values():
                assert all(later <= earlier + 1e-3 for earlier, later in pairwise(curve["mean"]))


def test_inr_steps_start_at_the_alignments_themselves(made):
    found = results(made, "inr_steps", "--pairs", 1, "--samples", 64, "--steps", 0, 2)
    assert set(found["steps"]) == {"0", "2"}
    assert found["steps"]["0"]["columns"]["naive"]["solver"] is None
    assert found["steps"]["2"]["columns"]["naive"]["solver"] == "sinkhorn"


def test_inr_phases_hold_every_column_and_both_oracles(made):
    output = made / "phases.json"
    call("inr_phases", "--folder", made, "--set", "sine-inr", "--pairs", 1, "--samples", 64, "--output", output)
    found = json.loads(output.read_text())
    assert {"predicting zero", "naive", "permutations and signs", "phases wrapped"} <= set(found["barriers"])
    assert found["noise"]["0.01"]["found"] == 1
    assert found["shared start"]["hidden weights moved"] > 0


def test_more_networks_and_steps_are_rows_of_their_own(made):
    output = made / "many.json"
    few = ("--pairs", 1, "--samples", 64, "--runs", "2:16", "4:16")
    call("many", "--folder", made, "--set", "mnist-mlp", *few, "--aligners", made / "many", "--output", output)
    rows = json.loads(output.read_text())["rows"]
    assert [rows[f"Deep-Align {run}"]["training"]["networks"] for run in ("2:16", "4:16")] == [2, 4]
    assert all(row["barrier"] >= 0 for row in rows.values())


def test_soft_starts_take_half_the_steps(made):
    output = made / "soft.json"
    few = ("--pairs", 1, "--samples", 64, "--images", 64, "--steps", 4)
    call("soft_starts", "--folder", made, "--set", "mnist-mlp", *few, "--output", output)
    starts = json.loads(output.read_text())["mnist-mlp"]["starts"]
    ends = {name: entry["steps"][-1] for name, entry in starts.items()}
    soft = ("probes only, soft", "probes on data, soft", "probes on data, soft, by outputs")
    assert ends == dict.fromkeys(("weight matching", "probes on data"), 4) | dict.fromkeys(soft, 2)
    assert all(later <= earlier for entry in starts.values() for earlier, later in pairwise(entry["mean"]))


def test_domain_aligners_are_measured_beside_what_needs_data(made, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(importlib.import_module("data"), "DOMAINS", {"digits 8x8": (("mnist-mlp",), ("mnist-mlp",))})
    output = made / "domains.json"
    few = ("--seeds", 0, 1, "--training-steps", 2, "--pairs", 2, "--sinkhorn-pairs", 1, "--sinkhorn-steps", 2)
    call("domains", "--folder", made, "--aligners", made / "domains", *few, "--samples", 64, "--output", output)
    found = json.loads(output.read_text())["mnist-mlp, digits 8x8"]
    assert set(found["aligners"]) == set(found["seeds"]) == {"0", "1"}
    assert found["barrier"]["domain aligner"] == pytest.approx(sum(found["seeds"].values()) / 2, rel=1e-5)
    assert set(found["barrier"]) >= {"probes", "probes, stand-ins", "probes, 512 inputs", "domain aligner > sinkhorn"}
    assert {name: len(values) for name, values in found["barriers"].items()}["weight matching > sinkhorn"] == 1
    assert "domain aligner / probes" in found["ratios"]
    assert str(made) not in output.read_text()
    output = made / "inputs.json"
    few = ("--seeds", 0, 1, "--pairs", 2, "--sinkhorn-pairs", 1, "--sinkhorn-steps", 2, "--samples", 64)
    sets = ("--sets", "mnist-mlp", "--sinkhorn", "mnist-mlp")
    call("domain_inputs", "--folder", made, "--aligners", made / "domains", *few, *sets, "--output", output)
    found = json.loads(output.read_text())["mnist-mlp"]
    assert set(found["barriers"]) == {"512", "1024"} and set(found["barriers"]["512"]) == {"seed 0", "seed 1"}
    assert {len(values) for values in found["sinkhorn"]["barriers"].values()} == {1}


def test_blurred_stand_ins_are_measured_beside_plain_ones(made):
    output = made / "blur.json"
    few = ("--only", "mnist-mlp", "--pairs", 2, "--samples", 64)
    call("blur", "--folder", made, *few, "--output", output)
    found = json.loads(output.read_text())["mnist-mlp"]
    assert found["ratio"][0] == pytest.approx(
        found["barrier"]["stand-ins"] / found["barrier"]["stand-ins, not blurred"]
    )
