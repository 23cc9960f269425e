"""Stacks: places that stay, each of which owns groups of its own, as the experts of a layer do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import AlignkitError, Alignment, SoftAlignment, SymmetryGraph
from helpers.graph_strategies import all_alignments, distinct_weights

SHAPES = {"up": (3, 4, 5), "down": (3, 2, 4), "bias": (3, 4), "gates": (3, 8, 5), "router": (3, 5), "probe": (1, 4)}
SPEC = {
    "up": "=experts units[experts] model",
    "down": "=experts . units[experts]",
    "bias": "=experts units[experts]",
    "gates": "=experts units[experts]+units[experts] model",
    "router": ". model",
    "probe": ". units.1",  # one of the groups, named like any other
}
EXPERTS = SymmetryGraph.from_spec(SPEC, SHAPES)
HEADS = SymmetryGraph.from_spec(
    {"q": "=e (heads[e]:2 d[heads]) .", "k": "=e . (heads[e] d[heads])", "scale": "(=l:2 =e2[l]) u[e2]"},
    {"q": (2, 4, 2), "k": (2, 2, 4), "scale": (4, 2)},
)


class Mixture(nn.Module):
    """Three experts of 4 units in two tensors, each with its share of the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(3, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(x @ up.mT).relu() @ down.mT for up, down in zip(self.up, self.down, strict=True)], -1)


def test_each_place_has_a_group_of_its_own() -> None:
    sizes = {name: group.size for name, group in EXPERTS.groups.items()}
    assert sizes == {"units.0": 4, "units.1": 4, "units.2": 4, "model": 5}
    assert HEADS.groups["d.1"].parent == "heads.1"
    assert [name for name in HEADS.groups if name.startswith("u.")] == ["u.0.0", "u.0.1", "u.1.0", "u.1.1"]
    assert EXPERTS.order == 24**3 * 120
    assert HEADS.order == (2 * 2**2) ** 2 * 2**4


def test_units_move_in_their_place_and_places_stay() -> None:
    weights = distinct_weights(EXPERTS)
    alignment = Alignment.random(EXPERTS, 1)
    moved = alignment.apply(weights)
    model = alignment.elements["model"]
    for place in range(3):
        units = alignment.elements[f"units.{place}"]
        assert torch.equal(moved["up"][place], weights["up"][place][units][:, model])
        assert torch.equal(moved["down"][place], weights["down"][place][:, units])
        assert torch.equal(moved["bias"][place], weights["bias"][place][units])
        gates = weights["gates"][place].unflatten(0, (2, 4))[:, units].flatten(0, 1)
        assert torch.equal(moved["gates"][place], gates[:, model])
    assert torch.equal(moved["probe"], weights["probe"][:, alignment.elements["units.1"]])
    assert torch.equal(moved["router"], weights["router"][:, model])


@pytest.mark.parametrize("graph", [EXPERTS, HEADS], ids=["experts", "heads"])
def test_spec_json_and_files_are_read_back(graph: SymmetryGraph, tmp_path: Path) -> None:
    shapes = {name: node.shape for name, node in graph.tensors.items()}
    assert SymmetryGraph.from_spec(graph.spec(), shapes) == graph
    assert SymmetryGraph.from_json(graph.to_json()) == graph
    alignment = Alignment.random(graph, 2)
    alignment.save(tmp_path / "alignment.safetensors")
    assert Alignment.load(tmp_path / "alignment.safetensors", graph) == alignment


def test_all_elements_of_a_small_stack_are_different() -> None:
    graph = SymmetryGraph.from_spec({"w": "=e u[e] v"}, {"w": (2, 3, 2)})
    weights = distinct_weights(graph)
    results = {tuple(a.apply(weights)["w"].ravel().tolist()) for a in all_alignments(graph)}
    assert len(results) == graph.order == 6 * 6 * 2


@pytest.mark.parametrize("solver", ["weight_matching", "frank_wolfe", "sinkhorn"])
def test_solvers_find_the_order_of_each_place(solver: str) -> None:
    weights = {name: torch.randn(shape, generator=torch.Generator().manual_seed(3)) for name, shape in SHAPES.items()}
    hidden = Alignment.random(EXPERTS, 4)
    solution = alignkit.solve(EXPERTS, weights, hidden.inverse().apply(weights), solver=solver)
    assert solution.alignment == hidden
    assert solution.objective_after < 1e-9


def test_a_soft_alignment_rounds_to_the_alignment() -> None:
    alignment = Alignment.random(EXPERTS, 5)
    assert SoftAlignment.from_alignment(alignment).round() == alignment


def test_a_written_stack_is_proved_on_a_model() -> None:
    model = Mixture()
    graph = SymmetryGraph.from_spec({"up": "=e u[e] .", "down": "=e . u[e]"}, model)
    assert graph.verify(model, torch.randn(6, 5)).error < 1e-12
    joint = SymmetryGraph.from_spec({"up": "=e u[e] .", "down": ". . u.0"}, model)
    with pytest.raises(AlignkitError):
        joint.verify(model, torch.randn(6, 5))


def test_report_and_pictures_show_the_groups_of_a_stack_as_one() -> None:
    (line,) = [line for line in EXPERTS.report().splitlines() if "units.0" in line]
    assert "units.0 to units.2" in line
    assert "3 x 4 units" in line
    assert len(EXPERTS.draw().axes) == 1
    assert EXPERTS.mermaid().count("axis 1| g") == 3 + 3 + 3 + 1 + 1


def test_layers_that_differ_in_their_stacks_alone_are_drawn_once() -> None:
    spec = {f"layers.{i}.up": f"=layers.{i}.experts units.{i}[layers.{i}.experts] ." for i in range(8)}
    graph = SymmetryGraph.from_spec(spec, dict.fromkeys(spec, (2, 3, 4)))
    texts = [text.get_text() for text in graph.draw().axes[0].texts]
    assert any("more like this" in text for text in texts)


@pytest.mark.parametrize(
    ("spec", "shapes", "words"),
    [
        ({"w": "=e u[e]", "v": "=e u[e]"}, {"w": (3, 4), "v": (2, 4)}, ("'v', axis 0", "'e'")),
        ({"w": "=e u[e]", "v": "e"}, {"w": (3, 4), "v": (3,)}, ("'e' is without a parent", "a stack without a parent")),
        ({"w": "=e u[e]", "v": "=f u[f]"}, {"w": (3, 4), "v": (3, 4)}, ("'u' is nested in 'f'", "nested in 'e'")),
        ({"w": "u[e] =e"}, {"w": (4, 3)}, ("without its parent 'e'",)),
        ({"w": "=4 u"}, {"w": (4, 3)}, ("may not be a number",)),
        ({"w": "= u"}, {"w": (4, 3)}, ("not part of the notation",)),
        ({"e": "=e u[e]"}, {"e": (4, 3)}, ("name of a stack",)),
        ({"w": "=e u[e]", "v": "u.0"}, {"w": (2, 3), "v": (4,)}, ("'u.0' has",)),
    ],
)
def test_what_does_not_fit_is_refused(
    spec: dict[str, str], shapes: dict[str, tuple[int, ...]], words: tuple[str, ...]
) -> None:
    with pytest.raises(AlignkitError) as error:
        SymmetryGraph.from_spec(spec, shapes)
    for word in words:
        assert word in str(error.value)
