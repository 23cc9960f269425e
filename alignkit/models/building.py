"""What model sources share: libraries that may be missing, builders that may fail, configurations, example inputs."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from alignkit.checkpoints.opening import read_file
from alignkit.errors import MissingExtraError, ModelSourceError, UsageError
from alignkit.models.limits import check_sizes, counted_modules
from alignkit.models.outside import nothing_outside
from alignkit.text import describe_error, did_you_mean, list_some, show_value

Example: TypeAlias = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A model with the arguments and keywords of an example call."""
CONFIG = "config.json"
MAX_CONFIG = 10_000_000
"""Bytes of a configuration that are read; names of 20,000 classes take 2 MB."""
MAX_PARAMETERS = 1_000_000_000
"""Models with more numbers get no weights, which would take 4 GB: they are built on the meta device."""
MAX_INPUT = 100_000_000
"""Numbers in one example input."""
TOKENS = 8
"""Length of example sequences: short, and still more than one."""


def import_library(module: str, package: str) -> Any:
    """Import the library of a source, or raise a `MissingExtraError`: it is not installed, or cannot be imported."""
    if importlib.util.find_spec(package) is None:
        needed = f"the source {package!r} needs {package}"
        raise MissingExtraError(f"{needed}, which is not installed: pip install {package}.")
    try:
        return importlib.import_module(module)
    except Exception as error:
        refuse_mismatch(error)
        raise MissingExtraError(f"{package} is installed but cannot be imported: {describe_error(error)}") from error


def refuse_mismatch(error: BaseException) -> None:
    """Raise a clear error if a torchvision for another torch is behind a failure; timm and transformers import it."""
    cause: BaseException | None = error
    while cause is not None:
        if "torchvision::" in str(cause):
            raise MissingExtraError(
                f"the installed torchvision was built for another torch than {torch.__version__} "
                f"({describe_error(cause)}). Install the pair that belongs together, from the same place: both CPU "
                "builds, or both for one CUDA version."
            ) from error
        cause = cause.__cause__ or cause.__context__


def check_name(name: str, names: Iterable[str], source: str) -> None:
    """Refuse a name that a library does not have."""
    known = list(names)
    if name not in known:
        raise UsageError(f"{source} has no model {name!r}.{did_you_mean(name, known)}")


def build_model(text: str, build: Callable[[], Any]) -> Any:
    """Call what builds a model with a fixed seed; its failure becomes one message that names ``text``."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            return build()
        except ModelSourceError as error:
            raise ModelSourceError(f"{text} could not be built: {error}") from error
        except Exception as error:
            refuse_mismatch(error)
            raise ModelSourceError(f"{text} could not be built: {describe_error(error)}") from error


def build_alone(text: str, build: Callable[[], Any]) -> Any:
    """Build as `build_model` does, where a library builds what a configuration says: nothing outside it is touched.

    Raises:
        ModelSourceError: It failed, asked for something outside the library, or for more modules than models have.
    """
    with nothing_outside() as refused, counted_modules():
        try:
            return build_model(text, build)
        except ModelSourceError as error:
            if not refused:
                raise
            asked = f"On the way it asked for {list_some(refused, 3)}. Nothing outside the library is opened or run."
            raise ModelSourceError(f"{str(error).rstrip('.')}. {asked}") from error


def build_with_weights(text: str, build: Callable[[], nn.Module], bare: bool) -> nn.Module:
    """Build a model with random weights if they are wanted and fit into memory, else on the meta device."""

    def build_either() -> nn.Module:
        try:
            with torch.device("meta"):
                model = build()
        except (RuntimeError, NotImplementedError) as error:
            if "meta tensor" not in str(error):
                raise
            return build()  # it reads values while it is built, as some models of timm before 1.0.30 do
        numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
        return model if bare or numbers > MAX_PARAMETERS else build()

    model: nn.Module = build_alone(text, build_either)
    return model


def read_config(path: Path) -> dict[str, Any]:
    """Read the ``config.json`` at ``path``, or in the folder ``path``, as it may be built from.

    Raises:
        UsageError: The file cannot be read.
        ModelSourceError: It is not one JSON object, or holds a number that no model has.
    """
    file = path / CONFIG if os.path.isdir(path) else path
    try:
        content = json.loads(read_file(file, MAX_CONFIG))
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ModelSourceError(f"{file} is not a configuration: {error.strerror}.") from error
        advice = f"Give a folder with a {CONFIG}, or the file; nothing is downloaded."
        raise UsageError(f"{file} cannot be read: {error.strerror}. {advice}") from error
    except (ValueError, RecursionError) as error:
        raise ModelSourceError(f"{file} is not the JSON of a configuration: {error}.") from error
    if not isinstance(content, dict):
        raise ModelSourceError(f"{file} is not one JSON object.")
    check_sizes(content, str(file))
    return content


def without_fields(content: Any, names: frozenset[str]) -> Any:
    """Copy a configuration without the fields of some names, however deep they stand."""
    if isinstance(content, Mapping):
        return {key: without_fields(value, names) for key, value in content.items() if key not in names}
    return [without_fields(part, names) for part in content] if isinstance(content, list) else content


def refuse_input(model: nn.Module, name: str) -> ModelSourceError:
    """Make the error for a model whose main input is of a kind that no example is made of."""
    advice = "Give a factory that returns the model and its inputs: package.module:factory."
    return ModelSourceError(f"{type(model).__name__} takes {name!r}, for which there is no example input. {advice}")


def draw_noise(*shape: int) -> Tensor:
    """Draw normal random numbers, the same each time."""
    if not all(isinstance(size, int) and size > 0 for size in shape) or math.prod(shape) > MAX_INPUT:
        raise ModelSourceError(
            f"an example input of shape {list(shape)} cannot be made: the configuration asks for it."
        )
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def height_and_width(size: Any) -> tuple[int, int]:
    """Read the size of an image as configurations give it: one number for both sides, or two."""
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ModelSourceError(f"the size of images is {show_value(size)}: one whole number, or two.")
    return sides[0], sides[1]
