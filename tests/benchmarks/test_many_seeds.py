"""Many networks in one: copies in other bases become the network that they are of, and permutations cannot do that."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import alignkit
from alignkit import Alignment

pytestmark = [pytest.mark.models("transformers"), pytest.mark.slow]
INPUTS = {
    "llama": lambda: {"input_ids": torch.randint(60, (2, 8), generator=torch.Generator().manual_seed(0))},
    "vit": lambda: {"pixel_values": torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))},
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("bench_many_seeds")


@pytest.mark.parametrize("kind", INPUTS)
def test_copies_in_other_bases_become_one_network_again(bench, kind):
    model, inputs = bench.new_model(kind, 16, 1, seed=0), INPUTS[kind]()
    graph, whole = (alignkit.trace(model, symmetries=kinds, **inputs) for kinds in ("permutation", "all"))
    folded = alignkit.fold(model, whole).network
    copies = [Alignment.random(whole, seed).apply(folded) for seed in range(5)]

    def loss(network):
        with torch.no_grad():
            return float((network(**inputs).logits - model(**inputs).logits).norm() / model(**inputs).logits.norm())

    found = {(row["networks"], row["row"]): row for row in bench.rows(copies, [2, 4], loss, (graph, whole))}
    assert {count: found[count, "plain"]["averages"] for count in (2, 4)} == {2: 2, 4: 1}
    for count in (2, 4):
        assert found[count, "all symmetries"]["high"] < 1e-4
        assert found[count, "permutations"]["low"] > 0.05
        assert found[count, "plain"]["low"] > 0.05


def test_results_of_one_size_replace_those_of_the_same_size_alone(bench, tmp_path):
    file = tmp_path / "out.json"
    for kind, width, value in (("vit", 8, 1), ("vit", 16, 2), ("gpt2", 8, 3), ("vit", 8, 4)):
        bench.keep(file, {"kind": kind, "width": width, "layers": 1, "value": value})
    values = {(row["kind"], row["width"]): row["value"] for row in json.loads(file.read_text())}
    assert values == {("vit", 8): 4, ("vit", 16): 2, ("gpt2", 8): 3}
