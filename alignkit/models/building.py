"""What model sources share: libraries that may be missing, builders that may fail, configurations, example inputs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from alignkit.errors import MissingExtraError, ModelSourceError, UsageError
from alignkit.text import describe_error, did_you_mean

Example: TypeAlias = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A model with the arguments and keywords of an example call."""
CONFIG = "config.json"
MAX_PARAMETERS = 1_000_000_000
"""Models with more parameters get no weights, which would take 4 GB: they are built on the meta device."""
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
        except Exception as error:
            refuse_mismatch(error)
            raise ModelSourceError(f"{text} could not be built: {describe_error(error)}") from error


def build_with_weights(text: str, build: Callable[[], nn.Module], bare: bool) -> nn.Module:
    """Build a model with random weights if they are wanted and fit into memory, else on the meta device."""

    def build_either() -> nn.Module:
        with torch.device("meta"):
            model = build()
        return model if bare or sum(p.numel() for p in model.parameters()) > MAX_PARAMETERS else build()

    model: nn.Module = build_model(text, build_either)
    return model


def read_config(source: str, path: Path) -> dict[str, Any]:
    """Read the ``config.json`` at ``path``, or in the folder ``path``.

    Raises:
        UsageError: The file cannot be read.
        ModelSourceError: It is not one JSON object.
    """
    file = path / CONFIG if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        advice = f"Give a folder with a {CONFIG}, or the file; nothing is downloaded."
        raise UsageError(f"{source}:{path}: {file} cannot be read: {error.strerror}. {advice}") from error
    except ValueError as error:
        raise ModelSourceError(f"{source}:{path}: {file} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelSourceError(f"{source}:{path}: {file} is not one JSON object.")
    return content


def refuse_input(model: nn.Module, name: str) -> ModelSourceError:
    """Make the error for a model whose main input is of a kind that no example is made of."""
    advice = "Give a factory that returns the model and its inputs: package.module:factory."
    return ModelSourceError(f"{type(model).__name__} takes {name!r}, for which there is no example input. {advice}")


def draw_noise(*shape: int) -> Tensor:
    """Draw normal random numbers, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def height_and_width(size: Any) -> tuple[int, int]:
    """Read the size of an image as configurations give it: one number for both sides, or two."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width
