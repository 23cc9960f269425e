"""Make the data sets of networks of the experiments of [Navon24], at a scale that a laptop can train.

    python tests/benchmarks/paper/paper_data.py --folder SETS --data IDX [--only NAME ...]

IDX holds the folders mnist and fashion-mnist with their idx files. Sets that are complete are skipped, one that was cut
off goes on. MLPs see whole images of 28x28, the others and the many small MLPs images of 14x14, by average pooling.
``--tiny`` makes small sets of scikit-learn's digits and of sine waves under the same names, which show that the scripts
run and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import process_time

import measure
import torch
from data import is_complete

import alignkit.zoo as zoo

MIXED = (2 / 3, 1 / 12, 1 / 4)
MOSTLY_TRAIN = (0.85, 0.05, 0.1)
ONLY_TEST = (0.0, 0.0, 1.0)
NEARLY_ALL_TRAIN = (0.95, 0.02, 0.03)
MANY_TRAIN = (0.8, 0.1, 0.1)
FIRST_CLASSES = (0, 1, 2, 3, 4)
LAST_CLASSES = (5, 6, 7, 8, 9)
TINY_STEPS = 30


@dataclass(frozen=True)
class Wanted:
    """One data set.

    Attributes:
        architecture: What is trained.
        source: What is learnt.
        count: Networks in all.
        seed: Seed of the set.
        splits: Shares of train, validation and test.
        recipe: How networks are trained.
    """

    architecture: zoo.Architecture
    source: zoo.Source
    count: int
    seed: int
    splits: tuple[float, float, float]
    recipe: zoo.Recipe


MLP = zoo.architecture("mlp", widths=(128, 128, 128))
CNN = zoo.architecture("cnn", channels=(8, 16))
SIREN = zoo.architecture("siren", widths=(32, 32))
SMALL_CNN = zoo.architecture("cnn", channels=(4, 8))
SMALL_MLP = zoo.architecture("mlp", widths=(64, 64, 64))
MNIST, FASHION = zoo.source("mnist"), zoo.source("fashion-mnist")
SMALL_MNIST, SMALL_FASHION = zoo.source("mnist", size=14), zoo.source("fashion-mnist", size=14)
SPLIT_A = zoo.source("mnist", classes=FIRST_CLASSES, share=0.95)
SPLIT_B = zoo.source("mnist", classes=LAST_CLASSES, share=0.95)
DIGITS_AS_SIGNALS = zoo.SignalSource(images=zoo.ImageSource(name="mnist", size=14), views=2)
SIX_EPOCHS = zoo.Recipe(epochs=6, batch_size=256, learning_rate=4e-3, precision="bf16")
TWO_EPOCHS = zoo.Recipe(epochs=2, batch_size=256, learning_rate=4e-3, precision="bf16")
HALF_EPOCH = zoo.Recipe(steps=150, batch_size=256, learning_rate=4e-3, precision="bf16")
ONE_EPOCH = zoo.Recipe(epochs=1, batch_size=128, learning_rate=3e-3)
SIGNAL = zoo.Recipe(steps=1000, batch_size=196, learning_rate=3e-3)

SETS = {
    "mnist-mlp": Wanted(MLP, MNIST, 360, 500, MOSTLY_TRAIN, SIX_EPOCHS),
    "split-a": Wanted(MLP, SPLIT_A, 6, 501, ONLY_TEST, SIX_EPOCHS),
    "split-b": Wanted(MLP, SPLIT_B, 6, 502, ONLY_TEST, SIX_EPOCHS),
    "rotated-mlp": Wanted(MLP, zoo.source("mnist", rotate=45), 12, 503, ONLY_TEST, SIX_EPOCHS),
    "fashion-mlp": Wanted(MLP, FASHION, 240, 504, MOSTLY_TRAIN, SIX_EPOCHS),
    "sine-inr": Wanted(SIREN, zoo.source("sine"), 64, 505, MIXED, SIGNAL),
    "fashion-cnn": Wanted(CNN, SMALL_FASHION, 160, 506, MOSTLY_TRAIN, ONE_EPOCH),
    "image-inr": Wanted(SIREN, DIGITS_AS_SIGNALS, 96, 507, MIXED, SIGNAL),
    "many-mlp": Wanted(SMALL_MLP, SMALL_MNIST, 3200, 508, NEARLY_ALL_TRAIN, TWO_EPOCHS),
    "many-cnn": Wanted(SMALL_CNN, SMALL_MNIST, 640, 509, MANY_TRAIN, HALF_EPOCH),
}


def tiny(wanted: Wanted) -> Wanted:
    """A small set of the same kind that needs no files."""
    source = wanted.source
    images = zoo.ImageSource(name="digits")
    if isinstance(source, zoo.SignalSource):
        source = zoo.SignalSource(images=images, views=2)
    elif isinstance(source, zoo.ImageSource):
        source = images.model_copy(update={"rotate": source.rotate, "classes": source.classes, "share": source.share})
    smaller = {"widths": (8, 8)} if hasattr(wanted.architecture, "widths") else {"channels": (4, 4)}
    count, splits = (4, ONLY_TEST) if wanted.splits == ONLY_TEST else (12, MIXED)
    recipe = zoo.Recipe(steps=TINY_STEPS, learning_rate=wanted.recipe.learning_rate)
    return Wanted(wanted.architecture.model_copy(update=smaller), source, count, wanted.seed, splits, recipe)


def make(folder: Path, data: Path | None, names: list[str], *, small: bool = False) -> None:
    """Make sets, one folder each."""
    for name in names:
        wanted = tiny(SETS[name]) if small else SETS[name]
        if is_complete(folder / name):
            print(f"{name}: there already", flush=True)
            continue
        started = process_time()
        plan = zoo.plan_set(
            wanted.architecture,
            wanted.source,
            wanted.count,
            recipe=wanted.recipe,
            seed=wanted.seed,
            shard=24,
            shares=wanted.splits,
        )
        network_set = zoo.write_set(folder / name, plan, data=data)
        records = network_set.manifest.networks
        loss = sum(record.loss for record in records) / len(records)
        right = [record.accuracy for record in records if record.accuracy is not None]
        accuracy = f", accuracy {sum(right) / len(right):.4f}" if right else ""
        print(f"{name}: {process_time() - started:.0f} CPU s, test loss {loss:.2e}{accuracy}", flush=True)


def main() -> None:
    """Make all sets, or those that are named."""
    parser = measure.switches(__doc__)
    parser.add_argument("--only", nargs="*", choices=list(SETS), default=list(SETS), help="names of sets")
    parser.add_argument("--tiny", action="store_true", help="small sets of digits and waves")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make(arguments.folder, arguments.data, arguments.only, small=arguments.tiny)


if __name__ == "__main__":
    main()
