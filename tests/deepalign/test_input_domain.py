"""Input domains: like the data that they were fitted to, in place of data, and refused elsewhere with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignkit import Alignment, Task, builders, solve, trace
from alignkit.deepalign import ProbeEncoder, load_aligner, save_aligner
from alignkit.deepalign.input_domain import InputDomain
from alignkit.errors import SolverError
from alignkit.testing import convnet, mlp, planted_pair, residual


def mlp_of_four():
    return mlp(6, 16, 12, 4)


def clusters(count, *shape):
    """Inputs in three clusters of different sizes, which spread along few directions."""
    generator = torch.Generator().manual_seed(3)
    centres = 3 * torch.randn(3, *shape, generator=generator)
    spread = torch.einsum(
        "ni,i...->n...", torch.randn(count, 4, generator=generator), torch.randn(4, *shape, generator=generator)
    )
    which = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), count, replacement=True, generator=generator)
    return centres[which] + spread


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def domain_aligner(*shape, classes=True):
    torch.manual_seed(0)
    aligner = ProbeEncoder()
    aligner.domain = InputDomain.of(clusters(600, *shape), classes, generator())
    return aligner


@pytest.mark.parametrize("shape", [(12,), (2, 5, 4)])
def test_draws_have_the_moments_of_the_data_and_are_none_of_it(shape):
    data = clusters(3000, *shape).flatten(1)
    domain = InputDomain.of(data.reshape(-1, *shape), True, generator())
    drawn = domain.draw(20_000, generator(1)).flatten(1)
    scale = data.std()
    assert torch.allclose(drawn.mean(0), data.mean(0), atol=0.1 * scale)
    assert torch.allclose(torch.cov(drawn.T), torch.cov(data.T), atol=0.15 * scale**2)
    assert torch.cdist(drawn[:500], data).min() > 0
    assert torch.equal(domain.draw(5, generator(2)), domain.draw(5, generator(2)))


@pytest.mark.parametrize("samples", [1, 2, 40])
def test_a_domain_of_few_or_constant_inputs_is_finite(samples):
    for inputs in (clusters(samples, 5), torch.ones(samples, 5)):
        drawn = InputDomain.of(inputs, True, generator()).draw(64, generator())
        assert drawn.shape == (64, 5) and torch.isfinite(drawn).all()


def test_aligners_with_a_domain_come_back_as_they_were(tmp_path):
    aligner = domain_aligner(1, 14, 14)
    save_aligner(tmp_path / "aligner.safetensors", aligner)
    loaded = load_aligner(tmp_path / "aligner.safetensors")
    assert loaded.fingerprint == aligner.fingerprint != ProbeEncoder().fingerprint
    assert torch.equal(loaded.domain.draw(9, generator()), aligner.domain.draw(9, generator()))
    assert (loaded.domain.shape, loaded.domain.classes) == ((1, 14, 14), True)
    assert (tmp_path / "aligner.safetensors").stat().st_size < 100_000


@pytest.fixture
def solved(tmp_path):
    """A function that solves with an aligner that knows inputs of a shape."""

    def solve_with(pair, shape, **options):
        path = tmp_path / "aligner.safetensors"
        save_aligner(path, domain_aligner(*shape))
        return solve(pair, solver="deepalign", encoder="learned", checkpoint=path, **options)

    return solve_with


@pytest.mark.parametrize("build", [mlp_of_four, convnet, residual])
def test_networks_of_the_domain_need_no_data_in_any_order_of_units(build, solved):
    architecture = build()
    planted = planted_pair(architecture, seed=4)
    exact = solved(planted.bind(), architecture.input_shape)
    assert exact.alignment == planted.answer
    assert "of the domain that the aligner knows" in exact.notes["probes"]
    assert exact.notes["midpoint steps"] == "1024 inputs of the domain"
    pair = planted_pair(architecture, seed=5, noise=0.4).bind()
    plain = solved(pair, architecture.input_shape).alignment
    move_a, move_b = (Alignment.random(pair.graph, seed) for seed in (7, 8))
    moved = pair.graph.bind(move_a.apply(pair.module_a), move_b.apply(pair.module_b))
    assert solved(moved, architecture.input_shape).alignment == move_a @ plain @ move_b.inverse()


def test_data_come_before_the_domain(solved):
    architecture = mlp_of_four()
    pair = planted_pair(architecture, seed=4).bind()
    task = Task(pair.module_a, (architecture.inputs(40), torch.zeros(40).long()), "cross_entropy")
    assert solved(pair, (6,), task=task).notes["probes"] == "40 inputs of the task"
    assert "of the domain" in solved(pair, (6,), task=task, inputs="random").notes["probes"]


def test_other_inputs_are_refused_with_both_shapes(solved):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    image = torch.zeros(2, 3, 8, 8)
    traced = trace(model, image).bind(model, model)
    with pytest.raises(SolverError, match="trained on 1x8x8 inputs, and these are 3x8x8"):
        solved(traced, (1, 8, 8))
    written = planted_pair(mlp_of_four(), seed=1).bind()
    with pytest.raises(SolverError, match="trained on 7 inputs, and these are 6"):
        solved(written, (7,), input_shape=(6,))
    task = Task(written.module_a, (torch.zeros(4, 6), torch.zeros(4).long()), "cross_entropy")
    with pytest.raises(SolverError, match="trained on 7 inputs, and these are 6"):
        solved(written, (7,), task=task)
    with pytest.raises(SolverError, match="trained on 2x3 inputs, on which the model does not run"):
        solved(written, (2, 3))


def test_an_aligner_says_what_follows_its_scores(tmp_path):
    aligner = domain_aligner(6)
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)) for _ in "ab")
    pair = builders.mlp(a).bind(a, b)
    found = []
    for schedule in ({}, {"rounds": 1, "sharpness": 2.0, "carry_over": 0.5, "steps": 0, "rate": 0.06}):
        path = tmp_path / "aligner.safetensors"
        learned = ProbeEncoder(domain=aligner.domain.settings(), schedule=schedule)
        learned.load_state_dict(aligner.state_dict())
        save_aligner(path, learned)
        loaded = load_aligner(path)
        assert loaded.schedule == learned.schedule
        found.append(solve(pair, solver="deepalign", encoder="learned", checkpoint=path))
        path.unlink()
    assert "midpoint steps" in found[0].notes and "midpoint steps" not in found[1].notes
