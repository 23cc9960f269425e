"""Networks of sines in all jobs: copies that differ by half periods are the same, and merge into the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, SymmetryGraph
from alignkit.checkpoints import write_weights
from alignkit.errors import FoldError
from alignkit.graph.phases import half_periods_of, move_phases, phases_in
from alignkit.graph.stored import Budget, StoredNetwork
from alignkit.jobs.near_phases import with_near_phases
from alignkit.rewriting import NearNetwork, module_with

WIDTHS = (2, 24, 20)


class Sines(nn.Module):
    """A layer of a SIREN: ``sin(w0 (W x + b))``, or ``sin(W (w0 x) + b)``."""

    def __init__(self, inputs: int, outputs: int, w0: float, *, inside: bool, first: bool = False) -> None:
        super().__init__()
        self.linear, self.w0, self.inside = nn.Linear(inputs, outputs), w0, inside
        bound = 1 / inputs if first else (6 / inputs) ** 0.5 / w0
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.linear(self.w0 * x) if self.inside else self.w0 * self.linear(x))


def siren(seed: int = 0, w0: float = 30.0, *, inside: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    layers = [Sines(*WIDTHS[:2], w0, inside=inside, first=True), Sines(*WIDTHS[1:], w0, inside=inside)]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], 3))


X = torch.rand(64, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
BUILDS: dict[str, Callable[..., nn.Module]] = {
    "outside": siren,
    "inside": lambda seed=0: siren(seed, inside=True),
    "slow": lambda seed=0: siren(seed, 1.0),
}


def copied(graph: SymmetryGraph, model: nn.Module, seed: int, noise: float = 0.0) -> nn.Module:
    """Return a copy under a random element with random half periods, in float64 until it is done."""
    generator = torch.Generator().manual_seed(seed)
    wide = {name: tensor.double() for name, tensor in model.state_dict().items()}
    wide = {n: t + noise * t.std() * torch.randn(t.shape, generator=generator).double() for n, t in wide.items()}
    move_phases(graph, phases_in(graph), wide, generator)
    moved = Alignment.random(graph, seed).apply(wide)
    return module_with(model, {name: tensor.to(model.state_dict()[name].dtype) for name, tensor in moved.items()})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("build", BUILDS)
def test_copies_are_the_same_up_to_phases(build: str, seed: int) -> None:
    model = BUILDS[build]().double()
    graph = alignkit.trace(model, X.double(), symmetries="all")
    measured = alignkit.distance(graph, model, copied(graph, model, seed))
    assert measured.same and measured.undone == ("permutation", "signs", "phases")
    assert "the same up to permutation, signs and phases" in measured.explain()
    unmoved = alignkit.distance(graph, model, Alignment.random(graph, seed).apply(model))
    assert unmoved.same and "phases" not in unmoved.undone
    assert not alignkit.distance(graph, model, BUILDS[build](seed + 1).double()).same


@pytest.mark.parametrize("build", BUILDS)
def test_copies_merge_into_the_same_function(build: str) -> None:
    model = BUILDS[build]()
    graph = alignkit.trace(model, X, symmetries="all")
    folded = [alignkit.fold(network, graph).network for network in (model, copied(graph, model, 2))]
    merged = alignkit.merge(graph, *folded)
    torch.testing.assert_close(merged.network(X), model(X), rtol=0, atol=1e-4)
    many = alignkit.merge(graph, *folded, alignkit.fold(copied(graph, model, 3), graph).network)
    torch.testing.assert_close(many.network(X), model(X), rtol=0, atol=1e-4)


def edge_copies(noise: float) -> tuple[SymmetryGraph, nn.Module, nn.Module]:
    """Return a network of which some biases are half a half period from 0, and a copy that noise takes beyond."""
    model = siren().double()
    graph = alignkit.trace(model, X.double(), symmetries="all")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, phase = phases_in(graph)
    half = half_periods_of(graph, phase, weights)[0, 0] / 2
    weights[phase.bias.tensor][::4] = half * (1 - 1e-6)
    edge = module_with(model, weights)
    return graph, edge, copied(graph, edge, 5, noise)


def test_biases_at_the_edge_are_brought_near_once_the_order_is_known() -> None:
    graph, edge, copy = edge_copies(1e-3)
    folded = [alignkit.fold(network, graph).network for network in (edge, copy)]
    solution = alignkit.solve(graph, *folded)
    least = alignkit.distance(graph, edge, copy).after
    assert solution.objective_after > 1000 * least  # some biases went to the other side
    near = with_near_phases(graph, folded[0], solution.apply(folded[1]))
    torch.testing.assert_close(near(X.double()), folded[1](X.double()), rtol=0, atol=1e-9)
    merged = alignkit.merge(graph, *folded).network
    torch.testing.assert_close(merged(X.double()), edge(X.double()), rtol=0, atol=0.02)


def test_networks_on_disk_are_brought_as_near(tmp_path: Path) -> None:
    graph, edge, copy = edge_copies(1e-3)
    folded = [alignkit.fold(network.state_dict(), graph).network for network in (edge, copy)]
    for name, network in zip("ab", folded, strict=True):
        write_weights(tmp_path / f"{name}.safetensors", network)
    pair = graph.bind(tmp_path / "a.safetensors", tmp_path / "b.safetensors", memory="2MB")
    assert alignkit.distance(pair).after == pytest.approx(alignkit.distance(graph.bind(*folded)).after)
    merged, expected = alignkit.merge(pair).network, alignkit.merge(graph, *folded).network
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-12)
    assert isinstance(pair.a, StoredNetwork) and isinstance(pair.b, StoredNetwork)
    with pytest.raises(FoldError, match=r"Give at least 0\.\d+ MB"):
        NearNetwork(pair.b.within(Budget(10_000)), pair.a)


def test_comparisons_look_at_the_line_between_near_phases() -> None:
    graph, edge, copy = edge_copies(1e-3)
    task = alignkit.Task(edge, (X.double(), edge(X.double()).detach()), "mse")
    folded = [alignkit.fold(network, graph).network for network in (edge, copy)]
    table = alignkit.compare(graph, *folded, solvers=["weight_matching"], task=task)
    barriers = {row.solver: row.line.barrier for row in table.rows if row.line is not None}
    assert barriers["weight_matching"] < 1e-3 * barriers["identity"]


def test_a_fine_tune_is_folded_as_its_base_was() -> None:
    model = siren().double()
    graph = alignkit.trace(model, X.double(), symmetries="all")
    generator = torch.Generator().manual_seed(0)
    step = {n: 1e-3 * torch.randn(t.shape, generator=generator).double() for n, t in model.state_dict().items()}
    tuned = module_with(model, {name: tensor + step[name] for name, tensor in model.state_dict().items()})
    base = alignkit.fold(model, graph)
    follower = alignkit.fold(tuned, graph, like=base).network
    for name, tensor in base.network.state_dict().items():
        change = (follower.state_dict()[name] - tensor).abs()
        torch.testing.assert_close(change, step[name].abs(), rtol=0, atol=1e-9)
    again = alignkit.fold(follower, graph, like=base).network
    torch.testing.assert_close(again.state_dict(), follower.state_dict(), rtol=0, atol=1e-12)


def test_networks_on_disk_are_folded_to_the_same_phases(tmp_path: Path) -> None:
    model = siren()
    graph = alignkit.trace(model, X, symmetries="all")
    write_weights(tmp_path / "a.safetensors", model.state_dict())
    whole = alignkit.fold(model.state_dict(), graph)
    stored = alignkit.fold(tmp_path / "a.safetensors", graph, memory="2MB")
    assert all(torch.equal(stored.network[name], tensor) for name, tensor in whole.network.items())
    assert "biases moved by half periods" in whole.explain() and stored.facts() == whole.facts()


def test_what_reads_units_is_carried_with_their_signs() -> None:
    """A probe of the second layer's units, moved to a copy whose biases are half periods away."""
    model = siren().double()
    graph = alignkit.trace(model, X.double(), symmetries="all")
    other = copied(graph, model, 7)
    probe = {"probe": torch.randn(4, WIDTHS[-1]).double()}
    carried = alignkit.transport_tensors(graph, model, other, tensors=probe, layouts={"probe": ". @2.weight:1"})
    before, after = (network[:2](X.double()) for network in (model, other))
    torch.testing.assert_close(after @ carried.tensors["probe"].T, before @ probe["probe"].T, rtol=0, atol=1e-9)
    with pytest.raises(alignkit.AlignkitError, match="in two ways"):
        alignkit.transport_tensors(graph, model, other, tensors=probe, layouts={"probe": ". -1.linear"})
