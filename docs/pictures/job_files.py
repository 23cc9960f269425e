"""Small networks on digits as files, and commands that run on them, for the how-to pages."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import structures
import torch
from sklearn.datasets import load_digits
from torch import nn
from typer.testing import CliRunner

import alignkit
from alignkit.cli import app
from alignkit.graph.proof.perturb import perturbed

MODULE = '''\
import structures
import torch
from sklearn.datasets import load_digits
from torch import nn

import alignkit


def net():
    """The architecture, and an example call."""
    layers = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    return nn.Sequential(*layers), torch.rand(2, 64)


def digits():
    """Data and loss: the last 500 digits."""
    images, labels = load_digits(return_X_y=True)
    data = torch.tensor(images[-500:] / 16).float(), torch.tensor(labels[-500:])
    return alignkit.Task(net()[0], data, "cross_entropy", "accuracy")


def resnet():
    """A residual network with BatchNorm, and an example call."""
    return alignkit.zoo.architecture("resnet", width=16, shape=(1, 8, 8), outputs=10).build(), torch.rand(2, 1, 8, 8)


def images(mirrored=False):
    """The last 500 digits as images; mirrored, for a fine-tune."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images[-500:].reshape(-1, 1, 8, 8) / 16).float()
    data = images.flip(-1) if mirrored else images, torch.tensor(labels[-500:])
    return alignkit.Task(resnet()[0], data, "cross_entropy", "accuracy")


def mirror():
    return images(mirrored=True)


def vit():
    """A vision transformer, and an example call."""
    return structures.VisionTransformer(48, 3, 2, 10), torch.rand(2, 3, 32, 32)


def wide_vit():
    """One that is twice as wide."""
    return structures.VisionTransformer(96, 3, 2, 10), torch.rand(2, 3, 32, 32)
'''


@cache
def networks() -> Path:
    """A folder with the networks of the how-to pages, their module and a spec.

    Perceptrons: a, b and c (three seeds), tuned (a, trained on), shuffled (a in another order). Residual networks with
    BatchNorm: resnet-a, -b and -c, and resnet-mirror (a, trained on with mirrored images). Vision transformers with
    random weights: vit, and wide-vit of twice the width.
    """
    path = Path(tempfile.mkdtemp())
    (path / "networks.py").write_text(MODULE)
    model = network(0)
    train(model, 0, 300)
    save(model, path / "a.safetensors")
    graph = alignkit.trace(model, torch.rand(2, 64))
    (path / "spec.json").write_text(json.dumps(graph.spec()))
    save(alignkit.Alignment.random(graph, 7).apply(model), path / "shuffled.safetensors")
    train(model, 9, 100)
    save(model, path / "tuned.safetensors")
    for seed, name in enumerate("bc", 1):
        other = network(seed)
        train(other, seed, 300)
        save(other, path / f"{name}.safetensors")
    architecture = alignkit.zoo.architecture("resnet", width=16, shape=(1, 8, 8), outputs=10)
    for seed, name in enumerate("abc"):
        other = architecture.build(seed)
        train(other, seed, 150)
        save(other, path / f"resnet-{name}.safetensors")
        if name == "a":
            train(other, 9, 60, mirrored=True)
            save(other, path / "resnet-mirror.safetensors")
    torch.manual_seed(0)
    for name, width in (("vit", 48), ("wide-vit", 96)):
        save(perturbed(structures.VisionTransformer(width, 3, 2, 10)), path / f"{name}.safetensors")
    return path


def network(seed: int) -> nn.Sequential:
    """The network of `MODULE` with random weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def train(model: nn.Module, seed: int, steps: int, *, mirrored: bool = False) -> None:
    """Adam on the first digits, batches of 64; images for a network with convolutions."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:-500] / 16).float(), torch.tensor(labels[:-500])
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        x = x.reshape(-1, 1, 8, 8)
    if mirrored:
        x = x.flip(-1)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()


def save(model: nn.Module, path: Path) -> None:
    """Write a model as safetensors."""
    alignkit.write_weights(path, model.state_dict())


def shell(line: str, code: int = 0, folder: Path | None = None) -> str:
    """Run a command; it and its output as Markdown, as a terminal of 80 columns shows them.

    Args:
        line: The command, ``alignkit ...``.
        code: The exit code that it has to end with.
        folder: Where to run it: by default, where the networks of the how-to pages are.

    Raises:
        RuntimeError: It ended with another one.
    """
    words = shlex.split(line)
    place = folder or networks()
    with contextlib.chdir(place), _modules_of_its_own(place):
        finished = CliRunner().invoke(app, words[1:], env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})
    if finished.exit_code != code:
        raise RuntimeError(f"{line} ended with {finished.exit_code}: {finished.output}")
    command = textwrap.wrap(f"$ {line}", 78, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    output = [part for row in finished.output.rstrip().splitlines() for part in textwrap.wrap(row, 80) or [""]]
    return "```console\n" + " \\\n".join(command) + "\n" + "\n".join(output) + "\n```\n"


@contextlib.contextmanager
def _modules_of_its_own(place: Path) -> Iterator[None]:
    """Import from a folder what is there, and forget it, as a process of its own would: others have the same names."""
    before = list(sys.path)
    others = {name: sys.modules.pop(name) for path in place.glob("*.py") if (name := path.stem) in sys.modules}
    try:
        yield
    finally:
        sys.path[:] = before
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").is_relative_to(place):
                del sys.modules[name]
        sys.modules.update(others)
        importlib.invalidate_caches()


def picture(path: str, description: str, folder: Path | None = None) -> str:
    """A PNG that a command wrote, as a picture that is part of the page."""
    data = base64.b64encode(((folder or networks()) / path).read_bytes()).decode()
    return f'<img alt="{description}" src="data:image/png;base64,{data}">\n'
