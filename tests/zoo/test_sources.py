"""Sources of network data sets: idx files, class splits, pooling, rotation and signals."""

from __future__ import annotations

import gzip
import math
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch

import alignkit.zoo as zoo
from alignkit.errors import ZooError
from alignkit.zoo.idx import read_images


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = header + values.to(torch.uint8).numpy().tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_data(folder: Path, count: int = 200, suffix: str = ".gz") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 28, 28), generator=generator)
    labels = torch.arange(count) % 10
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return images, labels


@pytest.mark.parametrize("inside", [True, False], ids=["folder of folders", "folder itself"])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_files_are_found_and_read(tmp_path: Path, inside: bool, suffix: str) -> None:
    images, labels = write_data(tmp_path / "mnist" if inside else tmp_path, suffix=suffix)
    found, classes = read_images("mnist", tmp_path, "test")
    assert found.shape == (200, 1, 28, 28)
    assert torch.equal((found[:, 0] * 255).round().long(), images)
    assert torch.equal(classes, labels)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_data(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        ZooError, match=r"mnist: the file t10k-labels-idx1-ubyte.gz is missing. Looked for .*mnist/t10k"
    ):
        zoo.source("mnist").load(tmp_path, "test")
    with pytest.raises(ZooError, match="There is no folder"):
        zoo.source("mnist").load(tmp_path / "nowhere")
    with pytest.raises(ZooError, match="give the folder that holds train-images-idx3-ubyte"):
        zoo.source("mnist").load()


def test_files_of_another_data_set_are_not_taken(tmp_path: Path) -> None:
    write_data(tmp_path / "fashion-mnist")
    with pytest.raises(ZooError, match="mnist: the file train-images"):
        zoo.source("mnist").load(tmp_path / "fashion-mnist")


@pytest.mark.parametrize("damage", ["cut", "magic", "gzip", "short gzip"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    write_data(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    raw = gzip.decompress(path.read_bytes())
    packed = path.read_bytes()
    changed = {
        "cut": gzip.compress(raw[:-5]),
        "magic": gzip.compress(b"\1" + raw[1:]),
        "gzip": raw,
        "short gzip": packed[: len(packed) // 2],
    }
    path.write_bytes(changed[damage])
    with pytest.raises(ZooError, match=r"train-images-idx3-ubyte\.gz"):
        zoo.source("mnist").load(tmp_path)


def test_images_are_pooled_and_normalised(tmp_path: Path) -> None:
    images, _ = write_data(tmp_path)
    small, _ = zoo.source("mnist", size=14).load(tmp_path)
    assert small.shape == (200, 1, 14, 14)
    mean = images[0, 4:6, 8:10].float().mean() / 255
    assert math.isclose(float(small[0, 0, 2, 4]), (float(mean) - 0.1307) / 0.3081, rel_tol=1e-5)


def test_class_splits_with_one_share_are_disjoint_and_complete(tmp_path: Path) -> None:
    write_data(tmp_path, count=400)
    first = zoo.source("mnist", classes=(4, 3, 2, 1, 0), share=0.95)
    second = zoo.source("mnist", classes=(5, 6, 7, 8, 9), share=0.95)
    (a, a_labels), (b, b_labels) = first.load(tmp_path), second.load(tmp_path)
    rows_a, rows_b = ({row.numpy().tobytes() for row in images} for images in (a, b))
    assert not rows_a & rows_b
    assert len(rows_a | rows_b) == 400
    assert (a_labels < 5).sum() == 190 and (a_labels >= 5).sum() == 10
    assert (b_labels < 5).sum() == 10
    assert len(first.load(tmp_path, "test")[1]) == 400


def test_a_class_subset_holds_these_classes_only(tmp_path: Path) -> None:
    write_data(tmp_path)
    for split in ("train", "test"):
        assert set(zoo.source("mnist", classes=(1, 7)).load(tmp_path, split)[1].tolist()) == {1, 7}


def test_every_image_is_turned_by_its_own_angle_always_the_same() -> None:
    upright, turned = zoo.source("digits"), zoo.source("digits", rotate=45)
    images = turned.load()[0]
    assert images.shape == upright.load()[0].shape
    assert not torch.allclose(images, upright.load()[0], atol=0.1)
    assert torch.equal(images, zoo.source("digits", rotate=45).load()[0])


def test_the_digits_need_no_folder_and_splits_do_not_overlap() -> None:
    (train, _), (test, labels) = (zoo.source("digits").load(split=split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert labels.unique().tolist() == list(range(10))


def test_views_of_a_wave_share_their_target() -> None:
    waves = zoo.source("sine", views=2, points=64)
    assert [waves.target(index) for index in range(4)] == [0, 0, 1, 1]
    data = waves.data(None, "train", [0, 0, 1], seed=5)
    assert torch.equal(data.targets[0], data.targets[1])
    assert not torch.allclose(data.targets[0], data.targets[2])
    assert torch.allclose(data.targets[2], torch.sin(waves.frequency(1, 5) * data.inputs), atol=1e-5)
    assert 0.5 <= waves.frequency(1, 5) <= 10


def test_an_image_is_a_function_of_its_coordinates() -> None:
    signals = zoo.source("image-inr", images={"name": "digits"})
    data = signals.data(None, "train", [0, 3], seed=0)
    assert data.inputs.shape == (64, 2) and data.targets.shape == (2, 64, 1)
    rows = data.targets[:, :, 0].unflatten(1, (8, 8))
    images = zoo.source("digits").load()[0][:, 0]
    assert all(any(torch.equal(row, image) for image in images) for row in rows)
    with pytest.raises(ZooError, match="too few for 2000 signals"):
        signals.data(None, "train", [1999], seed=0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("minst", {}, "minst"),
        ("mnist", {"size": 13}, "size 13 does not divide 28"),
        ("mnist", {"share": 0.9}, "share needs classes"),
        ("mnist", {"classes": (10,)}, "classes"),
        ("mnist", {"views": 2}, "views"),
        ("sine", {"views": 0}, "views"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(name: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        zoo.source(name, **fields)


@pytest.mark.parametrize("sizes", [(1 << 20, 1 << 10, 1 << 10), (-1, 28, 28), (0, 28, 28), (3, 28, 28), (1, 28, 28)])
def test_packed_images_are_unpacked_only_as_far_as_they_say(tmp_path: Path, sizes: tuple[int, int, int]) -> None:
    write_data(tmp_path)
    packed = gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3i", *sizes) + bytes(100_000_000))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(packed)
    tracemalloc.start()
    try:
        with pytest.raises(ZooError, match="cut off, damaged or too large"):
            read_images("mnist", tmp_path, "test")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
