"""Models of one's own: functions named ``package.module:factory``."""

from __future__ import annotations

import importlib
import importlib.util

from torch import nn

from alignkit.errors import ModelSourceError, UsageError
from alignkit.graph.proof.model_run import call_arguments
from alignkit.models.building import Example, build_model
from alignkit.text import describe_error, did_you_mean, show_type


def python_model(text: str) -> Example:
    """Call a function, or a module class, without arguments: ``package.module:factory``.

    It returns a model, or a model and its example inputs: a tensor, a tuple of arguments, or a mapping of keywords. A
    model alone needs an attribute ``example_input_array`` or ``dummy_inputs``, as Lightning and transformers have them.
    """
    module_name, colon, factory_name = text.partition(":")
    if not colon or not factory_name:
        raise UsageError(f"{text!r} does not name a factory: write package.module:factory.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (module_name == missing or module_name.startswith(missing + ".")):
            raise UsageError(f"there is no module {module_name!r} on the Python path.") from error
        raise ModelSourceError(f"importing {module_name!r} failed: {describe_error(error)}") from error
    factory = getattr(module, factory_name, None)
    if factory is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UsageError(f"module {module_name!r} has no {factory_name!r}.{did_you_mean(factory_name, public)}")
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ModelSourceError(f"{text} is {show_type(factory)}, not a function that returns a model.")
    result = build_model(text, factory)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module):
        return result[0], *call_arguments(result[1])
    if not isinstance(result, nn.Module):
        raise ModelSourceError(f"{text} returned {show_type(result)}. Return a model, or (model, example_inputs).")
    for attribute in ("example_input_array", "dummy_inputs"):
        inputs = getattr(result, attribute, None)
        if inputs is not None:
            return result, *call_arguments(inputs)
    raise ModelSourceError(f"{text} returned a model without example inputs. Return (model, example_inputs).")


def is_module(name: str) -> bool:
    """Say whether a name is that of a module that can be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        # A parent that is missing makes it unknown; one that fails is a module, whose error is told when it is used.
        return "." in name
