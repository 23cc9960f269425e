"""The weight-space aligner: its symmetries, exactness on permuted copies, size, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from alignkit import Alignment, SymmetryGraph, trace
from alignkit.deepalign import AlignerInput, DwsAligner, load_aligner, save_aligner
from alignkit.errors import AlignmentError
from alignkit.matching.families import best_element
from alignkit.matching.objective import Objective
from alignkit.testing import ProblemArchitecture, attention, convnet, mlp, planted_pair, residual
from helpers.graph_strategies import graphs

ARCHITECTURES = {
    "mlp": lambda: mlp(6, 16, 12, 4),
    "convnet": convnet,
    "residual": residual,
    "attention": lambda: attention(12, 4, 3, 10),
}
DTYPES = (torch.float32, torch.float64)


class Recurrent(nn.Module):
    """One group meets itself in four gates."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, batch_first=True)
        self.read = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.lstm(x)[0][:, -1])


class Concatenated(nn.Module):
    """Segments on one axis, and a BatchNorm over both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 5, 3)
        self.norm = nn.BatchNorm2d(9)
        self.read = nn.Linear(9 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat((self.left(x), self.right(x)), 1)
        return self.read(torch.relu(self.norm(both)).flatten(1))


TRACED = {
    "recurrent": (Recurrent, (2, 5, 3)),
    "concatenated": (Concatenated, (2, 1, 4, 4)),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(8, 2, 6, batch_first=True, dropout=0.0), (2, 5, 8)),
}


def architecture(name: str) -> ProblemArchitecture:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]()
    build, shape = TRACED[name]
    model = build().eval()
    graph = trace(model, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    sizes = {name: group.size for name, group in graph.groups.items()}
    return ProblemArchitecture(name, model, graph.spec(), shape[1:], sizes)


def weights(module: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in module.state_dict().items()}


def alignment(aligner: DwsAligner, pair: AlignerInput) -> Alignment:
    with torch.no_grad():
        return Alignment(pair.graph, best_element(pair.graph, aligner(pair)))


def drawn(graph: SymmetryGraph, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(node.shape, generator=generator, dtype=dtype) for n, node in graph.tensors.items()}


def distance2(graph: SymmetryGraph, a: dict, b: dict, found: Alignment) -> float:
    return Objective(graph.bind(a, b)).distance2(found)


def moved(matrix: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return matrix[rows][:, columns]


# ------------------------------------------------------------------ symmetries (proposition 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*ARCHITECTURES, *TRACED])
def test_scores_follow_the_order_of_units_of_both_networks(name, dtype):
    planted = planted_pair(architecture(name), seed=1, noise=0.5)
    graph, a, b = planted.graph, weights(planted.a, dtype), weights(planted.b, dtype)
    aligner = DwsAligner(graph, seed=3).to(dtype)
    g, h = Alignment.random(graph, 5), Alignment.random(graph, 6)
    with torch.no_grad():
        plain = aligner(AlignerInput(graph, a, b))
        other = aligner(AlignerInput(graph, g.apply(a), h.apply(b)))
    tolerance = 2e-4 if dtype == torch.float32 else 1e-11
    for group in graph.groups:
        expected = moved(plain[group], g.flat(group), h.flat(group))
        torch.testing.assert_close(other[group], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*ARCHITECTURES, *TRACED])
def test_swapping_the_networks_transposes_scores(name, dtype):
    planted = planted_pair(architecture(name), seed=2, noise=0.5)
    graph, a, b = planted.graph, weights(planted.a, dtype), weights(planted.b, dtype)
    aligner = DwsAligner(graph).to(dtype)
    with torch.no_grad():
        forth, back = aligner(AlignerInput(graph, a, b)), aligner(AlignerInput(graph, b, a))
    for group in graph.groups:
        torch.testing.assert_close(back[group].T, forth[group], atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(graph=graphs(), seed=st.integers(0, 99))
def test_symmetries_hold_on_random_graphs(graph, seed):
    assume(graph.groups)
    a, b = drawn(graph, seed, torch.float64), drawn(graph, seed + 1, torch.float64)
    aligner = DwsAligner(graph, hidden=8, edges=4, output=8, layers=2, seed=seed).double()
    g, h = Alignment.random(graph, seed), Alignment.random(graph, seed + 1)
    with torch.no_grad():
        plain = aligner(AlignerInput(graph, a, b))
        other = aligner(AlignerInput(graph, h.apply(b), g.apply(a)))
    for group in graph.groups:
        expected = moved(plain[group], g.flat(group), h.flat(group)).T
        torch.testing.assert_close(other[group], expected, atol=1e-7, rtol=0)


# ------------------------------------------------------------------ exactness (proposition 5)


def a_few_steps(aligner: DwsAligner, pair: AlignerInput) -> None:
    """Steps of the supervised loss on one pair, so that parameters are no longer as drawn."""
    optimizer = torch.optim.AdamW(aligner.parameters(), lr=5e-3)
    answer = Alignment.random(pair.graph, 9)
    shuffled = AlignerInput(pair.graph, pair.a, answer.inverse().apply(pair.b))
    for _ in range(5):
        optimizer.zero_grad()
        scores = aligner(shuffled)
        loss = sum(nn.functional.cross_entropy(5 * scores[n], answer.flat(n)) for n in scores)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *TRACED])
def test_permuted_copies_are_aligned_exactly(name, trained, dtype):
    built = architecture(name)
    for seed in range(3):
        planted = planted_pair(built, seed=seed)
        graph = planted.graph
        aligner = DwsAligner(graph, seed=seed).to(dtype)
        pair = AlignerInput(graph, weights(planted.a, dtype), weights(planted.b, dtype))
        if trained:
            noisy = planted_pair(built, seed=seed + 50, noise=0.3)
            a_few_steps(aligner, AlignerInput(graph, weights(noisy.a, dtype), weights(noisy.a, dtype)))
        found = alignment(aligner, pair)
        assert distance2(graph, pair.a, pair.b, found) == 0
        assert found == planted.answer


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_exact_whatever_the_size_of_parameters(name, factor):
    planted = planted_pair(architecture(name), seed=4)
    aligner = DwsAligner(planted.graph)
    with torch.no_grad():
        for parameter in aligner.parameters():
            parameter.mul_(factor)
    assert alignment(aligner, AlignerInput(planted.graph, weights(planted.a), weights(planted.b))) == planted.answer


@pytest.mark.parametrize("factor", [1e-15, 1e-6, 1e6, 1e15])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_exact_whatever_the_size_of_weights(name, factor):
    planted = planted_pair(architecture(name), seed=5)
    a, b = ({n: factor * t for n, t in weights(side).items()} for side in (planted.a, planted.b))
    assert alignment(DwsAligner(planted.graph), AlignerInput(planted.graph, a, b)) == planted.answer


@pytest.mark.parametrize("seed", range(3))
def test_exact_on_wide_layers_that_start_as_torch_draws_them(seed):
    built = mlp(784, 128, 128, 128, 10)
    torch.manual_seed(seed)
    for module in built.model:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    graph, a = built.graph(), weights(built.model)
    shuffle = Alignment.random(graph, seed)
    found = alignment(DwsAligner(graph, seed=seed), AlignerInput(graph, a, shuffle.apply(a)))
    assert found == shuffle.inverse()


def test_exact_where_norms_are_as_torch_starts_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))
    norm = dict.fromkeys(("1.weight", "1.bias", "1.running_mean", "1.running_var"), "c")
    graph = SymmetryGraph.from_spec({"0.weight": "c . . .", **norm, "3.weight": ". c . .", "3.bias": "."}, like=model)
    shuffle = Alignment.random(graph, 1)
    found = alignment(DwsAligner(graph), AlignerInput(graph, weights(model), shuffle.apply(weights(model))))
    assert found == shuffle.inverse()


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(graph=graphs(), seed=st.integers(0, 99))
def test_exact_on_random_graphs(graph, seed):
    assume(graph.groups)
    a = drawn(graph, seed)
    b = Alignment.random(graph, seed).apply(a)
    found = alignment(DwsAligner(graph, hidden=16, edges=8, output=16, seed=seed), AlignerInput(graph, a, b))
    assert distance2(graph, a, b, found) == 0


def test_interchangeable_units_leave_no_distance():
    planted = planted_pair(mlp(6, 16, 12, 4), seed=6)
    a = weights(planted.a)
    for dead in (2, 3, 5):  # Never active, and nothing depends on them.
        a["0.weight"][dead], a["0.bias"][dead], a["2.weight"][:, dead] = 0, -1, 0
    a["2.weight"][7], a["2.bias"][7], a["4.weight"][:, 7] = a["2.weight"][4], a["2.bias"][4], a["4.weight"][:, 4]
    b = Alignment.random(planted.graph, 7).apply(a)
    found = alignment(DwsAligner(planted.graph), AlignerInput(planted.graph, a, b))
    assert distance2(planted.graph, a, b, found) == 0


# ------------------------------------------------------------------ what it uses, and what it costs


@pytest.mark.parametrize("name", [*ARCHITECTURES, *TRACED])
def test_every_parameter_gets_a_gradient(name):
    planted = planted_pair(architecture(name), seed=7, noise=0.5)
    aligner = DwsAligner(planted.graph)
    scores = aligner(AlignerInput(planted.graph, weights(planted.a), weights(planted.b)))
    generator = torch.Generator().manual_seed(0)
    sum((s * torch.randn(s.shape, generator=generator)).sum() for s in scores.values()).backward()
    for parameter_name, parameter in aligner.named_parameters():
        if parameter_name != "log_sharpness":  # It acts after the scores.
            assert parameter.grad is not None, parameter_name
            assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), parameter_name


def test_gradients_are_finite_where_tensors_are_zero():
    built = convnet()
    a = {n: torch.zeros_like(t) if n.endswith("bias") else t for n, t in weights(built.model).items()}
    graph = built.graph()
    aligner = DwsAligner(graph)
    sum(s.square().sum() for s in aligner(AlignerInput(graph, a, a)).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in aligner.parameters() if p.grad is not None)


def test_half_precision_changes_scores_little():
    planted = planted_pair(mlp(6, 16, 12, 4), seed=3, noise=0.2)
    aligner = DwsAligner(planted.graph)
    pair = AlignerInput(planted.graph, weights(planted.a), weights(planted.b))
    full = aligner(pair)
    with torch.autocast("cpu", torch.bfloat16):
        half = aligner(pair)
        sum(s.square().sum() for s in half.values()).backward()
    for group, matrix in full.items():
        torch.testing.assert_close(half[group], matrix, atol=0.15, rtol=0)
    assert all(torch.isfinite(p.grad).all() for p in aligner.parameters() if p.grad is not None)


def test_a_hundredth_of_the_official_parameters_on_the_mlp_of_the_paper():
    built = mlp(784, 128, 128, 128, 10)
    graph, a = built.graph(), weights(built.model)
    aligner = DwsAligner(graph)
    assert sum(p.numel() for p in aligner.parameters()) <= 0.32e6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        aligner(AlignerInput(graph, a, a))
    assert counter.get_total_flops() < 2e8


def test_parameters_do_not_grow_with_units():
    sizes = [sum(p.numel() for p in DwsAligner(mlp(4, n, n, 3).graph()).parameters()) for n in (8, 80)]
    assert sizes[0] == sizes[1]


def test_many_fixed_positions_are_hashed():
    built = mlp(500, 12, 3)
    planted = planted_pair(built, seed=8)
    aligner = DwsAligner(planted.graph, lifted=32)
    assert max(p.shape[-1] for p in aligner.lift.parameters()) == 32
    assert alignment(aligner, AlignerInput(planted.graph, weights(planted.a), weights(planted.b))) == planted.answer


def test_several_pairs_at_once_are_scored_like_one_at_a_time():
    pairs = [planted_pair(attention(), seed=seed, noise=0.5) for seed in range(3)]
    graph = pairs[0].graph
    aligner = DwsAligner(graph)
    a, b = (
        {n: torch.stack([weights(getattr(p, side))[n] for p in pairs]) for n in weights(pairs[0].a)}
        for side in ("a", "b")
    )
    with torch.no_grad():
        together = aligner.scores(a, b)
        for i, pair in enumerate(pairs):
            alone = aligner(AlignerInput(graph, weights(pair.a), weights(pair.b)))
            for group in graph.groups:
                torch.testing.assert_close(together[group][i], alone[group], atol=1e-4, rtol=0)


# ------------------------------------------------------------------ files and graphs


@pytest.mark.parametrize("name", [*ARCHITECTURES, "recurrent"])
def test_a_saved_aligner_scores_the_same(name, tmp_path):
    planted = planted_pair(architecture(name), seed=9, noise=0.5)
    aligner = DwsAligner(planted.graph, hidden=16, edges=4, output=8, layers=2, seed=1)
    with torch.no_grad():
        for parameter in aligner.parameters():
            parameter.add_(0.01)
    save_aligner(tmp_path / "aligner.safetensors", aligner)
    loaded = load_aligner(tmp_path / "aligner.safetensors")
    assert isinstance(loaded, DwsAligner)
    assert loaded.fingerprint == aligner.fingerprint
    assert loaded.fits(planted.graph) is None
    pair = AlignerInput(planted.graph, weights(planted.a), weights(planted.b))
    with torch.no_grad():
        for group, matrix in aligner(pair).items():
            torch.testing.assert_close(loaded(pair)[group], matrix, atol=0, rtol=0)


def test_the_seed_decides_the_parameters():
    graph = mlp(4, 8, 3).graph()
    assert DwsAligner(graph, seed=1).fingerprint == DwsAligner(graph, seed=1).fingerprint
    assert DwsAligner(graph, seed=1).fingerprint != DwsAligner(graph, seed=2).fingerprint


def test_another_graph_is_refused_by_name_of_what_differs():
    aligner = DwsAligner(mlp(4, 8, 3).graph())
    other = mlp(4, 9, 3)
    reason = aligner.fits(other.graph())
    assert reason is not None and other.graph().fingerprint in reason and aligner.graph.fingerprint in reason
    with pytest.raises(AlignmentError, match="one graph only"):
        aligner(AlignerInput(other.graph(), weights(other.model), weights(other.model)))


def test_a_graph_without_groups_is_refused():
    with pytest.raises(AlignmentError, match="no groups"):
        DwsAligner(SymmetryGraph.from_spec({"w": ". ."}, {"w": (2, 2)}))
