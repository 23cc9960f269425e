"""Builders: the graphs of common families, proved on real models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit.errors import GraphError
from alignkit.graph import SymmetryGraph, builders


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


class Block(nn.Module):
    """A BasicBlock, or a Bottleneck when ``narrow`` is given."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, narrow: int | None = None) -> None:
        super().__init__()
        middle = narrow or outputs
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle if narrow else outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle if narrow else outputs)
        if narrow:
            self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(torch.relu(y)))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, narrow: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8, 8, narrow=narrow), Block(8, 8, narrow=narrow))
        self.layer2 = nn.Sequential(Block(8, 12, 2, narrow=narrow), Block(12, 12, narrow=narrow))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class PreActivation(nn.Module):
    """A block whose norms stand before its convolutions, and whose shortcut is one convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 6, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, outputs, 3, 1, 1)
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        through = self.shortcut(y) if hasattr(self, "shortcut") else x
        return through + self.conv2(torch.relu(self.bn2(self.conv1(y))))


def alive(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with every parameter and statistic drawn at random, so that no two units are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return model


def group_names(graph: SymmetryGraph) -> set[str]:
    return set(graph.groups)


def test_mlp_frees_every_hidden_layer() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 6), nn.LayerNorm(6), nn.PReLU(), nn.Linear(6, 3))
    graph = builders.mlp(alive(model))
    assert {name: g.size for name, g in graph.groups.items()} == {"layer.0": 5, "layer.2": 6}
    assert graph.spec()["5.weight"] == ". layer.2"
    graph.verify(model, torch.randn(4, 7))


def test_the_three_forms_of_like_give_the_same_graph() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert builders.mlp(model) == builders.mlp(model.state_dict()) == builders.mlp(shapes)


def test_a_single_linear_layer_has_no_group() -> None:
    assert builders.mlp(nn.Linear(3, 2)).order == 1


def test_siren_has_the_permutations_of_an_mlp() -> None:
    model = nn.Sequential(nn.Linear(2, 8), Sine(), nn.Linear(8, 8), Sine(), nn.Linear(8, 1))
    graph = builders.siren(model)
    assert len(graph.groups) == 2
    graph.verify(model, torch.randn(4, 2))


def test_cnn_finds_the_flatten_factor() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.PReLU(5), nn.Flatten(),
        nn.Linear(5 * 4 * 4, 6), nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip
    graph = builders.cnn(alive(model))
    assert graph.spec()["6.weight"] == "layer.6 (layer.3 16)"
    assert graph.spec()["1.running_var"] == "layer.0"
    graph.verify(model, torch.randn(2, 3, 8, 8))


def test_cnn_after_a_global_pooling() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    graph = builders.cnn(alive(model))
    assert graph.spec()["4.weight"] == ". layer.0"
    graph.verify(model, torch.randn(2, 2, 9))


@pytest.mark.parametrize("narrow", [None, 4], ids=["basic", "bottleneck"])
def test_resnet_shares_the_residual_stream_within_a_stage(narrow: int | None) -> None:
    model = alive(ResNet(narrow))
    graph = builders.resnet(model)
    last = "conv3" if narrow else "conv2"
    stream = f"layer2.0.{last}"
    inner = {f"layer{s}.{b}.conv{c}" for s in (1, 2) for b in (0, 1) for c in ((1, 2) if narrow else (1,))}
    assert group_names(graph) == {"conv1", stream} | inner
    spec = graph.spec()
    assert spec[f"layer1.1.{last}.weight"].split()[0] == "conv1"
    assert spec["layer2.0.downsample.0.weight"] == f"{stream} conv1 . ."
    assert spec["layer2.0.downsample.1.running_mean"] == stream
    assert spec["fc.weight"] == f". {stream}"
    assert spec["bn1.num_batches_tracked"] == ""
    graph.verify(model, torch.randn(2, 3, 8, 8))


def test_resnet_with_norms_before_the_convolutions() -> None:
    model = alive(
        nn.Sequential(
            nn.Conv2d(3, 5, 3),
            PreActivation(5, 5),
            PreActivation(5, 7),
            PreActivation(7, 7),
            nn.BatchNorm2d(7),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(7, 2),
        )
    )
    named = nn.Module()
    named.net = model
    graph = builders.resnet(named)
    assert len(graph.groups) == 5
    graph.verify(_Call(named), torch.randn(2, 3, 6, 6))


class _Call(nn.Module):
    """A module that holds ``net`` and runs it."""

    def __init__(self, holder: nn.Module) -> None:
        super().__init__()
        self.net = holder.net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_resnet_without_a_head_keeps_its_outputs_fixed() -> None:
    shapes = {n: tuple(t.shape) for n, t in ResNet().state_dict().items() if not n.startswith("fc")}
    graph = builders.resnet(shapes)
    assert "layer2.0.conv2" not in graph.groups
    assert graph.spec()["layer2.1.conv1.weight"] == "layer2.1.conv1 . . ."


@pytest.mark.models("torchvision")
def test_torchvision_resnet18() -> None:
    from torchvision import models

    model = alive(models.resnet18())
    graph = builders.resnet(model)
    # Eight inner groups, the stem's stream, and a stream for each of the three projections.
    assert len(graph.groups) == 12
    graph.verify(model, torch.randn(1, 3, 32, 32))


MODELS = {
    "mlp": (
        builders.mlp,
        nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)),
        (4, 7),
    ),
    "siren": (builders.siren, nn.Sequential(nn.Linear(2, 8), Sine(), nn.Linear(8, 1)), (4, 2)),
    "cnn": (builders.cnn, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), (2, 3, 6, 6)),
    "resnet": (builders.resnet, ResNet(), (2, 3, 8, 8)),
    "bottleneck": (builders.resnet, ResNet(4), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_builder_and_trace_agree(name: str) -> None:
    build, model, shape = MODELS[name]
    assert build(model) == alignkit.trace(model.eval(), torch.randn(shape))


TIED = nn.Linear(4, 4)
REFUSED = {
    "width": (builders.mlp, {"a.weight": (5, 4), "b.weight": (2, 6)}, "'b.weight'.*6 inputs.*5 units"),
    "bias": (builders.mlp, {"a.weight": (5, 4), "a.bias": (4,)}, "'a.bias'.*5 outputs"),
    "conv in mlp": (builders.mlp, {"a.weight": (5, 4, 3, 3)}, "'a.weight'.*cnn"),
    "norm in siren": (builders.siren, {"a.weight": (5, 4), "n.weight": (5,)}, "'n.weight'.*norm"),
    "norm width": (builders.mlp, {"a.weight": (5, 4), "n.weight": (3,), "b.weight": (2, 5)}, "'n.weight'.*5 units"),
    "recurrent": (builders.mlp, {"a.weight_ih_l0": (5, 4)}, "'a.weight_ih_l0'"),
    "nothing": (builders.mlp, {}, "no linear layer"),
    "flatten": (builders.cnn, {"a.weight": (4, 3, 3, 3), "b.weight": (2, 9)}, "'b.weight'"),
    "group norm": (
        builders.cnn,
        {"a.weight": (4, 3, 3, 3), "n.weight": (4,), "n.bias": (4,), "b.weight": (2, 4)},
        "'n.weight'.*GroupNorm",
    ),
    "no block": (builders.resnet, {"a.weight": (4, 3, 3, 3), "b.weight": (2, 4)}, "does not look like a ResNet"),
    "no stem": (builders.resnet, {"l.0.conv1.weight": (4, 4, 3, 3)}, "'l.0.conv1.weight'.*stem"),
    "no projection": (
        builders.resnet,
        {"stem.weight": (4, 3, 3, 3), "l.0.conv1.weight": (5, 4, 3, 3), "l.0.conv2.weight": (6, 5, 3, 3)},
        "'l.0.conv2.weight'.*4 to 6.*'l.0' has no projection",
    ),
    "projection": (
        builders.resnet,
        {"s.weight": (4, 3, 1, 1), "l.0.c.weight": (5, 4, 3, 3), "l.0.downsample.0.weight": (6, 4, 1, 1)},
        "'l.0.downsample.0.weight'.*6 channels.*5",
    ),
    "tied": (builders.mlp, {"a.weight": TIED.weight, "b.weight": TIED.weight}, "'a.weight' and 'b.weight' are tied"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_of_another_family_are_refused(case: str) -> None:
    build, like, message = REFUSED[case]
    with pytest.raises(GraphError, match=message):
        build(like)
