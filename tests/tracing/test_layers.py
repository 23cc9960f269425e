"""Every kind of layer: what a trace finds, and that it keeps the function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alignkit.graph.proof.perturb import perturbed
from alignkit.tracing import trace
from helpers.trace_checks import counts, proved
from helpers.trace_models import (
    Attention,
    CellLoop,
    CrossCovariance,
    Experts,
    FusedGroupedQueries,
    Gated,
    GroupedQueries,
    HeadsMeet,
    KeysWithoutBias,
    PositionalConvolution,
    Recurrent,
    RelativePositions,
    Rotary,
    StandardisedFilters,
    TakesFirst,
    Tied,
    UNet,
    WritesInPlace,
    WritesPartOfABuffer,
)

ROWS = torch.linspace(-1, 1, 30).reshape(1, 6, 5)
IMAGE = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
IDS = torch.tensor([[1, 4, 2, 9]])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1)
    )


def widening_depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 4, 1))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 4, 1))


def group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 4, 1))


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.PixelShuffle(2),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.PixelUnshuffle(2),
        nn.Conv2d(24, 2, 1),
    )


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 16), stack, nn.Linear(16, 3))


def weight_norm() -> nn.Module:
    wrap = nn.utils.parametrizations.weight_norm
    return nn.Sequential(wrap(nn.Linear(5, 8)), nn.ReLU(), wrap(nn.Linear(8, 3)))


def layer_and_prelu() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 2, 1))


CASES: list[tuple[str, Callable[[], nn.Module], torch.Tensor, tuple[int, int]]] = [
    ("mlp", mlp, ROWS, (2, 0)),
    ("cnn", cnn, IMAGE, (2, 0)),
    ("depthwise", depthwise, IMAGE, (1, 0)),
    ("widening_depthwise", widening_depthwise, IMAGE, (1, 1)),
    ("grouped", grouped, IMAGE, (1, 2)),
    ("group_norm", group_norm, IMAGE, (1, 1)),
    ("pixel_shuffle", pixel_shuffle, IMAGE, (2, 0)),
    ("unet", UNet, IMAGE, (5, 2)),
    ("standardised_filters", StandardisedFilters, IMAGE, (1, 2)),
    ("positional_convolution", PositionalConvolution, ROWS, (1, 1)),
    ("weight_norm", weight_norm, ROWS, (1, 0)),
    ("prelu", layer_and_prelu, IMAGE, (1, 0)),
    ("gated", Gated, ROWS, (1, 0)),
    ("attention", Attention, ROWS, (2, 2)),
    ("attention_by_hand", lambda: Attention(by_hand=True), ROWS, (2, 2)),
    ("attention_batch", Attention, ROWS.expand(3, 6, 5), (2, 2)),
    ("keys_without_bias", KeysWithoutBias, ROWS, (2, 2)),
    ("keys_with_a_saved_bias", lambda: KeysWithoutBias(saved=True), ROWS, (2, 2)),
    ("grouped_queries", GroupedQueries, ROWS, (2, 3)),
    ("grouped_queries_repeated", lambda: GroupedQueries(repeat=True), ROWS, (2, 3)),
    ("grouped_queries_fused", FusedGroupedQueries, ROWS, (2, 3)),
    ("cross_covariance", CrossCovariance, ROWS, (2, 2)),
    ("rotary", Rotary, ROWS, (2, 1)),
    ("relative_positions", RelativePositions, ROWS, (2, 2)),
    ("encoder", encoder, ROWS, (5, 4)),
    ("experts", Experts, ROWS, (2, 1)),
    ("tied", Tied, IDS, (1, 0)),
    ("rnn", lambda: Recurrent(nn.RNN, num_layers=2), ROWS, (2, 0)),
    ("lstm", lambda: Recurrent(nn.LSTM, num_layers=2), ROWS, (2, 0)),
    ("gru", lambda: Recurrent(nn.GRU, num_layers=2), ROWS, (2, 0)),
    ("lstm_both_ways", lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), ROWS, (4, 0)),
    ("in_place", WritesInPlace, ROWS, (1, 0)),
]


@pytest.mark.parametrize(("build", "x", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_layer_gives_the_groups_that_it_has(
    build: Callable[[], nn.Module], x: torch.Tensor, expected: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    graph = proved(build(), x)
    assert counts(graph) == expected
    assert graph.provenance.unknown_ops == ()
    assert graph.provenance.tensors == "fake"


def test_a_write_into_part_of_a_buffer_lays_units_side_by_side() -> None:
    torch.manual_seed(0)
    spec = proved(WritesPartOfABuffer(), ROWS[0]).spec()
    assert (spec["a.weight"], spec["b.weight"], spec["c.weight"]) == ("a .", "b .", ". a+b")


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU], ids=lambda kind: kind.__name__)
def test_one_time_step_does_not_free_the_weights_of_the_state(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model = perturbed(Recurrent(kind, num_layers=2, bidirectional=True).eval())
    graph = trace(model, ROWS[:, :1])
    assert counts(graph) == (4, 0)
    graph.verify(model, ROWS)


def test_one_time_step_does_not_free_parametrized_weights_of_the_state() -> None:
    torch.manual_seed(0)
    model = Recurrent(nn.LSTM)
    nn.utils.parametrizations.weight_norm(model.cell, "weight_hh_l0")
    graph = trace(model, ROWS[:, :1])
    assert counts(graph) == (1, 0)
    (units,) = graph.groups
    assert graph.spec()["cell.parametrizations.weight_hh_l0.original1"].split(" ")[1] == units


def test_one_time_step_does_not_free_the_projected_state() -> None:
    torch.manual_seed(0)
    model = perturbed(nn.Sequential(nn.LSTM(5, 8, proj_size=4), TakesFirst(), nn.Linear(4, 3)).eval())
    graph = trace(model, ROWS[0, :1])
    state, units = graph.spec()["0.weight_hr_l0"].split(" ")
    assert graph.spec()["0.weight_hh_l0"] == f"{units}+{units}+{units}+{units} {state}"
    graph.verify(model, ROWS[0])


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell], ids=lambda kind: kind.__name__)
def test_one_step_of_a_cell_does_not_free_the_weights_of_the_state(kind: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    model = perturbed(CellLoop(kind).eval())
    graph = trace(model, ROWS[:, :1])
    assert counts(graph) == (1, 0)
    graph.verify(model, ROWS)


def test_a_buffer_that_may_change_is_no_constant() -> None:
    torch.manual_seed(0)
    graph = trace(KeysWithoutBias(shifted=True), ROWS)
    assert counts(graph) != (2, 2)
    pinned = {(p.tensor, p.axis) for p in graph.provenance.pinned}
    assert ("qkv.weight", 0) in pinned


def test_layouts_are_written_in_the_notation_people_use() -> None:
    torch.manual_seed(0)
    assert proved(Attention(), ROWS).spec()["qkv.weight"] == (
        "(heads:4 qkv.qk[heads])+(heads:4 qkv.qk[heads])+(heads:4 qkv.v[heads]) inp"
    )
    assert proved(cnn(), IMAGE).spec()["6.weight"] == ". (layer.3 4)"
    assert proved(Experts(), ROWS).spec()["up"].startswith("experts ")
    assert proved(Recurrent(nn.LSTM), ROWS).spec()["cell.weight_hh_l0"] == "cell.l0+cell.l0+cell.l0+cell.l0 cell.l0"
    assert proved(PositionalConvolution(), ROWS).spec()["conv.weight"] == "(heads inp[heads]) inp[heads] ."
    assert proved(grouped(), IMAGE).spec()["1.weight"] == "(0.groups layer.1[0.groups]) layer.0[0.groups] . ."


def test_heads_of_grouped_queries_are_nested() -> None:
    torch.manual_seed(0)
    graph = proved(GroupedQueries(), ROWS)
    assert graph.spec()["q.weight"].startswith("(kv_heads:2 heads[kv_heads] q[kv_heads])")
    assert graph.groups["kv_heads"].size == 2
    assert graph.groups["heads"].parent == "kv_heads"


def test_heads_inside_a_fused_projection_are_nested_sums() -> None:
    torch.manual_seed(0)
    assert proved(FusedGroupedQueries(), ROWS).spec()["qkv.weight"] == (
        "(kv_heads:2 ((heads[kv_heads]:4 qkv.qk[kv_heads])+qkv.qk[kv_heads]+qkv.v[kv_heads])) inp"
    )


def test_small_groups_that_are_tied_to_each_other_are_found_out() -> None:
    torch.manual_seed(0)
    graph = proved(HeadsMeet(), ROWS[0], draws=8)
    assert graph.spec()["shared.weight"] == ". ."


def test_tied_tensors_are_one() -> None:
    torch.manual_seed(0)
    graph = proved(Tied(), IDS)
    assert graph.tensors["table.weight"].names == ("table.weight", "head.weight")


def test_sampling_frees_channels_and_keeps_the_images_of_a_batch() -> None:
    class Samples(nn.Module):
        """Samples a table of images, one for each grid."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Parameter(torch.randn(4, 3, 5, 5)), nn.Conv2d(3, 2, 1)

        def forward(self, grid: Tensor) -> Tensor:
            return self.out(nn.functional.grid_sample(self.table, grid, align_corners=False))

    torch.manual_seed(0)
    assert proved(Samples(), torch.rand(4, 6, 6, 2)).spec()["table"] == ". out . ."
