"""Training many networks at once: what comes out is what training each alone would give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import alignkit
import alignkit.zoo as zoo
from alignkit.errors import ArgumentError, ZooError
from alignkit.zoo.recipe import complete_recipe

DIGITS = zoo.source("digits")
SMALL = {
    "mlp": zoo.Mlp(widths=(12, 8), activation="gelu", norm="layernorm"),
    "cnn": zoo.Cnn(channels=(4, 6), dense_widths=(8,)),
    "resnet": zoo.ResNet(width=4, blocks=(1, 1)),
    "vit": zoo.Vit(dim=8, heads=2, depth=1, patch=4),
    "gpt": zoo.Gpt(dim=8, heads=2, depth=1, hidden=12),
    "siren": zoo.Siren(widths=(8, 8)),
    "lstm": zoo.Lstm(hidden=6, layers=2),
}


def source_of(family: str) -> zoo.Source:
    return zoo.source("sine", points=64) if family == "siren" else DIGITS


def alone(architecture: zoo.Architecture, source: zoo.Source, seed: int, recipe: zoo.Recipe) -> nn.Module:
    """The first network of a data set, trained as a tutorial would: one module, one optimiser, one batch at a time."""
    seed_of_network = zoo.train(architecture, source, 1, seed=seed, recipe=zoo.Recipe(steps=1)).records[0].seed
    model = architecture.for_source(source.shape, source.outputs).build(seed_of_network).train()
    data = source.data(None, "train", [0], seed)
    targets = data.targets[0] if data.own_targets else data.targets
    generator = torch.Generator().manual_seed(seed_of_network + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    total, order = recipe.total_steps(len(data.inputs)), torch.empty(0, dtype=torch.int64)
    measure = nn.functional.mse_loss if data.own_targets else nn.functional.cross_entropy
    for step in range(total):
        if len(order) < recipe.batch_size:
            order = torch.randperm(len(data.inputs), generator=generator)
        rows, order = order[: recipe.batch_size], order[recipe.batch_size :]
        optimizer.param_groups[0]["lr"] = recipe.rate(step, total)
        optimizer.zero_grad()
        measure(model(data.inputs[rows]), targets[rows]).backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
    return model


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("count", [1, 3])
def test_networks_trained_together_are_those_trained_alone(family: str, count: int) -> None:
    recipe = zoo.Recipe(steps=40, batch_size=32, learning_rate=1e-3, weight_decay=0.01, clip=0.5)
    together = zoo.train(SMALL[family], source_of(family), count, seed=3, recipe=recipe)
    expected = alone(SMALL[family], source_of(family), 3, recipe).state_dict()
    assert set(together[0]) == set(expected)
    for name, value in together[0].items():  # running statistics of BatchNorm included
        assert torch.allclose(value, expected[name], atol=2e-3, rtol=1e-2), name


@pytest.mark.parametrize("family", SMALL)
def test_every_family_traces_to_a_graph_that_keeps_the_function(family: str) -> None:
    architecture = SMALL[family].for_source(source_of(family).shape, source_of(family).outputs)
    model = architecture.build(0).eval()
    graph = alignkit.trace(model, architecture.example())
    assert graph.groups
    graph.verify(model, architecture.example())


def test_chunks_do_not_change_the_networks() -> None:
    whole = zoo.train(SMALL["mlp"], DIGITS, 5, seed=1, chunk=5, recipe=zoo.Recipe(epochs=1))
    parts = zoo.train(SMALL["mlp"], DIGITS, 5, seed=1, chunk=2, recipe=zoo.Recipe(epochs=1))
    later = zoo.train(SMALL["mlp"], DIGITS, 2, seed=1, first=3, recipe=zoo.Recipe(epochs=1))
    for name, value in whole.weights.items():
        assert torch.allclose(value, parts.weights[name], atol=1e-4)
        assert torch.allclose(value[3:], later.weights[name], atol=1e-4)
    assert [r.index for r in later.records] == [3, 4]


def test_the_same_call_gives_the_same_weights_and_leaves_global_random_numbers_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = (zoo.train(SMALL["cnn"], DIGITS, 2, seed=1, recipe=zoo.Recipe(steps=10)) for _ in range(2))
    assert all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_differ_from_one_another_and_between_seeds() -> None:
    found = zoo.train(SMALL["mlp"], DIGITS, 2, seed=1, recipe=zoo.Recipe(steps=5)).weights["hidden1.weight"]
    other = zoo.train(SMALL["mlp"], DIGITS, 2, seed=2, recipe=zoo.Recipe(steps=5)).weights["hidden1.weight"]
    assert not torch.allclose(found[0], found[1], atol=0.01)
    assert not torch.allclose(found, other, atol=0.01)


@pytest.mark.slow
def test_digits_are_learnt() -> None:
    networks = zoo.train(zoo.Mlp(widths=(64,)), DIGITS, 4, recipe=zoo.Recipe(epochs=20))
    assert min(record.accuracy or 0 for record in networks.records) > 0.95


@pytest.mark.slow
def test_waves_are_learnt() -> None:
    networks = zoo.train(zoo.Siren(widths=(24, 24)), zoo.source("sine", points=256), 4, recipe=zoo.Recipe(steps=400))
    assert max(record.loss for record in networks.records) < 0.01
    assert [record.target for record in networks.records] == [0, 0, 1, 1]
    assert all(record.accuracy is None for record in networks.records)


def test_half_precision_trains_to_nearly_the_same_loss() -> None:
    losses = []
    for precision in ("float32", "bf16"):
        recipe = zoo.Recipe(epochs=5, batch_size=64, precision=precision)
        networks = zoo.train(zoo.Mlp(widths=(32,)), DIGITS, 2, recipe=recipe)
        assert networks.weights["hidden1.weight"].dtype == torch.float32
        losses.append(networks.records[0].loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


def test_the_learning_rate_rises_then_falls() -> None:
    recipe = zoo.Recipe(epochs=1, learning_rate=1.0, warmup=0.1)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 9
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.01)
    assert complete_recipe(zoo.Recipe(learning_rate=0.5), zoo.Mlp(), DIGITS).learning_rate == 0.5


def test_networks_that_diverge_are_an_error() -> None:
    with pytest.raises(ZooError, match="did not stay finite: lower the learning rate"):
        zoo.train(zoo.Mlp(widths=(8, 8)), DIGITS, 2, recipe=zoo.Recipe(steps=30, learning_rate=1e30))


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("mpl", {}, "mpl"),
        ("mlp", {"widths": ()}, "widths"),
        ("mlp", {"depth": 3}, "depth"),
        ("siren", {"omega": 0}, "omega"),
    ],
)
def test_an_architecture_that_makes_no_sense_is_refused(family: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        zoo.architecture(family, **fields)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (zoo.Cnn(channels=(4, 4, 4, 4)), "nothing of the image"),
        (zoo.Vit(dim=9, heads=2), "9 cannot be divided among 2 heads"),
        (zoo.Gpt(dim=9, heads=2), "9 cannot be divided among 2 heads"),
        (zoo.Vit(dim=8, heads=2, patch=3), "cannot be cut into patches of 3x3"),
        (zoo.Mlp(outputs=3), "outputs 3 were given, but the source needs .* outputs 10"),
        (zoo.Cnn(shape=(3, 8, 8)), "shape .3, 8, 8. and outputs None were given"),
    ],
)
def test_an_architecture_that_does_not_fit_the_source_is_refused(architecture: zoo.Architecture, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        zoo.train(architecture, DIGITS, 1, recipe=zoo.Recipe(steps=1))


def test_an_architecture_without_a_shape_cannot_be_built() -> None:
    with pytest.raises(ZooError, match="no shape or outputs yet"):
        zoo.Mlp().build(0)


def test_a_device_that_is_not_there_and_a_precision_that_does_not_fit_are_errors() -> None:
    with pytest.raises(ArgumentError, match="device='xpu:7' cannot be used"):
        zoo.train(SMALL["mlp"], DIGITS, 1, device="xpu:7", recipe=zoo.Recipe(steps=1))
    with pytest.raises(ZooError, match="BatchNorm cannot be trained in bf16"):
        zoo.train(SMALL["resnet"], DIGITS, 1, recipe=zoo.Recipe(steps=1, precision="bf16"))


def test_rows_of_a_gpt_see_no_later_rows():
    model = zoo.Gpt(dim=8, heads=2, depth=2).for_source((1, 5, 4), 3).build().eval()
    seen = []
    model.blocks.register_forward_hook(lambda module, inputs, tokens: seen.append(tokens))
    images = torch.randn(2, 1, 5, 4)
    model(images)
    model(images + torch.eye(5)[3, :, None])
    before, after = seen
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(-1).all()
