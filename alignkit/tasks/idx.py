"""Arrays of bytes in the idx layout of MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignkit.checkpoints.opening import open_file
from alignkit.errors import AlignkitError

MAX_BYTES = 1 << 30
"""Maximum number of bytes of an idx file, unpacked; MNIST has 47 million."""
UNSIGNED_BYTE = 8
"""The code of an idx file's element type."""


def read_idx(path: Path, axes: int, error: type[AlignkitError]) -> Tensor:
    """Read a file, packed by gzip where its name ends in ``.gz``, as uint8 with so many axes.

    Raises:
        AlignkitError: The file cannot be read, is damaged or holds something else; in the given class.
    """
    try:
        with open_file(path) as packed, gzip.open(packed) if path.suffix == ".gz" else packed as stream:
            head = stream.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes or tuple(head[:4]) != (0, 0, UNSIGNED_BYTE, axes):
                start = f"it starts with {head[:4].hex(' ')}"
                raise error(f"{path} is not an idx file of bytes with {axes} axes: {start}.")
            shape = tuple(np.frombuffer(head, ">i4", axes, 4).tolist())
            count = math.prod(shape)
            # A few packed bytes can stand for very many: what the head does not tell is not unpacked.
            data = stream.read(count + 1) if min(shape) >= 0 and count <= MAX_BYTES else b""
    except (OSError, EOFError, zlib.error) as failure:
        raise error(f"{path} cannot be read: {failure}.") from failure
    if len(data) != count:
        raise error(f"{path} is cut off, damaged or too large: {len(data)} values for {'x'.join(map(str, shape))}.")
    return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape).copy())
