"""The number of groups of architectures whose groups people have written down by hand.

Where a count differs from one in the literature, the test says why. Nothing is verified here, other tests do that;
the models have no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from alignkit.graph import SymmetryGraph
from alignkit.tracing import trace
from helpers.trace_checks import counts

IMAGE = torch.zeros(1, 3, 32, 32)


def graph_of(build: Callable[[], nn.Module], *args: Any, **kwargs: Any) -> SymmetryGraph:
    with torch.device("meta"):
        model = build()
    return trace(model.eval(), *args, **kwargs)


class Block(nn.Module):
    """A basic block of [He16]; the shortcut of a wider stage is a convolution (option B) or padding with zeros (A)."""

    def __init__(self, before: int, width: int, padded: bool) -> None:
        super().__init__()
        stride = width // before
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.pad = (width - before) // 2
        self.shortcut = nn.Identity() if padded or stride == 1 else nn.Conv2d(before, width, 1, stride, bias=False)
        self.skip = stride if padded else 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = self.shortcut(x)[:, :, :: self.skip, :: self.skip]
        if short.shape[1] != y.shape[1]:
            short = F.pad(short, (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + short)


def resnet20(padded: bool = False) -> nn.Module:
    widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
    blocks = [Block(before, width, padded) for before, width in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def vgg16(hidden: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    before = 3
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for width in hidden:
        layers += [nn.Linear(before, width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, 10))


def test_resnet20_has_one_group_a_block_and_one_a_stage() -> None:
    # Nine blocks with a group inside each and three stages. Hand-written specs that count 13 give the
    # classifier's input a group
    # of its own; it is the last stage's, because pooling leaves the order of channels as it is.
    graph = graph_of(resnet20, IMAGE)
    assert counts(graph) == (12, 0)
    stages = [group.size for group in graph.groups.values() if len(graph.tensors_of(group.name)) > 7]
    assert sorted(stages) == [16, 32, 64]
    assert graph.spec()["14.weight"].split(" ")[1] in graph.spec()["11.conv2.weight"]


def test_resnet20_with_padded_shortcuts_has_more_groups_in_a_stage() -> None:
    # The channels that come from the stage before keep its order; those padded in front and behind are groups
    # of their own.
    graph = graph_of(lambda: resnet20(padded=True), IMAGE)
    assert counts(graph) == (9 + 1 + 2 + 2, 0)


@pytest.mark.parametrize(("hidden", "expected"), [((), 13), ((512,), 14), ((4096, 4096), 15)])
def test_vgg16_has_a_group_for_each_hidden_layer(hidden: tuple[int, ...], expected: int) -> None:
    # Thirteen convolutions; the conventions differ in the number of hidden linear layers behind them.
    assert counts(graph_of(lambda: vgg16(hidden), IMAGE)) == (expected, 0)


VISION = [
    ("vgg11", {}, (10, 0)),
    ("resnet18", {}, (12, 0)),
    ("resnet34", {}, (20, 0)),
    ("resnet50", {}, (37, 0)),
    ("vit_b_16", {"image_size": 32}, (1 + 12 + 12, 24)),
    ("swin_t", {}, (28, 24)),
]


@pytest.mark.models("torchvision")
@pytest.mark.parametrize(("name", "options", "expected"), VISION, ids=[case[0] for case in VISION])
def test_vision_models(name: str, options: dict[str, Any], expected: tuple[int, int]) -> None:
    # ResNet50: 16 blocks with two groups inside, four stages and the stem, which pooling and a convolution
    # separate from them.
    # ViT-B/16: the residual stream, heads of 12 layers, 12 hidden layers; inside heads one family for q and
    # k, one for v.
    from torchvision import models

    assert counts(graph_of(lambda: getattr(models, name)(weights=None, **options), IMAGE)) == expected


IDS = torch.tensor([[3, 14, 15, 9]])
LANGUAGE = [
    # The residual stream; a layer: heads, its hidden layer, and in each head a family for q and k and one for v.
    ("GPT2LMHeadModel", "GPT2Config", {}, (1 + 12 * 2, 12 * 2)),
    ("BertForMaskedLM", "BertConfig", {}, (1 + 12 * 2, 12 * 2)),
    # The hidden layer of BERT's prediction head is no group of its own: embeddings are the decoder too, and
    # tie it to the stream.
    # Rotary positions pin units of q and k: the families are query heads in a key-value head, and units of v.
    ("LlamaForCausalLM", "LlamaConfig", {"num_hidden_layers": 4, "num_key_value_heads": 8}, (1 + 4 * 2, 4 * 2)),
]


@pytest.mark.models("transformers")
@pytest.mark.parametrize(("model", "config", "options", "expected"), LANGUAGE, ids=[case[0] for case in LANGUAGE])
def test_language_models(model: str, config: str, options: dict[str, Any], expected: tuple[int, int]) -> None:
    import transformers

    settings = getattr(transformers, config)(**options)
    graph = graph_of(lambda: getattr(transformers, model)(settings), input_ids=IDS)
    assert counts(graph) == expected
