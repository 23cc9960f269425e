"""Fine-tunes merged with all symmetries are folded and balanced as their base is: task vectors are what was tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import alignkit
from alignkit import Alignment, fold, write_weights
from alignkit.errors import FoldError
from alignkit.graph.stored import StoredNetwork
from helpers.fine_tunes import copied, tuned_of
from helpers.folding_nets import NETS, Net

METHODS = ("task_arithmetic", "ties", "dare")
every_net = pytest.mark.parametrize("name", NETS)
every_method = pytest.mark.parametrize("method", METHODS)


def network_of(folded: Any) -> nn.Module:
    assert isinstance(folded.network, nn.Module)
    return folded.network


def equals(net: Net) -> dict[str, nn.Module]:
    """Return what equals a network, as it may be found in a file."""
    folded = network_of(fold(net.model, net.graph))
    return {
        "itself": net.model,
        "folded": network_of(fold(net.model, net.graph, balance=False)),
        "balanced": folded,
        "in another order": Alignment.random(net.graph, 2).apply(folded),
        "with scales and matrices of its own": copied(net, net.model, 3),
    }


def apart(left: nn.Module, right: nn.Module) -> float:
    """Return the largest difference of two networks, relative to the largest weight."""
    a, b = (torch.cat([t.double().flatten() for t in model.state_dict().values()]) for model in (left, right))
    return float((a - b).abs().max() / b.abs().max())


@every_net
@every_method
def test_what_equals_the_base_changes_nothing(name: str, method: str) -> None:
    net = NETS[name]()
    base = fold(net.model, net.graph)
    twins = equals(net)
    for label, twin in twins.items():
        merged = alignkit.merge(net.graph, base, twin, method=method, weights=[1.0], density=1.0)
        assert apart(merged.network, base.network) < 1e-8, label
    whole = alignkit.merge(net.graph, base, *twins.values(), method=method, density=1.0)
    assert apart(whole.network, base.network) < 1e-8


@every_net
@every_method
def test_fine_tunes_that_are_aligned_are_merged_as_they_stand(name: str, method: str) -> None:
    net = NETS[name]()
    base = fold(net.model, net.graph)
    tuned = [fold(tuned_of(net.model, size), net.graph, like=base) for size in (0.05, 0.1)]
    solutions = [alignkit.solve(net.graph, base.network, one.network) for one in tuned]
    aligned = [s.apply(one.network) for s, one in zip(solutions, tuned, strict=True)]
    expected = alignkit.average([base.network, *aligned], method=method, density=1.0)
    still = alignkit.merge(net.graph, base.network, *aligned, method=method, density=1.0, solver="identity")
    assert apart(still.network, expected) == 0
    # In a file they are balanced already, and are left so.
    again = [fold(one, net.graph, like=fold(net.model, net.graph)).network for one in aligned]
    assert all(apart(one, two) < 1e-12 for one, two in zip(again, aligned, strict=True))
    given = alignkit.merge(net.graph, base, *tuned, method=method, density=1.0, solver="identity")
    plain = alignkit.average([base.network, *(one.network for one in tuned)], method=method, density=1.0)
    assert apart(given.network, plain) == 0


@every_net
def test_a_whole_task_vector_is_the_fine_tune(name: str) -> None:
    net = NETS[name]()
    tuned = tuned_of(net.model)
    merged = alignkit.merge(
        net.graph, fold(net.model, net.graph), tuned, method="task_arithmetic", weights=[1.0], solver="identity"
    )
    with torch.no_grad():
        torch.testing.assert_close(merged.network(*net.inputs), tuned(*net.inputs), rtol=1e-6, atol=1e-9)


def test_a_fine_tune_that_was_balanced_by_itself_is_refused() -> None:
    net = NETS["llama"]()
    base, tuned = fold(net.model, net.graph), fold(tuned_of(net.model), net.graph)
    for method in METHODS:
        with pytest.raises(FoldError, match="give it as it was trained"):
            alignkit.merge(net.graph, base, tuned, method=method)
    with pytest.raises(FoldError, match="give it as it was trained"):
        alignkit.transport(net.graph, base, base, tuned=tuned)
    assert apart(alignkit.merge(net.graph, base, tuned).network, base.network) > 0  # a plain average has no base


@every_net
@every_method
def test_on_disk_it_is_the_same_as_in_memory(name: str, method: str, tmp_path: Path) -> None:
    net = NETS[name]()
    models = {"base": net.model, "one": tuned_of(net.model, 0.05), "two": tuned_of(net.model, 0.1)}
    states = {key: {net.graph.first_names[n]: t for n, t in m.state_dict().items()} for key, m in models.items()}
    paths = {key: tmp_path / f"{key}.safetensors" for key in states}
    for key, state in states.items():
        write_weights(paths[key], state)
    whole = alignkit.merge(net.graph, fold(states["base"], net.graph), states["one"], states["two"], method=method)
    base = fold(paths["base"], net.graph, memory="5MB")
    stored = alignkit.merge(net.graph, base, paths["one"], paths["two"], method=method, memory="5MB")
    assert isinstance(stored.network, StoredNetwork) and stored.arithmetic == whole.arithmetic
    exact = not any(map(net.graph.rotates, net.graph.groups))
    for key, tensor in stored.network.items():
        assert torch.equal(tensor, whole.network[key]) if exact else torch.allclose(tensor, whole.network[key])
