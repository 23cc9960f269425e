"""Fine-tunes carried between networks on disk: what comes out is what comes out in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import alignkit
from alignkit import Alignment, SymmetryGraph, fold, write_weights
from alignkit.errors import AlignkitError, MergeError
from alignkit.graph.stored import StoredNetwork
from alignkit.testing import ARCHITECTURES, KIND_ARCHITECTURES
from helpers.fine_tunes import copied, tuned_of
from helpers.folding_nets import NETS

ALL: Mapping[str, Any] = {**ARCHITECTURES, **KIND_ARCHITECTURES}


def written(folder: Path, **networks: Mapping[str, Tensor]) -> list[Path]:
    for name, weights in networks.items():
        write_weights(folder / f"{name}.safetensors", weights)
    return [folder / f"{name}.safetensors" for name in networks]


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(t.double(), left[n].double(), rtol=tolerance, atol=tolerance) for n, t in right.items())


@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize("name", ALL)
def test_every_kind_of_network(name: str, scale: float, tmp_path: Path) -> None:
    architecture = ALL[name]()
    graph, model = architecture.graph(), architecture.model
    a = {graph.first_names[n]: t for n, t in model.state_dict().items()}
    b = Alignment.random(graph, 3).apply(a)
    tuned = {n: t + 0.1 * torch.randn(t.shape).to(t) if t.is_floating_point() else t for n, t in a.items()}
    paths = written(tmp_path, a=a, b=b, tuned=tuned)
    whole = alignkit.transport(graph, a, b, tuned=tuned, scale=scale)
    stored = alignkit.transport(graph, paths[0], paths[1], tuned=paths[2], scale=scale, memory="20MB")
    assert isinstance(stored.network, StoredNetwork)
    assert same(stored.network, whole.network, 1e-6 if any(map(graph.rotates, graph.groups)) else 0.0)
    assert stored.length == pytest.approx(whole.length)
    assert stored.whole_numbers_left == whole.whole_numbers_left and stored.statistics == whole.statistics


@pytest.mark.parametrize("name", NETS)
def test_networks_that_are_folded_on_the_way(name: str, tmp_path: Path) -> None:
    net = NETS[name]()
    first = net.graph.first_names
    models = {"a": net.model, "b": copied(net, net.model, 3), "tuned": tuned_of(net.model)}
    states = {k: {first[n]: t for n, t in m.state_dict().items()} for k, m in models.items()}
    paths = written(tmp_path, **states)
    whole = [fold(states[side], net.graph) for side in "ab"]
    stored = [fold(path, net.graph, memory="5MB") for path in paths[:2]]
    expected = alignkit.transport(net.graph, *whole, tuned=states["tuned"])
    carried = alignkit.transport(net.graph, *stored, tuned=paths[2])
    assert isinstance(carried.network, StoredNetwork)
    assert same(carried.network, expected.network, 1e-9) and carried.length == pytest.approx(expected.length)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    graph = SymmetryGraph.from_spec({"w": "h .", "n": "h"}, {"w": (5, 4), "n": (5,)})
    given = {"w": torch.randn(5, 4), "n": torch.arange(5)}
    paths = written(
        tmp_path, a=given, b=given, tuned={**given, "n": torch.arange(5) + 1}, other={"w": torch.ones(5, 4)}
    )
    carried = alignkit.transport(graph, *paths[:2], tuned=paths[2], memory="1MB")
    assert carried.whole_numbers_left == ("n",) and torch.equal(carried.network["n"], given["n"])
    with pytest.raises(AlignkitError, match="'n' is missing in tuned"):
        alignkit.transport(graph, *paths[:2], tuned=paths[3], memory="1MB")
    ones = torch.ones(1, 1)
    task = alignkit.Task(torch.nn.Linear(1, 1), [(ones, ones)], torch.nn.functional.mse_loss)
    with pytest.raises(MergeError, match="without a task"):
        alignkit.transport(graph, *paths[:2], tuned=paths[2], memory="1MB", task=task)
