"""Model sources: how the command line turns a text such as ``torchvision:resnet18`` into a model and an example call.

A source is a function from the text after the colon to ``(model, args, kwargs)``. Those below register through the hook
`alignkit_register_model_sources`, as those of any other package do. None of them downloads anything: weights are
random.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from alignkit.errors import AlignkitError, ModelSourceError, UsageError
from alignkit.graph.proof.example_call import call_arguments
from alignkit.models.building import Example, built, check_name, library, noise
from alignkit.models.folders import diffusers_model, timm_folder, transformers_model
from alignkit.plugins.hookspecs import ModelSource, hookimpl
from alignkit.text import describe_error, did_you_mean, show_type, show_value

PYTHON = "python"
"""Source of ``package.module:factory``; its own name may be left out."""


@hookimpl
def alignkit_register_model_sources() -> Mapping[str, ModelSource]:
    """Offer the built-in sources. Their libraries are imported only when one is used."""
    return {
        "torchvision": torchvision_model,
        "timm": timm_model,
        "transformers": transformers_model,
        "diffusers": diffusers_model,
        PYTHON: python_model,
    }


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
    from alignkit.plugins.plugin_registry import registry

    known = registry().model_sources()
    source, colon, name = text.partition(":")
    if not colon or not source or not name:
        listed = ", ".join(sorted(known))
        raise UsageError(
            f"{text!r} names no model: write SOURCE:NAME, for example torchvision:resnet18, or package.module:factory. "
            f"Sources: {listed}."
        )
    if source not in known and _is_module(source):
        source, name = PYTHON, text
    build = registry().model_source(source)
    try:
        takes_bare = "bare" in inspect.signature(build).parameters
    except (TypeError, ValueError):  # some callables written in C have none
        takes_bare = False
    try:
        made: Any = build(name, bare=True) if bare and takes_bare else build(name)  # type: ignore[call-arg]
    except AlignkitError:
        raise
    except Exception as error:  # sources may be third-party code
        raise ModelSourceError(f"{text}: the source {source!r} failed: {describe_error(error)}") from error
    if not isinstance(made, tuple | list) or len(made) != 3:
        raise ModelSourceError(f"{text}: the source {source!r} returned {show_value(made)}, not (model, args, kwargs).")
    model, args, kwargs = made
    if not (isinstance(model, nn.Module) and isinstance(args, tuple | list) and isinstance(kwargs, Mapping)):
        found = f"({', '.join(type(part).__name__ for part in made)})"
        raise ModelSourceError(f"{text}: the source {source!r} returned {found}, not (Module, tuple, dict).")
    return model.eval(), tuple(args), dict(kwargs)


# ---------------------------------------------------------------------- torchvision


def torchvision_model(name: str) -> Example:
    """Build a model of torchvision with random weights: ``torchvision:resnet18``."""
    models = library("torchvision.models", "torchvision")
    check_name(name, models.list_models(), "torchvision")
    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    options: dict[str, Any] = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    model = built(f"torchvision:{name}", lambda: builder(**options))
    return model, _torchvision_inputs(builder.__module__.removeprefix("torchvision.models."), name), {}


def _torchvision_inputs(module: str, name: str) -> tuple[Any, ...]:
    """Return an example call for a model, by the module that defines it."""
    if module.startswith("video"):
        return (noise(1, 3, 16, 224, 224),)
    if module.startswith("optical_flow"):
        return (noise(1, 3, 128, 128), noise(1, 3, 128, 128))
    if module.startswith("detection"):
        return ([noise(3, 320, 320)],)
    size = 299 if "inception" in name else 224
    return (noise(1, 3, size, size),)


# ---------------------------------------------------------------------- timm


def timm_model(name: str) -> Example:
    """Build a model of timm with random weights: ``timm:vit_tiny_patch16_224``, or a folder with a ``config.json``."""
    if Path(name).exists():
        return timm_folder(Path(name))
    timm = library("timm", "timm")
    check_name(name, timm.list_models(), "timm")
    model = built(f"timm:{name}", lambda: timm.create_model(name, pretrained=False))
    return model, (noise(1, *model.default_cfg["input_size"]),), {}


# ---------------------------------------------------------------------- package.module:factory


def python_model(text: str) -> Example:
    """Call a function, or a module class, without arguments: ``package.module:factory``.

    It returns a model, or a model and its example inputs: a tensor, a tuple of arguments, or a mapping of keywords. A
    model alone needs an attribute ``example_input_array`` or ``dummy_inputs``, as Lightning and transformers have
    them.
    """
    module_name, colon, factory_name = text.partition(":")
    if not colon or not factory_name:
        raise UsageError(f"{text!r} names no factory: write package.module:factory.")
    module = _import(module_name)
    factory = getattr(module, factory_name, None)
    if factory is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UsageError(f"module {module_name!r} has no {factory_name!r}.{did_you_mean(factory_name, public)}")
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ModelSourceError(f"{text} is {show_type(factory)}, not a function that returns a model.")
    made = built(text, factory)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made[0], *call_arguments(made[1])
    if not isinstance(made, nn.Module):
        raise ModelSourceError(f"{text} returned {show_type(made)}. Return a model, or (model, example_inputs).")
    for attribute in ("example_input_array", "dummy_inputs"):
        inputs = getattr(made, attribute, None)
        if inputs is not None:
            return made, *call_arguments(inputs)
    raise ModelSourceError(f"{text} returned a model without example inputs. Return (model, example_inputs).")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(f"there is no module {name!r} on the Python path.") from error
        raise ModelSourceError(f"importing {name!r} failed: {describe_error(error)}") from error
    except Exception as error:
        raise ModelSourceError(f"importing {name!r} failed: {describe_error(error)}") from error


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        # A parent that is missing makes it unknown; one that fails is a module, whose error is told when it is used.
        return "." in name
