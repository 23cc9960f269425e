"""Similarity of units before and after alignment, and its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, SymmetryGraph
from alignkit.errors import AlignmentError, TaskError
from alignkit.matching.unit_similarity import similarity_matrix, unit_similarity
from alignkit.plotting import plot_alignment

SPEC = {
    "0.weight": "h .",
    "0.bias": "h",
    "1.qkv": "(heads qk[heads])+(heads qk[heads])+(heads v[heads]) h",
    "1.out": "h (heads v[heads])",
    "2.weight": ". h",
}
SHAPES = {"0.weight": (12, 3), "0.bias": (12,), "1.qkv": (36, 12), "1.out": (12, 12), "2.weight": (2, 12)}
SIZES = {"heads": 3}


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture
def graph() -> SymmetryGraph:
    return SymmetryGraph.from_spec(SPEC, SHAPES, sizes=SIZES)


def test_units_of_a_permuted_copy_are_alike_after_alignment_only(graph: SymmetryGraph) -> None:
    a = weights(0)
    shuffle = Alignment.random(graph, 2)
    similarity = unit_similarity(graph, a, shuffle.apply(a), shuffle.inverse())
    assert similarity.keys() == graph.groups.keys()
    for name, value in similarity.items():
        assert value.after.shape == (graph.instances(name), graph.groups[name].size)
        assert torch.allclose(value.after, torch.ones_like(value.after), atol=1e-6)
        assert value.before.mean() < 0.7


def test_the_diagonal_of_a_matrix_is_the_similarity_of_the_units(graph: SymmetryGraph) -> None:
    a, b = weights(0), weights(1)
    alignment = alignkit.solve(graph, a, b).alignment
    similarity = unit_similarity(graph, a, b, alignment)
    for name in graph.groups:
        matrix = similarity_matrix(graph, a, b, alignment, name)
        assert torch.allclose(matrix.diagonal(dim1=-2, dim2=-1), similarity[name].after)
        assert matrix.abs().max() <= 1 + 1e-9


def test_units_of_zeros_have_no_similarity(graph: SymmetryGraph) -> None:
    a = {name: torch.zeros_like(tensor) for name, tensor in weights(0).items()}
    similarity = unit_similarity(graph, a, weights(1), Alignment.identity(graph))
    assert all(not bool(value.after.any()) for value in similarity.values())


def test_pictures_of_all_groups_and_of_some(graph: SymmetryGraph, tmp_path: Path) -> None:
    solution = alignkit.solve(graph, weights(0), weights(1))
    pair = graph.bind(weights(0), weights(1))
    strips = solution.plot(pair, tmp_path / "strips.png")
    labels = [text.get_text() for text in strips.axes[0].get_yticklabels()]
    assert labels == list(graph.groups)
    matrices = solution.plot(pair, tmp_path / "matrices.svg", groups=["h", "v"])
    assert [axes.get_title() for axes in matrices.axes[:2]] == ["h", "v\n1 of 3"]
    assert (tmp_path / "strips.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "matrices.svg").read_bytes()


def test_matrices_of_wide_groups_are_drawn_in_tiles() -> None:
    model = nn.Sequential(nn.Linear(3, 500), nn.ReLU(), nn.Linear(500, 2))
    graph = alignkit.builders.mlp(model)
    pair = graph.bind(model, Alignment.random(graph, 1).apply(model))
    drawn = plot_alignment(pair, Alignment.identity(graph), groups=list(graph.groups))
    assert max(drawn.axes[0].images[0].get_array().shape) < 500


def test_what_cannot_be_drawn_is_refused(graph: SymmetryGraph) -> None:
    pair = graph.bind(weights(0), weights(1))
    with pytest.raises(TaskError, match="no group 'g'"):
        plot_alignment(pair, Alignment.identity(graph), groups=["g"])
    fixed = SymmetryGraph.from_spec({"w": ". ."}, {"w": (2, 2)})
    with pytest.raises(TaskError, match="has no group"):
        plot_alignment(fixed.bind({"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2)}), Alignment.identity(fixed))
    with pytest.raises(AlignmentError, match="another graph"):
        plot_alignment(pair, Alignment.identity(fixed))
