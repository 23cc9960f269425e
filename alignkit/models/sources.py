"""Model sources: how the command line turns a text such as ``torchvision:resnet18`` into a model and an example call.

A source is a function from the text after the colon to ``(model, args, kwargs)``. Those below register through the hook
`alignkit_register_model_sources`, as those of any other package do. None of them downloads anything: weights are
random.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from alignkit.arguments import check_arguments, unwrapped
from alignkit.errors import AlignkitError, ModelSourceError, UsageError
from alignkit.models.building import Example, read_config
from alignkit.models.diffusers import diffusers_model
from alignkit.models.python import is_module, python_model
from alignkit.models.timm import timm_model
from alignkit.models.torchvision import torchvision_model
from alignkit.models.transformers import transformers_model
from alignkit.plugins import plugin_registry
from alignkit.plugins.hookspecs import ModelSource, hookimpl
from alignkit.process_state import SWITCHES, watched_state
from alignkit.text import describe_error, show_value

PYTHON = "python"
"""Source of ``package.module:factory``; its own name may be left out."""


@hookimpl
def alignkit_register_model_sources() -> Mapping[str, ModelSource]:
    """Offer the built-in sources. Their libraries are imported only when one is used."""
    vision: dict[str, ModelSource] = {"torchvision": torchvision_model, "timm": timm_model}
    return {**vision, "transformers": transformers_model, "diffusers": diffusers_model, PYTHON: python_model}


@check_arguments
def load_model(text: str, *, bare: bool = False) -> Example:
    """Return the model that a text names, in eval mode, with the arguments and keywords of an example call.

    Args:
        text: ``SOURCE:NAME``, for example ``torchvision:resnet18``, ``transformers:path/to/config.json``, or
            ``package.module:factory`` for a function that returns a model, or a model and its example inputs.
        bare: Only the structure is wanted, as for a trace: sources that take a keyword ``bare``, such as transformers
            and diffusers, then make no weights.

    Raises:
        UsageError: The text has no colon, or its source or name is unknown.
        MissingExtraError: The library of the source is not installed, or does not fit the installed torch.
        ModelSourceError: The model cannot be built.
    """
    registry = plugin_registry.registry()
    known = registry.model_sources()
    source, colon, name = text.partition(":")
    if not colon or not source or not name:
        if os.path.exists(text):
            raise UsageError(f"{text} holds weights, which do not say what they compute: name the model before it.")
        forms = "SOURCE:NAME, for example torchvision:resnet18, or package.module:factory"
        raise UsageError(f"{text!r} does not name a model: write {forms}. Sources: {', '.join(sorted(known))}.")
    if source not in known and is_module(source):
        source, name = PYTHON, text
    build = registry.model_source(source)
    try:
        takes_bare = "bare" in inspect.signature(build).parameters
    except (TypeError, ValueError):  # some callables written in C have none
        takes_bare = False
    try:
        with watched_state(f"the model source {source!r}", SWITCHES):
            result: Any = build(name, bare=True) if bare and takes_bare else build(name)  # type: ignore[call-arg]
    except AlignkitError:
        raise
    except (Exception, SystemExit) as error:  # sources may be third-party code
        raise ModelSourceError(f"{text}: the source {source!r} failed: {describe_error(error)}") from error
    if not isinstance(result, tuple | list) or len(result) != 3:
        wrong = f"{text}: the source {source!r} returned {show_value(result)}"
        raise ModelSourceError(f"{wrong}, not (model, args, kwargs).")
    model, args, kwargs = result
    if not (isinstance(model, nn.Module) and isinstance(args, tuple | list) and isinstance(kwargs, Mapping)):
        kinds = ", ".join(type(part).__name__ for part in result)
        raise ModelSourceError(f"{text}: the source {source!r} returned ({kinds}), not (Module, tuple, dict).")
    return unwrapped(model).eval(), tuple(args), dict(kwargs)


@check_arguments
def source_of(config: Path) -> str | None:
    """Name the model of a ``config.json``, such as ``transformers:folder``; None if no source builds it.

    Raises:
        UsageError: The file cannot be read.
        ModelSourceError: It is not one JSON object, or holds a number that no model has.
    """
    content = read_config(config)
    keys = {"_class_name": "diffusers", "model_type": "transformers", "architecture": "timm"}
    sources = [source for key, source in keys.items() if key in content]
    return f"{sources[0]}:{config}" if sources else None
