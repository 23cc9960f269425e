"""`--task` with data sets as torchvision and the library `datasets` lay them out."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import alignkit
from alignkit import write_weights
from helpers.command_line import run
from helpers.weight_files import A, B

SOLVER = ("--solver", "activation_matching")
NETS = """
from torch import nn
import torch

def image():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)), torch.rand(2, 1, 8, 8)

def colour():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)), torch.rand(2, 3, 8, 8)

def flat():
    return nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)), torch.rand(2, 64)

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)), torch.rand(2, 8, 8)

def larger():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, 3)), torch.rand(2, 1, 9, 9)
"""
PIXELS = torch.randint(256, (24, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(24) % 3


@pytest.fixture
def nets(folder):
    """A module of networks for small images, and weights of each of them."""
    (folder / "set_nets.py").write_text(NETS)
    import set_nets

    for name in ("image", "colour", "flat", "plain", "larger"):
        for seed in "ab":
            torch.manual_seed(ord(seed))
            write_weights(f"{name}-{seed}.safetensors", getattr(set_nets, name)()[0].state_dict())
    yield folder
    sys.modules.pop("set_nets", None)


def write_idx(folder, prefix="train", pack=True, pixels=PIXELS, classes=CLASSES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", classes.byte())):
        head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape)
        data = head + array.numpy().tobytes()
        suffix, data = (".gz", gzip.compress(data)) if pack else ("", data)
        (folder / f"{prefix}-{name}{suffix}").write_bytes(data)


def merge(net, task, code=0):
    sides = [f"{net}-{seed}.safetensors" for seed in "ab"]
    call = ["merge", *sides, "-o", "m.safetensors", "--force", "--model", f"set_nets:{net}", "--task", task]
    said = run(*call, *SOLVER, *([] if code else ["--json"]), code=code)
    return said if code else json.loads(said)["task"]


def task_of(net, path):
    return alignkit.open_networks(f"{net}-a.safetensors", model=f"set_nets:{net}").task(str(path))


LAYOUTS = {
    "the folder": ("data", "data"),
    "raw": ("data/MNIST/raw", "data/MNIST/raw"),
    "above raw": ("data/MNIST/raw", "data/MNIST"),
    "as torchvision is told": ("data/MNIST/raw", "data"),
    "as plan_set is told": ("data/mnist", "data"),
}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_in_idx_layout_are_a_task_wherever_they_lie(nets, layout, pack):
    at, named = LAYOUTS[layout]
    write_idx(Path(at), pack=pack)
    write_idx(Path(at), "t10k", pack, PIXELS[:6], CLASSES[:6])
    assert "accuracy" in json.dumps(merge("image", named))
    inputs = torch.cat([batch.inputs for batch in task_of("image", named).batches])
    assert torch.equal(inputs, PIXELS[:, None] / 255)


@pytest.mark.parametrize(
    ("net", "shape"), [("image", (1, 8, 8)), ("colour", (3, 8, 8)), ("flat", (64,)), ("plain", (8, 8))]
)
def test_images_have_the_form_of_the_models_inputs(nets, net, shape):
    write_idx(Path("data"))
    batch = next(iter(task_of(net, "data").batches))
    assert batch.inputs.shape[1:] == shape
    assert torch.equal(batch.targets, CLASSES[: len(batch.targets)])
    merge(net, "data")


def test_one_file_names_its_split(nets):
    write_idx(Path("data"))
    write_idx(Path("data"), "t10k", True, PIXELS[:6], CLASSES[:6])
    batches = task_of("image", "data/t10k-images-idx3-ubyte.gz").batches
    assert sum(len(batch.inputs) for batch in batches) == 6


def spoil(way):
    write_idx(Path("data"))
    images, labels = Path("data/train-images-idx3-ubyte.gz"), Path("data/train-labels-idx1-ubyte.gz")
    if way == "no labels":
        labels.unlink()
    elif way == "fewer labels":
        write_idx(Path("data"), classes=CLASSES[:5])
    elif way == "broken":
        images.write_bytes(b"nothing that is packed")
    elif way == "other bytes":
        images.write_bytes(gzip.compress(b"some text that is no array"))
    elif way == "cut":
        images.write_bytes(gzip.compress(gzip.decompress(images.read_bytes())[:-1]))
    elif way == "two sets":
        write_idx(Path("data/mnist"))


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("no labels", "train-labels-idx1-ubyte.gz cannot be read"),
        ("fewer labels", "has 24 images, and train-labels-idx1-ubyte.gz has 5 labels"),
        ("broken", "cannot be read"),
        ("other bytes", "is not an idx file of bytes with 3 axes"),
        ("cut", "is cut off, damaged or too large"),
        ("two sets", "holds several data sets: name one of data, data/mnist"),
    ],
)
def test_damaged_images_are_refused(nets, way, said):
    spoil(way)
    assert said in merge("image", "data", code=1)


def test_images_of_another_size_are_refused(nets):
    write_idx(Path("data"))
    assert "has 8 x 8 pixels, and the model's example 9 x 9" in merge("larger", "data", code=1)


# ---------------------------------------------------------------------- the library datasets

NUMBERS = {"inputs": torch.randn(24, 4).tolist(), "label": CLASSES.tolist()}
MERGE = ["merge", A, B, "-o", "out.safetensors", "--force", "--model", "job_nets:net", *SOLVER]


def save(rows, form):
    """Save a data set in one of the forms in which people have them; return what they would name."""
    import datasets

    if form == "saved":
        rows.save_to_disk("set")
    elif form == "splits":
        datasets.DatasetDict({"train": rows, "test": rows.select(range(6))}).save_to_disk("set")
    elif form == "one split":
        datasets.DatasetDict({"validation": rows}).save_to_disk("set")
    elif form == "arrow file":
        rows.save_to_disk("set")
        return str(next(Path("set").glob("*.arrow")))
    elif form == "parquet file":
        rows.to_parquet("set.parquet")
        return "set.parquet"
    else:
        place = Path("set/data" if form == "of the hub" else "set")
        place.mkdir(parents=True)
        rows.select(range(12)).to_parquet(place / "train-00000-of-00002.parquet")
        rows.select(range(12, len(rows))).to_parquet(place / "train-00001-of-00002.parquet")
        rows.select(range(6)).to_parquet(place / "test-00000-of-00001.parquet")
    return "set"


FORMS = ("saved", "splits", "one split", "arrow file", "parquet file", "parquet folder", "of the hub")


@pytest.mark.models("datasets")
@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_a_data_set_are_a_table(folder, form):
    import datasets

    named = save(datasets.Dataset.from_dict(NUMBERS), form)
    np.savez("same.npz", inputs=np.asarray(NUMBERS["inputs"], np.float32), label=np.asarray(NUMBERS["label"]))
    losses = [json.loads(run(*MERGE, "--task", task, "--json"))["task"] for task in (named, "same.npz")]
    assert losses[0] == losses[1]


@pytest.mark.models("datasets")
@pytest.mark.parametrize("form", FORMS)
def test_images_of_a_data_set_are_those_of_a_folder(nets, form):
    import datasets
    from PIL import Image

    rows = {"image": [Image.fromarray(pixels.numpy()) for pixels in PIXELS], "label": CLASSES.tolist()}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])}
    named = save(datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)), form)
    task = task_of("image", named)
    inputs, targets = (torch.cat([getattr(b, which) for b in task.batches]) for which in ("inputs", "targets"))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(inputs, PIXELS[order, None] / 255)
    assert torch.equal(targets, CLASSES[order])
    merge("image", named)


@pytest.mark.models("datasets")
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"inputs": [[1.0, 2, 3, 4], [1.0]], "label": [0, 1]}, "'inputs' of the data set set has rows of different"),
        ({"inputs": [[1.0, 2, 3, 4]] * 2, "label": ["cat", "dog"]}, "'label' of the data set set has something else"),
        ({"numbers": [[1.0, 2, 3, 4]] * 2}, "the data set set holds numbers. Give package.module:function"),
        ({"text": ["some words", "more words"]}, "--task set: a text needs folders of a language model"),
    ],
)
def test_data_sets_that_are_no_task_are_refused(folder, columns, said):
    import datasets

    datasets.Dataset.from_dict(columns).save_to_disk("set")
    assert said in run(*MERGE, "--task", "set", code=1)


@pytest.mark.models("datasets")
def test_splits_without_training_data_have_to_be_named(folder):
    import datasets

    rows = datasets.Dataset.from_dict(NUMBERS)
    datasets.DatasetDict({"test": rows, "validation": rows}).save_to_disk("set")
    assert "holds the splits test, validation: name the folder" in run(*MERGE, "--task", "set", code=1)
    run(*MERGE, "--task", "set/test")


@pytest.mark.models("datasets")
@pytest.mark.parametrize("name", ["set.parquet", "set.arrow", "set"])
def test_damaged_data_sets_are_refused(folder, name):
    if name == "set":
        Path("set").mkdir()
        Path("set/state.json").write_text("{")
    else:
        Path(name).write_bytes(b"no rows")
    assert f"the data set {name} cannot be read" in run(*MERGE, "--task", name, code=1)


@pytest.mark.parametrize("name", ["set.parquet", "set.arrow", "set", "splits", "rows"])
def test_a_missing_library_is_told(folder, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "datasets", None)
    inside = {"set": "set/state.json", "splits": "splits/dataset_dict.json", "rows": "rows/0.parquet"}
    path = Path(inside.get(name, name))
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    told = run(*MERGE, "--task", name, code=1)
    assert f"--task {name} is a data set of the library datasets" in told and "alignkit[data]" in told


# ---------------------------------------------------------------------- texts


@pytest.fixture
def language_models(transformers_folders):
    from tokenizers import Tokenizer, models, pre_tokenizers

    for name in ("a", "b"):
        words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.save(str(transformers_folders / name / "tokenizer.json"))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (transformers_folders / name / "tokenizer_config.json").write_text(json.dumps(kind))
    return transformers_folders


WORDS = "a b ? b a " * 20


@pytest.mark.models("transformers")
@pytest.mark.parametrize("names", [["one.txt"], ["one.md"], ["in/one.md"], ["in/one.txt", "in/two.md"]])
def test_texts_are_those_of_txt_and_md_files_alone_and_in_folders(language_models, names):
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(WORDS)
    named = names[0].partition("/")[0]
    Path("all.txt").write_text("\n\n".join([WORDS] * len(names)))
    losses = [
        json.loads(run("merge", "a", "b", "-o", "m", "--force", "--task", task, *SOLVER, "--json"))["task"]
        for task in (named, "all.txt")
    ]
    assert losses[0] == losses[1]


@pytest.mark.models("datasets")
@pytest.mark.models("transformers")
@pytest.mark.parametrize("form", ["saved", "of the hub"])
def test_texts_of_a_data_set_are_those_of_a_file(language_models, form):
    import datasets

    named = save(datasets.Dataset.from_dict({"text": [WORDS] * 14}), form)
    Path("all.txt").write_text("\n\n".join([WORDS] * 14))
    losses = [
        json.loads(run("merge", "a", "b", "-o", "m", "--force", "--task", task, *SOLVER, "--json"))["task"]
        for task in (named, "all.txt")
    ]
    assert losses[0] == losses[1]
