"""How much of the gap to the parents REPAIR closes: a VGG without BatchNorm on MNIST, aligned by each solver, averaged.

Run ``ALIGNKIT_DATA=<folder with mnist/> python tests/benchmarks/bench_repair.py``; training takes some minutes once.
"""

from __future__ import annotations

import time

import safetensors.torch
import torch
from torch import nn

from alignkit import Task, builders, solve
from alignkit.jobs.average import average
from alignkit.jobs.repair import repair
from networks import CACHE, mnist

SAMPLES, EPOCHS = 12_000, 3


def images(part: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images ``[count, 1, 28, 28]`` of a part of MNIST, and their labels."""
    pixels, labels = mnist(part)
    return pixels[:count].reshape(-1, 1, 28, 28), labels[:count]


def vgg(width: int = 16) -> nn.Sequential:
    """Six convolutions in three stages and two linear layers, without norms."""
    layers: list[nn.Module] = []
    channels = 1
    for stage in (width, 2 * width, 4 * width):
        for _ in range(2):
            layers += [nn.Conv2d(channels, stage, 3, padding=1), nn.ReLU()]
            channels = stage
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * channels, 64), nn.ReLU(), nn.Linear(64, 10))


def trained(seed: int) -> nn.Sequential:
    """A VGG trained with Adam (learning rate 1e-3, batches of 100); read back when trained before."""
    torch.manual_seed(seed)
    model = vgg()
    path = CACHE / f"mnist-vgg-{SAMPLES}-{EPOCHS}-{seed}.safetensors"
    if path.exists():
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    pixels, labels = images("train", SAMPLES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for index in torch.randperm(SAMPLES).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels[index]), labels[index]).backward()
            optimizer.step()
    CACHE.mkdir(exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), path)
    return model.eval()


def main() -> None:
    """Print one line for each solver."""
    a, b = trained(0), trained(1)
    test = Task(a, images("t10k", 10_000), "cross_entropy", "accuracy")
    data = Task(a, images("train", 2000), "cross_entropy", chunk=250)
    ends = [test.evaluate(model) for model in (a, b)]
    loss, accuracy = sum(e.loss for e in ends) / 2, sum(float(e.metric or 0) for e in ends) / 2
    print(f"parents: accuracy {accuracy:.4f}, loss {loss:.4f}")
    for solver in ("identity", "weight_matching", "activation_matching"):
        aligned = solve(builders.cnn(a).bind(a, b), solver=solver, task=data).apply(b)
        merged = average([a, aligned])
        start = time.process_time()
        fixed = repair(merged, [a, aligned], data)
        seconds = time.process_time() - start
        before, after = test.evaluate(merged), test.evaluate(fixed)
        closed = (after.metric - before.metric) / (accuracy - before.metric)  # type: ignore[operator]
        closed_loss = (before.loss - after.loss) / (before.loss - loss)
        print(
            f"{solver:20} merged {before.metric:.4f} {before.loss:.4f}  repaired {after.metric:.4f} {after.loss:.4f}  "
            f"gap closed {closed:.0%} of accuracy, {closed_loss:.0%} of loss, {seconds:.1f} CPU s"
        )


if __name__ == "__main__":
    main()
