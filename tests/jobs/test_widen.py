"""A network widened: it computes the same, is found again under every symmetry, or is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, SymmetryGraph, widen
from alignkit.errors import FoldError, WidenError
from alignkit.graph.proof.perturb import perturbed
from alignkit.reports import write_report
from helpers.gauge_nets import Cells
from helpers.gauge_sizes import cases_of_sizes

NARROW = cases_of_sizes()
WIDER = {
    "multiples": cases_of_sizes(WIDTH=12, SIZE=8, HIDDEN=15),
    "more heads": cases_of_sizes(HEADS=4),
    "between": cases_of_sizes(WIDTH=9, SIZE=6, HIDDEN=7, HEADS=3),
}
UNMATCHED = dict.fromkeys(("swiglu", "fused swiglu", "norms of queries"), "positions, .* that belong to no group")
BOTH = dict.fromkeys(("autoencoder", "linear autoencoder"), "does not compute the same: outputs differ")
ROTARY = (
    "llama",
    "tied llama",
    "grouped queries",
    "adjacent rotary",
    "complex rotary",
    "biases of heads",
    "offset gain",
)
REFUSED = {
    "multiples": {**UNMATCHED, **BOTH},
    "more heads": {},
    "between": {
        **UNMATCHED,
        **BOTH,
        **dict.fromkeys((*ROTARY, "norms behind"), "each plane of rotary positions turns with a frequency of its own"),
        **dict.fromkeys(("post-LN", "adaptive norm"), "have more copies than others, which a norm or a mean"),
    },
}
"""What does not compute the same in other sizes, with the reason."""


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in model.parameters()]


GROWN = [
    (sizes, name)
    for sizes, cases in WIDER.items()
    for name, case in NARROW.items()
    if shapes(case.build()) != shapes(cases[name].build())
]
"""Networks that have more units of something."""


def both(
    narrow: Callable[[], nn.Module], wider: Callable[[], nn.Module], x: Tensor, **how: bool
) -> tuple[nn.Module, SymmetryGraph, nn.Module, SymmetryGraph]:
    """Return a narrow network and a wider one, with other weights than fresh ones, and their graphs."""
    torch.manual_seed(0)
    small, large = (perturbed(build()).eval() for build in (narrow, wider))
    first, second = (alignkit.trace(model, x, symmetries="all", **how) for model in (small, large))
    return small, first, large, second


def differ(left: nn.Module, right: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        a, b = (model.double()(x.double() if x.is_floating_point() else x) for model in (left, right))
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize(("sizes", "name"), GROWN)
def test_a_wider_network_computes_the_same_or_is_refused(sizes: str, name: str) -> None:
    x = NARROW[name].batch()
    small, graph, large, wider = both(NARROW[name].build, WIDER[sizes][name].build, x)
    before = [tensor.clone() for tensor in (*small.parameters(), *large.parameters())]
    if name in REFUSED[sizes]:
        with pytest.raises(WidenError, match=REFUSED[sizes][name]):
            widen(small, graph, large, wider, x)
        return
    widened = widen(small, graph, large, wider, x)
    assert shapes(widened.network)[: len(shapes(large))] == shapes(large)
    assert widened.maps and widened.check.exact.error < 1e-12
    after = [*small.parameters(), *large.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert differ(small, widened.network, x) < 1e-5  # rounded to float32
    wider.bind(widened.network, widened.network)  # folded as its graph needs it


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("width", [6, 8])
def test_recurrent_layers_may_have_any_number_of_units(layer: type[nn.RNNBase], width: int) -> None:
    def build(size: int) -> Callable[[], nn.Module]:
        return lambda: Cells(layer(3, size, num_layers=2, batch_first=True))

    x = torch.randn(4, 5, 3)
    assert len(widen(*both(build(4), build(width), x), x).maps) == 2


def convolutions(norm: Callable[[int], nn.Module], width: int) -> Callable[[], nn.Module]:
    last = nn.Conv2d(width, width + 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * width + 8, 2)
    return lambda: nn.Sequential(nn.Conv2d(1, width, 3), norm(width), nn.ReLU(), *last)


@pytest.mark.parametrize(
    ("norm", "exact"),
    [
        (nn.BatchNorm2d, True),
        (lambda n: nn.InstanceNorm2d(n, affine=True), True),
        (lambda n: nn.Conv2d(n, n, 1, groups=n), True),
        (lambda n: nn.GroupNorm(2, n), False),
        (lambda n: nn.GroupNorm(1, n), False),
    ],
    ids=["batch norm", "instance norm", "depthwise", "two groups", "one group"],
)
def test_norms_over_units_need_a_multiple(norm: Callable[[int], nn.Module], exact: bool) -> None:
    x = torch.randn(4, 1, 5, 5)
    widen(*both(convolutions(norm, 4), convolutions(norm, 8), x), x)
    if exact:
        widen(*both(convolutions(norm, 4), convolutions(norm, 6), x), x)
    else:
        with pytest.raises(WidenError, match="have more copies than others"):
            widen(*both(convolutions(norm, 4), convolutions(norm, 6), x), x)


@pytest.mark.parametrize(
    "name", ["relu", "tanh", "grouped queries", "adjacent rotary", "no positions", "gpt", "tied gpt", "vit", "post-LN"]
)
def test_a_widened_network_is_found_again_under_any_symmetry(name: str) -> None:
    x = NARROW[name].batch()
    small, graph, large, wider = both(NARROW[name].build, WIDER["multiples"][name].build, x)
    a = alignkit.fold(widen(small, graph, large, wider, x).network, wider, x).network
    b = Alignment.random(wider, seed=3).apply(a)
    solution = alignkit.solve(wider, a, b)
    assert solution.objective_after < 1e-9 * solution.objective_before
    assert differ(solution.apply(b), small, x) < 1e-4


class Encoder(nn.Module):
    """Returns its stream beside the scores, and has a parameter that eval mode never reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.mask = nn.Parameter(torch.ones(1, width))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.embed(x) + (self.mask if self.training else 0)
        return {"stream": y, "scores": self.head(torch.nn.functional.gelu(y))}


def test_what_a_model_returns_stays_unless_it_does_not_count() -> None:
    x = torch.randn(6, 4)
    small, large = (perturbed(Encoder(width)).eval() for width in (5, 9))
    graph, wider = (alignkit.trace(model, x, symmetries="all") for model in (small, large))
    with pytest.raises(WidenError, match=r"(?s)5 positions, 9 in the wider network.*outputs= of the trace"):
        widen(small, graph, large, wider, x)
    graph, wider = (alignkit.trace(model, x, symmetries="all", outputs="scores") for model in (small, large))
    widened = widen(small, graph, large, wider, x)
    torch.testing.assert_close(widened.network(x)["scores"], small(x)["scores"])
    assert widened.unused == ("mask",) and "never read mask: zero." in widened.explain()
    assert not widened.network.mask.any()


class TestRefused:
    """What cannot be widened, or not be proved."""

    x = torch.randn(6, 4)

    @staticmethod
    def mlp(*widths: int) -> Callable[[], nn.Module]:
        layers = [nn.Linear(n, m) for n, m in pairwise(widths)]
        every = [part for layer in layers for part in (layer, nn.ReLU())][:-1]
        return lambda: nn.Sequential(*every)

    @pytest.mark.parametrize(
        ("narrow", "wider", "match"),
        [
            ((4, 6, 3), (4, 5, 3), "group 'layer.0' has 6 units, and 5 in the wider network"),
            ((4, 6, 3), (4, 6, 6, 3), "only the wider network has the tensor '4.weight'"),
            ((4, 6, 6, 3), (4, 6, 3), "only the narrow network has the tensor '4.weight'"),
            ((4, 6, 3), (4, 6, 5), "tensor '2.weight', axis 0: 3 positions, 5 in the wider network"),
        ],
    )
    def test_architectures_that_differ_in_more(self, narrow: tuple[int], wider: tuple[int], match: str) -> None:
        with pytest.raises(WidenError, match=match):
            widen(*both(self.mlp(*narrow), self.mlp(*wider), self.x), self.x)

    def test_an_activation_that_differs(self) -> None:
        def smooth() -> nn.Module:
            return nn.Sequential(nn.Linear(4, 12), nn.GELU(), nn.Linear(12, 3))

        with pytest.raises(WidenError, match=r"does not compute the same.*what no tensor shows"):
            widen(*both(self.mlp(4, 6, 3), smooth, self.x), self.x)

    def test_a_head_that_stays_tied(self) -> None:
        x = NARROW["tied gpt"].batch()
        given = both(NARROW["tied gpt"].build, WIDER["multiples"]["tied gpt"].build, x, keep_tied=True)
        with pytest.raises(WidenError, match=r"is tied, so that it writes the space that it reads.* without keep_tied"):
            widen(*given, x)

    def test_graphs_of_permutations(self) -> None:
        small, graph, large, _ = both(self.mlp(4, 6, 3), self.mlp(4, 9, 3), self.x)
        with pytest.raises(WidenError, match='trace both with symmetries="all"'):
            widen(small, graph, large, alignkit.trace(large, self.x), self.x)

    def test_a_network_of_another_graph(self) -> None:
        small, _, large, wider = both(self.mlp(4, 6, 3), self.mlp(4, 9, 3), self.x)
        with pytest.raises(FoldError, match="does not fit the graph"):
            widen(small, wider, large, wider, self.x)
        with pytest.raises(FoldError, match="does not fit the graph"):
            widen(large, wider, small, wider, self.x)

    def test_numbers_that_are_none(self) -> None:
        small, graph, large, wider = both(self.mlp(4, 6, 3), self.mlp(4, 9, 3), self.x)
        with torch.no_grad():
            small[0].weight[0, 0] = torch.nan
        with pytest.raises(alignkit.AlignkitError, match=r"NaN|nan"):
            widen(small, graph, large, wider, self.x)


def test_it_takes_the_dtype_of_the_wider_network_and_random_inputs() -> None:
    x = NARROW["gpt"].batch()
    small, graph, large, wider = both(NARROW["gpt"].build, WIDER["multiples"]["gpt"].build, x)
    widened = widen(small, graph, large.bfloat16(), wider)
    assert {tensor.dtype for tensor in widened.network.parameters()} == {torch.bfloat16}
    assert widened.check.exact.error < 1e-12 < 1e-4 < widened.check.rounded.error < 0.1


def test_it_says_what_became_of_it(tmp_path) -> None:
    x = NARROW["tied gpt"].batch()
    small, graph, large, wider = both(NARROW["tied gpt"].build, WIDER["multiples"]["tied gpt"].build, x)
    widened = widen(small, graph, large, wider, x)
    said = widened.explain()
    assert "1 x 6 -> 12 units, which are rotated with the vector of ones fixed." in said
    assert "is no longer tied to" in said and "Function check: outputs differ by" in said
    facts = json.loads(json.dumps(widened.facts(), allow_nan=False))
    assert facts["groups"]["tokens"] == [6, 12] and facts["numbers_before"] < facts["numbers_after"]
    assert facts["numbers_after"] == sum(tensor.numel() for tensor in widened.network.parameters())
    assert repr(widened) == f"WidenedNetwork({facts['numbers_before']} -> {facts['numbers_after']} numbers)"
    write_report(widened.report(), tmp_path / "report.html")
    assert "blocks.mlp.up" in (tmp_path / "report.html").read_text()
    again = SymmetryGraph.from_json(wider.to_json())
    assert widen(small, SymmetryGraph.from_json(graph.to_json()), large, again, x).check.exact.same
