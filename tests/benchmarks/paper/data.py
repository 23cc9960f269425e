"""Make the data sets of networks that the universal aligner and domain aligners are trained and judged on.

    python tests/benchmarks/paper/data.py --folder SETS --data IDX [--device cuda] [--only NAME ...] [--domains]

IDX holds the folders mnist and fashion-mnist with their idx files. Sets that are complete are skipped, one that was cut
off goes on. Shapes of training come first; shapes held out have all their networks in the split "test". ``--domains``
makes the sets of domain aligners alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import measure
import torch

import alignkit.zoo as zoo
from alignkit.zoo.manifest import MANIFEST, read_manifest

IN_TRAINING = (0.7, 0.1, 0.2)
HELD_OUT = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Wanted:
    """One data set: a name, what is trained on what, and how many networks."""

    name: str
    architecture: zoo.Architecture
    source: zoo.Source
    count: int
    splits: tuple[float, float, float]
    recipe: zoo.Recipe | None = None
    seed: int | None = None


def mlp(*widths: int, activation: str = "relu") -> zoo.Architecture:
    """An MLP by its hidden widths."""
    return zoo.architecture("mlp", widths=widths, activation=activation)


SMALL = zoo.source("mnist", size=14)
FULL = zoo.source("mnist")
FASHION = zoo.source("fashion-mnist")
SINE = zoo.source("sine")

# Set so that all sets together take less than an hour on one idle core.
FAST = zoo.Recipe(epochs=4, batch_size=256, learning_rate=4e-3, precision="bf16")
CNN = zoo.Recipe(epochs=3, batch_size=128, learning_rate=5e-3)
CNN_MAX = zoo.Recipe(epochs=2, batch_size=64, learning_rate=5e-3)
SIREN = zoo.Recipe(steps=1000, batch_size=512, learning_rate=1e-3)
RESNET = zoo.Recipe(epochs=1, batch_size=64, learning_rate=1e-2)
VIT = zoo.Recipe(epochs=3, batch_size=128, learning_rate=5e-3, clip=1.0)
LSTM = zoo.Recipe(epochs=3, batch_size=128, learning_rate=1e-2, clip=1.0)

TRAINING = [
    Wanted("mlp-128x3", mlp(128, 128, 128), SMALL, 40, IN_TRAINING),
    Wanted("mlp-64x2", mlp(64, 64), SMALL, 40, IN_TRAINING),
    Wanted("mlp-256", mlp(256), SMALL, 40, IN_TRAINING),
    Wanted("mlp-32x4", mlp(32, 32, 32, 32), SMALL, 40, IN_TRAINING),
    Wanted("mlp-gelu-96x3", mlp(96, 96, 96, activation="gelu"), SMALL, 40, IN_TRAINING),
    Wanted("mlp-tanh-96x2", mlp(96, 96, activation="tanh"), SMALL, 40, IN_TRAINING),
    Wanted("cnn-16-32", zoo.Cnn(channels=(16, 32), pooling="stride"), SMALL, 40, IN_TRAINING, CNN),
    Wanted("cnn-8-16-dense-32", zoo.Cnn(channels=(8, 16), dense_widths=(32,)), SMALL, 40, IN_TRAINING, CNN_MAX),
    Wanted("siren-32x2", zoo.Siren(widths=(32, 32)), SINE, 80, IN_TRAINING, SIREN),
    Wanted("resnet-16", zoo.ResNet(width=16, stem_stride=2), SMALL, 40, IN_TRAINING, RESNET),
    Wanted("vit-32", zoo.Vit(dim=32, heads=4, depth=2, patch=7), SMALL, 40, IN_TRAINING, VIT),
]
HELD = [
    Wanted("mlp-96x4", mlp(96, 96, 96, 96), SMALL, 36, HELD_OUT, FAST),
    Wanted("mlp-192-48", mlp(192, 48), SMALL, 36, HELD_OUT, FAST),
    Wanted("mlp-256x2", mlp(256, 256), SMALL, 36, HELD_OUT, FAST),
    Wanted("mlp-48x6", mlp(48, 48, 48, 48, 48, 48), SMALL, 36, HELD_OUT, FAST),
    Wanted("mlp-gelu-80x3", mlp(80, 80, 80, activation="gelu"), SMALL, 36, HELD_OUT, FAST),
    Wanted("mlp-tanh-128x2", mlp(128, 128, activation="tanh"), SMALL, 36, HELD_OUT, FAST),
    Wanted("mlp-784-128x3", mlp(128, 128, 128), FULL, 36, HELD_OUT, FAST),
    Wanted("mlp-fashion-128x3", mlp(128, 128, 128), FASHION, 36, HELD_OUT, FAST),
    Wanted("cnn-12-24-24", zoo.Cnn(channels=(12, 24, 24), pooling="stride"), SMALL, 36, HELD_OUT, CNN),
    Wanted("siren-48x2", zoo.Siren(widths=(48, 48)), SINE, 36, HELD_OUT, SIREN),
    Wanted("vit-24", zoo.Vit(dim=24, heads=3, depth=2, patch=7), SMALL, 36, HELD_OUT, VIT),
    Wanted("resnet-12", zoo.ResNet(width=12, stem_stride=2), SMALL, 36, HELD_OUT, RESNET),
    Wanted("lstm-32", zoo.Lstm(hidden=32), SMALL, 36, HELD_OUT, LSTM),
]
# At omega 30 hidden units start at random high frequencies and stay there: no permutation brings two networks together.
# At omega 3 they move, and units of two views can be matched.
SLOW_SIREN = zoo.Recipe(steps=1000, batch_size=512, learning_rate=3e-3)
SLOW_WAVES = [
    Wanted("siren-omega3-32x2", zoo.Siren(widths=(32, 32), omega=3), SINE, 80, IN_TRAINING, SLOW_SIREN),
    Wanted("siren-omega3-48x2", zoo.Siren(widths=(48, 48), omega=3), SINE, 36, HELD_OUT, SLOW_SIREN),
]
ALL = [*TRAINING, *HELD, *SLOW_WAVES]

# Domain aligners learn from few small networks.
FEW = (0.6, 0.4, 0.0)
SIX_EPOCHS = zoo.Recipe(epochs=6, batch_size=256, learning_rate=4e-3, precision="bf16")
DOMAIN_SETS = [
    Wanted("domain-14-32x4", mlp(32, 32, 32, 32), SMALL, 20, FEW, FAST, 103),
    Wanted("domain-14-gelu-96x3", mlp(96, 96, 96, activation="gelu"), SMALL, 20, FEW, FAST, 104),
    Wanted("gpt-24", zoo.Gpt(dim=24, heads=3, depth=2), SMALL, 9, HELD_OUT, VIT, 831),
    Wanted("domain-28-64x3", mlp(64, 64, 64), FULL, 12, FEW, FAST, 801),
    Wanted("domain-28-gelu-96x2", mlp(96, 96, activation="gelu"), FULL, 12, FEW, FAST, 802),
    Wanted("domain-28-128x3", mlp(128, 128, 128), FULL, 12, HELD_OUT, SIX_EPOCHS, 813),
    Wanted("domain-fashion-64x3", mlp(64, 64, 64), FASHION, 12, FEW, FAST, 821),
    Wanted("domain-fashion-gelu-96x2", mlp(96, 96, activation="gelu"), FASHION, 12, FEW, FAST, 822),
]
DOMAINS = {
    "mnist 14x14": (
        ("mlp-128x3", "domain-14-32x4", "domain-14-gelu-96x3"),
        (
            "mlp-48x6",
            "mlp-tanh-128x2",
            "mlp-96x4",
            "mlp-192-48",
            "mlp-256x2",
            "mlp-gelu-80x3",
            "cnn-12-24-24",
            "vit-24",
            "gpt-24",
            "lstm-32",
            "resnet-12",
        ),
    ),
    "mnist 28x28": (
        ("domain-28-64x3", "domain-28-gelu-96x2"),
        ("domain-28-128x3", "mlp-784-128x3", "mlp-fashion-128x3"),
    ),
    "fashion-mnist 28x28": (("domain-fashion-64x3", "domain-fashion-gelu-96x2"), ("mlp-fashion-128x3",)),
}
"""For each domain the sets that its aligner is trained on, and those that it is judged on: of other shapes, other
families, and another data set whose images have the same shape."""

WANTED = {wanted.name: wanted for wanted in [*ALL, *DOMAIN_SETS]}
SEEDS = {name: 100 + at if wanted.seed is None else wanted.seed for at, (name, wanted) in enumerate(WANTED.items())}


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a data set with all its networks."""
    return (folder / MANIFEST).exists() and read_manifest(folder).complete


def main() -> None:
    """Make all sets, or those that are named."""
    parser = measure.switches(__doc__)
    parser.add_argument("--only", nargs="*", choices=list(WANTED), help="names of sets; all if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--domains", action="store_true", help="the sets of domain aligners")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    of_domains = {name for parts in DOMAINS.values() for names in parts for name in names}
    names = arguments.only or (of_domains if arguments.domains else WANTED)
    for wanted in WANTED.values():
        if wanted.name not in names:
            continue
        folder = arguments.folder / wanted.name
        if is_complete(folder):
            print(f"{wanted.name}: there already", flush=True)
            continue
        started = perf_counter()
        plan = zoo.plan_set(
            wanted.architecture,
            wanted.source,
            wanted.count,
            recipe=wanted.recipe,
            seed=SEEDS[wanted.name],
            shard=20,
            shares=wanted.splits,
        )
        network_set = zoo.write_set(folder, plan, data=arguments.data, device=arguments.device)
        records = network_set.manifest.networks
        loss = sum(record.loss for record in records) / len(records)
        right = [record.accuracy for record in records if record.accuracy is not None]
        accuracy = f", accuracy {sum(right) / len(right):.4f}" if right else ""
        print(f"{wanted.name}: {perf_counter() - started:.0f} s, test loss {loss:.2e}{accuracy}", flush=True)


if __name__ == "__main__":
    main()
