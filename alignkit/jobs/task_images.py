"""Folders of images, one folder for each class, as batches for a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import MissingExtraError, TaskError
from alignkit.models import Example
from alignkit.models.side_files import PREPROCESSING
from alignkit.text import describe_error, install_extra

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ROWS = 32
"""Images of a batch."""
MODES = {1: "L", 3: "RGB"}
"""What Pillow calls images of one channel and of three."""


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
        classes: The images of each class, by its name.
        example: The model with an example call, whose size images need.
        folder: Folder of the model; None where there is none.

    Raises:
        TaskError: A class has no image, or the model takes no images.
        MissingExtraError: Pillow or transformers is missing.
    """

    def __init__(self, classes: dict[str, list[Path]], example: Example, folder: Path | None) -> None:
        if empty := [name for name, paths in classes.items() if not paths]:
            raise TaskError(f"the class {empty[0]!r} has no image ({', '.join(SUFFIXES)}): leave its folder out.")
        try:
            import PIL.Image
        except ImportError as error:
            raise MissingExtraError(f"images need Pillow: {install_extra('zoo')}.") from error
        self._open = PIL.Image.open
        pairs = [(path, number) for number, paths in enumerate(classes.values()) for path in paths]
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
        self._pairs = [pairs[at] for at in order]  # so that a part of the batches has all classes
        self._processor = None
        if folder is not None and any((folder / name).exists() for name in PREPROCESSING):
            self._processor = _processor_of(folder)
        self._shape = _image_shape(example)

    def __len__(self) -> int:
        return -(-len(self._pairs) // ROWS)

    def __getitem__(self, index: Any) -> Any:
        """Return one batch."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        chosen = self._pairs[index * ROWS : (index + 1) * ROWS]
        labels = torch.tensor([number for _, number in chosen])
        if self._processor is None:
            return torch.stack([self._pixels(path) for path, _ in chosen]), labels
        images = [self._read(path, MODES[3]) for path, _ in chosen]
        return {"pixel_values": self._processor(images, return_tensors="pt")["pixel_values"], "labels": labels}

    @property
    def is_prepared(self) -> bool:
        """Whether transformers prepares the images, and batches are dicts."""
        return self._processor is not None

    def _pixels(self, path: Path) -> Tensor:
        channels, height, width = self._shape
        image = self._read(path, MODES[channels])
        if image.size != (width, height):
            raise TaskError(
                f"{path} has {image.size[0]} x {image.size[1]} pixels, and the model's example {width} x {height}: "
                "bring all images to this size, or write a function that returns an alignkit.Task."
            )
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return values.reshape(height, width, channels).permute(2, 0, 1).float() / 255

    def _read(self, path: Path, mode: str) -> Any:
        try:
            with self._open(path) as image:
                return image.convert(mode)
        except Exception as error:  # Pillow raises what it likes for broken files
            raise TaskError(f"the image {path} cannot be read: {describe_error(error)}.") from error


def _image_shape(example: Example) -> tuple[int, int, int]:
    """Return channels, height and width of what a model takes."""
    _, args, kwargs = example
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] in MODES:
            return int(value.shape[1]), int(value.shape[2]), int(value.shape[3])
    raise TaskError(
        "the example of the model holds no images [n, 1 or 3, height, width], so a folder of images is none."
    )


def _processor_of(folder: Path) -> Any:
    try:
        import transformers

        load: Any = transformers.AutoImageProcessor.from_pretrained
        return load(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the library says about a folder
        raise TaskError(f"what {folder} says of images cannot be used: {describe_error(error)}") from error
