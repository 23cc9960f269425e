"""A small ResNet with BatchNorm and a small ViT on MNIST, trained here, kept between runs in the temporary folder.

One epoch (ResNet) or three (ViT) of MNIST take about half a minute a network on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, relu, scaled_dot_product_attention

import networks

SIDE = 28


class Block(nn.Module):
    """A residual block of two convolutions; a projection where the number of channels changes."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        stride = 1 if inputs == channels else 2
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Identity()
        if inputs != channels:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.downsample(x) + self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """Images ``[n, 784]`` to logits ``[n, 10]``: a stem and two residual blocks, 16 and 32 channels."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.block1 = Block(channels, channels)
        self.block2 = Block(channels, 2 * channels)
        self.fc = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x.unflatten(1, (1, SIDE, SIDE)))))
        out: Tensor = self.fc(self.block2(self.block1(x)).mean((2, 3)))
        return out


class Encoder(nn.Module):
    """A transformer block with norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        out: Tensor = x + self.down(gelu(self.up(self.norm2(x))))
        return out


class ViT(nn.Module):
    """Images ``[n, 784]`` to logits ``[n, 10]``: 16 patches of 7 x 7, two blocks of width 32 with 4 heads."""

    def __init__(self, width: int = 32, heads: int = 4, patch: int = 7) -> None:
        super().__init__()
        self.patch = patch
        tokens = (SIDE // patch) ** 2
        self.embed = nn.Linear(patch * patch, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(Encoder(width, heads), Encoder(width, heads))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = SIDE // self.patch
        x = x.unflatten(1, (rows, self.patch, rows, self.patch)).transpose(2, 3).flatten(3).flatten(1, 2)
        out: Tensor = self.head(self.norm(self.blocks(self.embed(x) + self.position)).mean(1))
        return out


KINDS: dict[str, tuple[Callable[[], nn.Module], int, float]] = {"resnet": (ResNet, 1, 4e-3), "vit": (ViT, 3, 3e-3)}
"""Class, epochs and largest learning rate of each kind."""


def mnist_network(kind: str, seed: int) -> nn.Module:
    """A network trained with Adam, batches of 128 and a learning rate that rises and falls; read back when trained."""
    build, epochs, rate = KINDS[kind]
    torch.manual_seed(seed)
    model = build()
    path = networks.CACHE / f"mnist-{kind}-{epochs}-{seed}.safetensors"
    if path.exists():
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    images, labels = networks.mnist("train")
    steps = epochs * math.ceil(len(images) / 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(128):
            loss = cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    networks.CACHE.mkdir(exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), path)
    return model.eval()
