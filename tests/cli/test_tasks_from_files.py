"""`--task` with files of data, in every command that has it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import alignkit
from alignkit import write_weights
from alignkit.jobs.task_tables import read_table
from helpers.command_line import run
from helpers.weight_files import GIVEN, TUNED, A, B, C

MODEL = ("--model", "job_nets:net")
SOLVER = ("--solver", "activation_matching")
CALLS = {
    "solve": ["solve", A, B, "-o", "out.safetensors", *SOLVER],
    "distance": ["distance", A, B, *SOLVER],
    "merge": ["merge", A, B, "-o", "out.safetensors", *SOLVER],
    "merge three": ["merge", A, B, C, "-o", "out.safetensors", *SOLVER],
    "transport": ["transport", A, TUNED, B, "-o", "out.safetensors", *SOLVER],
    "align-many": ["align-many", A, B, C, "-o", "out", *SOLVER],
    "compare": ["compare", A, B, "--solver", "activation_matching"],
    "canonicalize": ["canonicalize", A, B, C, "-o", "out", *SOLVER],
}
REGRESSION = {"inputs": torch.randn(24, 4), "targets": torch.randn(24, 3)}
TABLES = {
    "numbers.npz": REGRESSION,
    "numbers.safetensors": {"x": REGRESSION["inputs"], "y": REGRESSION["targets"]},
    "classes.pt": {"images": torch.randn(24, 4), "labels": torch.randint(3, (24,))},
    "classes.csv": {"inputs": torch.randn(24, 4), "target": torch.randint(3, (24,))},
    "classes.tsv": {"inputs": torch.randn(24, 4), "y": torch.randint(3, (24,))},
    "fields.npy": {"x": torch.randn(24, 4), "y": torch.randint(3, (24,))},
    "columns": REGRESSION,
}


def write_table(name, table):
    arrays = {key: tensor.numpy() for key, tensor in table.items()}
    if name.endswith(".npz"):
        np.savez(name, **arrays)
    elif name.endswith(".npy"):
        fields = [(key, array.dtype, array.shape[1:]) for key, array in arrays.items()]
        whole = np.empty(24, fields)
        for key, array in arrays.items():
            whole[key] = array
        np.save(name, whole)
    elif name.endswith((".csv", ".tsv")):
        mark = "," if name.endswith(".csv") else "\t"
        columns = [(f"{key}{i}" if array.ndim > 1 else key, column) for key, array in arrays.items()
                   for i, column in enumerate(array.T if array.ndim > 1 else [array])]  # fmt: skip
        lines = [[key for key, _ in columns], *zip(*(map(str, column.tolist()) for _, column in columns), strict=True)]
        Path(name).write_text("\n".join(map(mark.join, lines)))
    elif "." not in name:
        Path(name).mkdir()
        for key, array in arrays.items():
            np.save(Path(name, key), array)
    else:
        write_weights(name, table)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("call", CALLS)
def test_solvers_that_need_data_run_on_a_table(folder, call, table):
    write_table(table, TABLES[table])
    run(*CALLS[call], *MODEL, "--task", table)


def test_losses_are_those_of_the_table(folder):
    write_table("classes.pt", TABLES["classes.pt"])
    task = json.loads(run(*CALLS["merge"], *MODEL, "--task", "classes.pt", "--json"))["task"]
    assert "accuracy" in json.dumps(task)


WRONG = {
    "words.npz": ({"words": torch.zeros(3)}, "holds words. Give package.module:function"),
    "empty.xlsx": (b"1,2", "is of no known kind. Give"),
    "empty.csv": (b"", "needs a first line with the name of each column"),
    "nameless.csv": (b"1,2\n3,4\n", "needs a first line with the name of each column"),
    "no-targets.csv": (b"a,b\n3,4\n", "one of them targets, y, labels"),
    "only-names.csv": (b"a,b,target\n", "and numbers below it"),
    "twice.csv": (b"a,a,target\n1,2,0\n", "needs a first line"),
    "short.csv": (b"a,b,target\n1,2,0\n1,2\n", "has 2 values in row 3, and 3 columns"),
    "words.csv": (b"a,b,c,d,target\n1,2,3,4,0\n1,blue,3,4,1\n", "holds 'blue' in row 3, column b: no number"),
    "gap.csv": (b"a,target\n1,\n", "holds '' in row 2, column target"),
    "infinite.csv": (b"a,target\ninf,1\n", "holds 'inf' in row 2, column a"),
    "binary.csv": (b"\xff\xfe\x00", "cannot be read"),
    "broken.npy": (b"no array", "cannot be read"),
    "broken.npz": (b"no archive", "cannot be read"),
    "text.txt": (b"some words", "needs folders of a language model"),
    "folder": ("folder", "is a folder that holds no data that are known. Give"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_task_is_refused_with_what_to_give(folder, name):
    content, said = WRONG[name]
    if content == "folder":
        (folder / name).mkdir()
    elif isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif content is not None:
        write_table(name, content)
    assert said in run(*CALLS["merge"], *MODEL, "--task", name, code=1)
    assert not (folder / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["nothing.npz", "job_nets:nothing", "no_module:task", "task"])
@pytest.mark.parametrize("call", CALLS)
def test_a_name_that_names_nothing_is_wrong_use(folder, call, name):
    said = run(*CALLS[call], *MODEL, "--task", name, code=2)
    assert "there is no such file" in said or "names no function" in said
    assert not (folder / "out.safetensors").exists()


def test_one_array_says_how_to_save_two(folder):
    np.save("one.npy", np.zeros((3, 5)))
    assert "np.savez" in run(*CALLS["merge"], *MODEL, "--task", "one.npy", code=1)


def test_two_kinds_in_one_folder_are_refused(folder):
    write_table("both", REGRESSION)
    (folder / "both" / "words.txt").write_text("some words")
    assert "holds arrays (.npy) and texts" in run(*CALLS["merge"], *MODEL, "--task", "both", code=1)


def loss_of(name):
    """The loss of A, as a merge tells it."""
    said = json.loads(run(*CALLS["merge"], *MODEL, "--task", name, "--json", "--force"))
    return said["task"]


def test_all_forms_of_a_table_are_the_same_task(folder):
    table = {"inputs": torch.randn(24, 4), "targets": torch.randint(3, (24,))}
    names = ["t.npz", "t.npy", "t.csv", "t.tsv", "t.safetensors", "t.pt", "t"]
    for name in names:
        write_table(name, table)
    losses = [loss_of(name) for name in names]
    assert all(loss == losses[0] for loss in losses)


def test_targets_with_a_decimal_point_are_numbers(folder):
    (folder / "t.csv").write_text("a,b,target\n1,2,0.0\n3,4,1.0\n")
    table = read_table(folder / "t.csv")
    assert table["targets"].tolist() == [[0.0], [1.0]]
    assert table["inputs"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    (folder / "t.csv").write_text("a,b,target\n1,2,0\n3,4,1\n")
    assert read_table(folder / "t.csv")["targets"].tolist() == [0, 1]


def test_a_spec_cannot_be_run_on_a_table(folder):
    write_table("numbers.npz", REGRESSION)
    assert "say --model" in run(*CALLS["merge"], *GIVEN, "--task", "numbers.npz", code=2)


@pytest.mark.models("transformers")
def test_folders_of_language_models_take_a_text(transformers_folders):
    from tokenizers import Tokenizer, models, pre_tokenizers

    for name in ("a", "b"):
        words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.save(str(transformers_folders / name / "tokenizer.json"))
        (transformers_folders / name / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
        )
    (transformers_folders / "text.txt").write_text("a b ? b a " * 20)
    said = json.loads(
        run("merge", "a", "b", "-o", "m", "--task", "text.txt", "--solver", "activation_matching", "--json")
    )
    assert said["task"]
    (transformers_folders / "short.txt").write_text("a b")
    assert "give a longer text" in run("merge", "a", "b", "-o", "n", "--task", "short.txt", code=1)


SOLVERS = sorted(alignkit.list_solvers())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("call", CALLS)
def test_every_solver_runs_from_every_command_with_data(folder, call, solver):
    write_table("classes.npz", TABLES["classes.pt"])
    line = [solver if word == "activation_matching" else word for word in CALLS[call]]
    steps = ["--option", "max_steps=2"] if solver in ("sinkhorn", "straight_through") else []
    run(*line, *MODEL, "--task", "classes.npz", *steps)


IMAGES = """
from torch import nn
import torch

def net():
    layers = nn.Conv2d({channels}, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)
    return nn.Sequential(*layers), torch.rand(2, {channels}, 8, 8)
"""


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def image_folder(folder, request):
    """Networks for images, and a folder of images of three classes."""
    from PIL import Image

    (folder / "image_nets.py").write_text(IMAGES.format(channels=request.param))
    dice = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(dice.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(f"pets/{name}/{number}.png")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        layers = nn.Conv2d(request.param, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)
        write_weights(f"image-{name}.safetensors", nn.Sequential(*layers).state_dict())
    yield folder
    sys.modules.pop("image_nets", None)


MERGE_IMAGES = [
    "merge",
    "image-a.safetensors",
    "image-b.safetensors",
    "-o",
    "m.safetensors",
    "--model",
    "image_nets:net",
]


def test_a_folder_of_images_is_a_task(image_folder):
    said = json.loads(run(*MERGE_IMAGES, "--task", "pets", *SOLVER, "--json"))
    assert "accuracy" in json.dumps(said["task"])


def test_images_are_those_of_the_files(image_folder):
    from PIL import Image

    files = alignkit.open_networks("image-a.safetensors", model="image_nets:net")
    inputs, labels = next(iter(files.task("pets").batches)).inputs, next(iter(files.task("pets").batches)).targets
    assert labels.bincount().tolist() == [4, 4, 4]
    channels = inputs.shape[1]
    wanted = np.asarray(Image.open("pets/dog/2.png").convert("L" if channels == 1 else "RGB")).reshape(8, 8, channels)
    same = [torch.equal((image * 255).round().permute(1, 2, 0), torch.tensor(wanted).float()) for image in inputs]
    assert same.count(True) == 1
    assert labels[same.index(True)] == 1


def spoil(folder, way):
    from PIL import Image

    if way == "size":
        Image.new("RGB", (9, 8)).save(folder / "pets/dog/9.png")
    elif way == "broken":
        (folder / "pets/dog/9.png").write_bytes(b"no image")
    elif way == "empty class":
        (folder / "pets/zebra").mkdir()
    else:
        (folder / "pets").rename(folder / "train")
        (folder / "pets").mkdir()
        (folder / "train").rename(folder / "pets/train")


SPOILT = {
    "size": "has 9 x 8 pixels, and the model's example 8 x 8",
    "broken": "9.png cannot be read",
    "empty class": "the class 'zebra' has no image",
    "one folder up": "holds no data that are known",
}


@pytest.mark.parametrize("way", SPOILT)
def test_images_that_cannot_be_used_are_refused(image_folder, way):
    spoil(image_folder, way)
    assert SPOILT[way] in run(*MERGE_IMAGES, "--task", "pets", *SOLVER, code=1)
    assert not (image_folder / "m.safetensors").exists()


def test_models_that_take_no_images_refuse_a_folder_of_them(image_folder):
    assert "holds no images" in run(*CALLS["merge"], *MODEL, "--task", "pets", code=1)
