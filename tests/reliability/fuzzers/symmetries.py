"""Random small networks with every symmetry: folded, copied, told from others, merged, and taken from files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, SymmetryGraph
from alignkit.checkpoints import write_weights
from alignkit.graph.rewrites import untied_heads
from alignkit.rewriting import module_with
from fuzzers.engine import Case, Dice, expect
from helpers.planted import copied
from helpers.random_networks import draw_weights, random_network

FUNCTION, WEIGHTS = 1e-7, 1e-6
"""Largest change of outputs, relative to the largest of them, and of weights to the largest weight, in float64."""
State = Mapping[str, Tensor]


def make(dice: Dice, folder: Path) -> Case:
    network, x, y = random_network(dice)
    seed, is_proved, is_on_disk = dice.randrange(2**20), dice.chance(0.3), dice.chance(0.2)
    other = copy.deepcopy(network)
    draw_weights(other, dice)

    def run() -> None:
        graph = alignkit.trace(network, x, symmetries="all")
        expect(SymmetryGraph.from_json(graph.to_json()) == graph, "another graph comes out of its JSON")
        checked = Checked(graph, network, y)
        folded = checked.fold(state_of(network))
        checked.check_folded(folded, seed, is_proved)
        planted, element = copied(graph, {name: folded[name] for name in graph.tensors}, seed)
        planted = checked.under_all_names(planted)
        checked.expect_same_function(planted, "a copy")
        checked.check_copy(planted, element)
        measured = alignkit.distance(graph, state_of(network), state_of(other))
        expect(not measured.same, f"an unrelated network is {measured.verdict}")
        if is_on_disk:
            checked.check_on_disk({"a": state_of(network), "b": planted, "c": state_of(other)}, folder)

    files = tuple(f"{name}.safetensors" for name in "abc") if is_on_disk else ()
    return Case(f"{network}", run, kept=(network, other, x, y), outputs=files)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class Checked:
    """A network whose copies and folded forms are held against it, on inputs."""

    graph: SymmetryGraph
    network: nn.Module
    inputs: Tensor

    def fold(self, weights: State) -> dict[str, Tensor]:
        folded = alignkit.fold(weights, self.graph).network
        return self.under_all_names({name: folded[name] for name in self.graph.tensors})

    def under_all_names(self, weights: State) -> dict[str, Tensor]:
        return {name: weights[first] for name, first in self.graph.first_names.items()}

    def expect_same_function(self, weights: State, what: str) -> None:
        other = module_with(self.network, weights, untied_heads(self.graph.folds))
        with torch.no_grad():
            expected, found = self.network(self.inputs), other(self.inputs)
        apart = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
        expect(apart <= FUNCTION, f"{what}: outputs moved by {apart:.2g} of the largest")

    def check_folded(self, folded: State, seed: int, is_proved: bool) -> None:
        """Folding keeps the function, folding again changes nothing, and all elements of the group keep it."""
        self.expect_same_function(folded, "the folded network")
        expect_equal(folded, self.fold(folded), "folded twice")
        moved = alignkit.Alignment.random(self.graph, seed).apply(folded)
        self.expect_same_function(moved, "a random element")
        if is_proved:
            self.graph.verify(module_with(self.network, folded, untied_heads(self.graph.folds)), self.inputs)

    def check_copy(self, copy: State, element: Alignment) -> None:
        """A copy is found to be the same, and the average with it computes the same."""
        measured = alignkit.distance(self.graph, state_of(self.network), copy)
        if not measured.same:
            truly = alignkit.distance(self.graph, state_of(self.network), copy, init=element.inverse())
            how = f"a local optimum of {measured.after:.2g}" if truly.same else "from the true element, too"
            expect(False, f"a copy is {measured.verdict}; {how}")
        merged = alignkit.merge(self.graph, self.fold(state_of(self.network)), self.fold(copy)).network
        assert isinstance(merged, Mapping)
        self.expect_same_function(merged, "the average with a copy")

    def check_on_disk(self, networks: Mapping[str, State], folder: Path) -> None:
        """Networks that stay on disk are folded, compared and merged to what they are in memory."""
        stored, folded = {}, {}
        for name, weights in networks.items():
            write_weights(folder / f"{name}.safetensors", dict(weights))
            folded[name] = self.fold(weights)
            stored[name] = alignkit.fold(folder / f"{name}.safetensors", self.graph, memory="2MB").network
        for name in "bc":
            expected = alignkit.distance(self.graph.bind(folded["a"], folded[name]))
            found = alignkit.distance(self.graph.bind(stored["a"], stored[name], memory="2MB"))
            close = abs(expected.after - found.after) <= 1e-6 * max(expected.before, 1e-9)
            expect(close, f"{name} on disk is {found.after:.6g} away, in memory {expected.after:.6g}")
            expect(expected.same == found.same, f"{name} is {found.verdict} on disk, {expected.verdict} in memory")
            merged = alignkit.merge(self.graph, stored["a"], stored[name], memory="2MB").network
            wanted = alignkit.merge(self.graph, folded["a"], folded[name]).network
            assert isinstance(wanted, Mapping) and isinstance(merged, Mapping)
            expect_equal({n: wanted[n] for n in self.graph.tensors}, merged, f"merged with {name} on disk")


def expect_equal(left: State, right: State, what: str) -> None:
    size = max(float(tensor.abs().max()) for tensor in left.values() if tensor.numel())
    apart = {name: float((left[name] - right[name]).abs().max()) for name in left if left[name].numel()}
    worst = max(apart, key=apart.__getitem__)
    expect(apart[worst] <= WEIGHTS * size, f"{what}: {worst} differs by {apart[worst]:.2g}")
