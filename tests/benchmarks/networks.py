"""Networks that the benchmarks run on: MNIST MLPs trained here, kept between runs in the temporary folder."""

from __future__ import annotations

import gzip
import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from alignkit.zoo.sources import MOMENTS

CACHE = Path(tempfile.gettempdir()) / "alignkit-benchmarks"


def mnist_folder(name: str = "mnist") -> Path | None:
    """The folder with the idx files of MNIST, or of Fashion-MNIST, below ALIGNKIT_DATA; None when it is not set."""
    root = os.environ.get("ALIGNKIT_DATA")
    folder = Path(root) / name if root else None
    return folder if folder is not None and folder.is_dir() else None


def read_idx(path: Path) -> Tensor:
    """Read a gzipped idx file of bytes."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", axes, 4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def mnist(part: str, name: str = "mnist") -> tuple[Tensor, Tensor]:
    """Images as float32 ``[n, 784]``, normalised, and labels as int64 ``[n]``.

    Args:
        part: "train" or "t10k".
        name: "mnist" or "fashion-mnist".
    """
    folder = mnist_folder(name)
    if folder is None:
        raise SystemExit(
            f"Set ALIGNKIT_DATA to a folder with {name}/train-images-idx3-ubyte.gz and its three companions."
        )
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz").float().reshape(-1, 784) / 255
    middle, spread = MOMENTS[name]
    return (images - middle) / spread, read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long()


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for left, right in itertools.pairwise(widths):
        layers += [nn.Linear(left, right), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mnist_mlp(seed: int, widths: tuple[int, ...] = (784, 128, 128, 128, 10), epochs: int = 10) -> nn.Sequential:
    """An MLP trained on MNIST with Adam (learning rate 1e-3, batches of 360); read back when trained before."""
    torch.manual_seed(seed)
    model = mlp(widths)
    path = CACHE / f"mnist-mlp-b360-{'-'.join(map(str, widths))}-{epochs}-{seed}.safetensors"
    if path.exists():
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    images, labels = mnist("train")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(360):
            loss = nn.functional.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    CACHE.mkdir(exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), path)
    return model.eval()


def accuracy(model: nn.Module) -> float:
    """Test accuracy on MNIST."""
    images, labels = mnist("t10k")
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())
