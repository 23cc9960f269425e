"""Images with the numbers of their classes, as batches for a model: folders of files, rows of a data set, idx files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import MissingExtraError, TaskError
from alignkit.models import Example
from alignkit.models.side_files import PREPROCESSING
from alignkit.tasks.idx import read_idx
from alignkit.text import describe_error, install_extra, list_some

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ROWS = 32
"""Images of a batch."""
MODES = {1: "L", 3: "RGB"}
"""What Pillow calls images of one channel and of three."""
IDX_IMAGES, IDX_LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
"""Ends of the names of files of images, and of the labels beside them; ``.gz`` may follow."""


def image_classes(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class, which are the folders in a folder; empty where none holds images."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    found = {path.name: [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES] for path in folders}
    return found if any(found.values()) else {}


class ImageBatches(Sequence[Any]):
    """Batches of images and of the numbers of their classes, read when they are asked for, in a shuffled order.

    Where the folder of the model says how images are prepared, transformers does so, and batches are dicts of
    ``pixel_values`` and ``labels``. Else pixels are divided by 255, and images have to be as large as the example.

    Args:
        images: What messages call each image, and the number of its class.
        read: Returns an image of Pillow, given its place among ``images``.
        example: The model with an example call, whose size images need.
        folder: Folder of the model; None where there is none.

    Raises:
        TaskError: The model takes no images.
        MissingExtraError: transformers is missing.
    """

    def __init__(
        self, images: Sequence[tuple[str, int]], read: Callable[[int], Any], example: Example, folder: Path | None
    ) -> None:
        self._images, self._open = images, read
        # Shuffled, so that a part of the batches has all classes.
        self._order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        self._processor = None
        if folder is not None and any((folder / name).exists() for name in PREPROCESSING):
            self._processor = _processor_of(folder)
        self._shape = _image_shape(example)

    def __len__(self) -> int:
        return -(-len(self._images) // ROWS)

    def __getitem__(self, index: Any) -> Any:
        """Return one batch."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        chosen = self._order[index * ROWS : (index + 1) * ROWS]
        labels = torch.tensor([self._images[at][1] for at in chosen])
        if self._processor is None:
            return torch.stack([self._pixels(at) for at in chosen]), labels
        images = [self._read(at, MODES[3]) for at in chosen]
        return {"pixel_values": self._processor(images, return_tensors="pt")["pixel_values"], "labels": labels}

    @property
    def is_prepared(self) -> bool:
        """Whether transformers prepares the images, and batches are dicts."""
        return self._processor is not None

    def _pixels(self, at: int) -> Tensor:
        channels, height, width = self._shape
        image = self._read(at, MODES[channels])
        _check_size(self._images[at][0], image.size[::-1], (height, width))
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return values.reshape(height, width, channels).permute(2, 0, 1).float() / 255

    def _read(self, at: int, mode: str) -> Any:
        try:
            with self._open(at) as image:
                return image.convert(mode)
        except Exception as error:  # Pillow raises what it likes for broken files
            raise TaskError(f"the image {self._images[at][0]} cannot be read: {describe_error(error)}.") from error


def images_of_files(classes: dict[str, list[Path]], example: Example, folder: Path | None) -> ImageBatches:
    """Return batches of the images of each class, by its name; see `ImageBatches`.

    Raises:
        TaskError: A class has no image, or the model takes no images.
        MissingExtraError: Pillow or transformers is missing.
    """
    if empty := [name for name, paths in classes.items() if not paths]:
        raise TaskError(f"the class {empty[0]!r} has no image ({', '.join(SUFFIXES)}): leave its folder out.")
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtraError(f"images need Pillow: {install_extra('zoo')}.") from error
    paths = [path for of_class in classes.values() for path in of_class]
    images = [(str(path), number) for number, of_class in enumerate(classes.values()) for path in of_class]
    return ImageBatches(images, lambda at: PIL.Image.open(paths[at]), example, folder)


def idx_images(path: Path) -> Path | None:
    """Return the file of images in idx layout that a path names, or that a folder holds; None for other paths.

    A folder may hold them as torchvision lays them out, in ``MNIST/raw``. Of several the training images are taken.

    Raises:
        TaskError: The folder holds several data sets.
    """
    if not path.is_dir():
        return path if IDX_IMAGES in path.name else None
    places = [path, *sorted(inner for inner in path.glob("*") if inner.is_dir()), *sorted(path.glob("*/raw"))]
    found = {place: sorted(place.glob(f"*{IDX_IMAGES}*")) for place in places}
    sets = [place for place in places if found[place]]
    if len(sets) > 1:
        raise TaskError(f"--task {path} holds several data sets: name one of {list_some(list(map(str, sets)), 5)}.")
    images = found[sets[0]] if sets else []
    return next((file for file in images if file.name.startswith("train")), images[0] if images else None)


def read_labelled_idx(path: Path, example: Example) -> tuple[Tensor, Tensor]:
    """Read images in idx layout, in 0..1 and as the example of a model has its inputs, and their classes beside them.

    Raises:
        TaskError: A file is missing or damaged, or the model takes inputs of another kind.
    """
    labels = path.with_name(path.name.replace(IDX_IMAGES, IDX_LABELS))
    images, classes = read_idx(path, 3, TaskError), read_idx(labels, 1, TaskError).long()
    if len(images) != len(classes):
        raise TaskError(f"{path} has {len(images)} images, and {labels.name} has {len(classes)} labels.")
    pixels = images.float() / 255
    inputs = next(value for value in (*example[1], *example[2].values()) if isinstance(value, Tensor))
    if inputs.ndim == 2 and inputs.shape[1] == pixels[0].numel():
        return pixels.flatten(1), classes
    if inputs.ndim == 3:
        _check_size(str(path), pixels.shape[1:], inputs.shape[1:])
        return pixels, classes
    channels, height, width = _image_shape(example)
    _check_size(str(path), pixels.shape[1:], (height, width))
    return pixels[:, None].expand(-1, channels, -1, -1), classes


def _check_size(called: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(found) != tuple(wanted):
        raise TaskError(
            f"{called} has {found[1]} x {found[0]} pixels, and the model's example {wanted[1]} x {wanted[0]}: "
            "bring all images to this size, or write a function that returns an alignkit.Task."
        )


def _image_shape(example: Example) -> tuple[int, int, int]:
    """Return channels, height and width of what a model takes."""
    _, args, kwargs = example
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] in MODES:
            return int(value.shape[1]), int(value.shape[2]), int(value.shape[3])
    raise TaskError(
        "the example of the model holds no images [n, 1 or 3, height, width], so images are not what it takes."
    )


def _processor_of(folder: Path) -> Any:
    try:
        import transformers

        load: Any = transformers.AutoImageProcessor.from_pretrained
        return load(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the library says about a folder
        raise TaskError(f"what {folder} says of images cannot be used: {describe_error(error)}") from error
