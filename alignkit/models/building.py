"""What model sources share: libraries that may be missing, builders that may fail, and example inputs."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from alignkit.errors import MissingExtraError, ModelSourceError, UsageError
from alignkit.text import describe_error, did_you_mean

Example: TypeAlias = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A model with the arguments and keywords of an example call."""


def library(module: str, package: str) -> Any:
    """Import the library of a source, or say why it cannot be."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"the source {package!r} needs {package}, which is not installed: pip install {package}."
        )
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
                f"({describe_error(cause)}). "
                "Install the pair that belongs together, from the same place: both CPU builds, or both for one CUDA "
                "version."
            ) from error
        cause = cause.__cause__ or cause.__context__


def check_name(name: str, names: Iterable[str], source: str) -> None:
    """Refuse a name that a library does not have."""
    every = list(names)
    if name not in every:
        raise UsageError(f"{source} has no model {name!r}.{did_you_mean(name, every)}")


def built(text: str, make: Callable[[], Any]) -> Any:
    """Call what makes a model with a fixed seed; its failure becomes one message."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            return make()
        except Exception as error:
            refuse_mismatch(error)
            raise ModelSourceError(f"{text} could not be built: {describe_error(error)}") from error


def noise(*shape: int) -> Tensor:
    """Return normal random numbers, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
