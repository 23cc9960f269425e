"""Networks folded on disk: every number is that of the fold in memory, whatever is read at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit import SymmetryGraph, fold, write_weights
from alignkit.checkpoints import open_checkpoint
from alignkit.errors import BindError, FoldError, UsageError
from alignkit.graph.rewrites import AxisOf, Balance, Untie
from alignkit.graph.stored import StoredNetwork
from alignkit.rewriting.components import Component, components_of
from alignkit.rewriting.stored import FoldedNetwork
from helpers.folding_nets import NETS, WORDS, Net

every_net = pytest.mark.parametrize("name", NETS)


def saved(net: Net, path: Path, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Write the weights of a net, and return them by first names."""
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in net.model.state_dict().items()}
    write_weights(path, state)
    return {net.graph.first_names[name]: tensor for name, tensor in state.items()}


def same(network: StoredNetwork, tensors: dict[str, Tensor]) -> bool:
    return all(torch.equal(network[name], tensors[name]) for name in network)


@every_net
@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("in_files", [False, True])
def test_it_is_the_fold_in_memory_bit_for_bit(
    name: str, balance: bool, dtype: torch.dtype, in_files: bool, tmp_path: Path
) -> None:
    net = NETS[name]()
    state = saved(net, tmp_path / "a.safetensors", dtype)
    whole = fold(state, net.graph, balance=balance)
    (tmp_path / "scratch").mkdir()
    scratch = tmp_path / "scratch" if in_files else None
    stored = fold(tmp_path / "a.safetensors", net.graph, balance=balance, memory="2MB", scratch=scratch)
    assert isinstance(stored.network, StoredNetwork) and same(stored.network, whole.network)
    assert stored.facts() == whole.facts() and stored.untied == whole.untied and stored.check is None
    for left, right in zip(stored.spaces, whole.spaces, strict=True):
        assert torch.equal(left.write, right.write) and torch.equal(left.read, right.read)
    for (left, old), (right, own) in zip(stored.taken, whole.taken, strict=True):
        assert left == right and all(torch.equal(a, b) for a, b in zip(old, own, strict=False))
    net.graph.bind(stored.network, stored.network)
    assert "Function check: not done, it holds the whole network." in stored.explain()


@pytest.mark.parametrize("name", ["gpt", "llama, tied", "gemma"])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_head_and_its_embedding_may_be_stored_once(name: str, kept: int, tmp_path: Path) -> None:
    net = NETS[name]()
    tie = next((fold.tensor, fold.source) for fold in net.graph.folds if isinstance(fold, Untie))
    state = saved(net, tmp_path / "a.safetensors")
    write_weights(tmp_path / "a.safetensors", {n: t for n, t in state.items() if n != tie[1 - kept]})
    stored = fold(tmp_path / "a.safetensors", net.graph, memory="2MB")
    assert same(stored.network, fold(state, net.graph).network)
    assert stored.untied == dict([tie])


@every_net
@given(data=st.data())
@settings(max_examples=15)
def test_rows_are_those_of_the_whole_tensor(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    net, path = NETS[name](), tmp_path_factory.mktemp("rows") / "a.safetensors"
    whole = fold(saved(net, path, torch.float32), net.graph).network
    scratch = tmp_path_factory.mktemp("scratch") if data.draw(st.booleans()) else None
    network = fold(path, net.graph, memory="2MB", scratch=scratch).network
    for _ in range(5):
        tensor = data.draw(st.sampled_from([n for n in sorted(network) if network.graph.tensors[n].shape]))
        count = network.graph.tensors[tensor].shape[0]
        rows = st.integers(0, count - 1)
        if data.draw(st.booleans()):
            low, high = sorted((data.draw(rows), data.draw(rows)))
            assert torch.equal(network.rows(tensor, slice(low, high + 1)), whole[tensor][low : high + 1])
        else:
            places = torch.tensor(data.draw(st.lists(rows, min_size=1, max_size=5)))
            assert torch.equal(network.rows(tensor, places), whole[tensor][places])


@pytest.fixture
def rewritten(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, ...]]:
    """Count how often each component is rewritten."""
    counts: Counter[tuple[str, ...]] = Counter()
    rewrite = FoldedNetwork._rewrite

    def counted(self: FoldedNetwork, component: Component) -> Any:
        counts[component.tensors] += 1
        return rewrite(self, component)

    monkeypatch.setattr(FoldedNetwork, "_rewrite", counted)
    return counts


@every_net
def test_with_a_folder_nothing_is_rewritten_twice(
    name: str, tmp_path: Path, rewritten: Counter[tuple[str, ...]]
) -> None:
    net = NETS[name]()
    saved(net, tmp_path / "a.safetensors")
    (tmp_path / "scratch").mkdir()
    network = fold(tmp_path / "a.safetensors", net.graph, memory="2MB", scratch=tmp_path / "scratch").network
    for _ in range(3):
        for tensor in network:
            network[tensor]
    assert set(rewritten.values()) <= {1}


@pytest.mark.parametrize("widths", [(40, 3, 4, 5), (6, 6), (3, 9, 2)])
def test_components_that_are_small_beside_the_largest_are_not_rewritten_twice(
    widths: tuple[int, ...], tmp_path: Path, rewritten: Counter[tuple[str, ...]]
) -> None:
    sizes = {f"{side}{at}": shape for at, n in enumerate(widths) for side, shape in (("in", (n, 3)), ("out", (2, n)))}
    spec = {name: f"h{name[2:]} ." if name.startswith("in") else f". h{name[3:]}" for name in sizes}
    balances = [
        Balance(f"h{at}", (AxisOf(f"in{at}", 0),), (AxisOf(f"out{at}", 1),), "scaled") for at in range(len(widths))
    ]
    graph = SymmetryGraph.from_spec(spec, sizes, balances=tuple(balances))
    write_weights(tmp_path / "a.safetensors", {name: torch.randn(size) for name, size in sizes.items()})
    network = fold(tmp_path / "a.safetensors", graph, memory="2MB").network
    rewritten.clear()  # it was looked at as a whole
    for _ in range(3):
        for tensor in network:
            network[tensor]
    assert list(rewritten.values()) == [1] * len(widths)


@every_net
def test_a_fine_tune_is_balanced_as_its_base(name: str, tmp_path: Path) -> None:
    base, tuned = NETS[name](), NETS[name](seed=1)
    states = [saved(net, tmp_path / f"{at}.safetensors") for at, net in enumerate((base, tuned))]
    like = fold(states[0], base.graph)
    whole = fold(states[1], base.graph, like=like).network
    stored_like = fold(tmp_path / "0.safetensors", base.graph, memory="2MB")
    assert same(fold(tmp_path / "1.safetensors", base.graph, like=stored_like, memory="2MB").network, whole)


@every_net
def test_tables_pass_by_rows_and_sides_that_are_not_linked_alone(name: str) -> None:
    graph = NETS[name]().graph
    parts = components_of(graph, graph.balances)
    assert sorted(tensor for part in parts for tensor in part.tensors) == sorted(graph.tensors)
    for part in parts:
        table = graph.tensors[part.tensors[0]].shape[:1] == (WORDS,)
        assert part.by_rows or not part.is_rewritten or not table
        sides = {word for tensor in part.tensors for word in ("query", "key", "value", "up", "down") if word in tensor}
        assert not {"query", "up"} <= sides and not {"value", "up"} <= sides


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    net = NETS["llama"]()
    state, path = saved(net, tmp_path / "a.safetensors"), tmp_path / "a.safetensors"
    with pytest.raises(FoldError, match=r"are folded together, in several copies of 64 bits. Give at least \d+ MB"):
        fold(path, net.graph, memory=10_000)
    with pytest.raises(FoldError, match="holds the whole network"):
        fold(path, net.graph, *net.inputs, memory="2MB")
    with pytest.raises(UsageError, match="not an amount of memory"):
        fold(path, net.graph, memory="much")
    with pytest.raises(BindError, match="the network is dict: give the path"):
        fold(state, net.graph, memory="2MB")
    with pytest.raises(FoldError, match="fold it in memory"):
        fold(path, net.graph, memory="2MB").unfold()
    with pytest.raises(BindError, match="fold both models first"):
        net.graph.bind(path, path, memory="2MB")
    for tensor in net.graph.tensors:
        broken = {n: t.clone() for n, t in state.items()}
        broken[tensor].view(-1)[0] = float("nan")
        write_weights(tmp_path / "b.safetensors", broken)
        with pytest.raises(FoldError, match=f"'{tensor}' holds NaN or infinity"):
            dict(fold(tmp_path / "b.safetensors", net.graph, memory="2MB").network)
    other = replace(fold(path, net.graph, memory="2MB"), graph=NETS["vit"]().graph)
    with pytest.raises(FoldError, match="another graph"):
        fold(path, net.graph, like=other, memory="2MB")
    assert open_checkpoint(path).keys() == state.keys()
