"""Model sources: how the command line turns a text such as ``torchvision:resnet18`` into a model and an example call.

A source is a function from the text after the colon to ``(model, args, kwargs)``. Those below register through the hook
`alignkit_register_model_sources`, as those of any other package do. None of them downloads anything: weights are
random.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from alignkit.errors import MissingExtraError, ModelSourceError, UsageError
from alignkit.hookspecs import ModelSource, hookimpl
from alignkit.suggest import did_you_mean

Example: TypeAlias = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A model with the arguments and keywords of an example call."""

PYTHON = "python"
"""Source of ``package.module:factory``; its own name may be left out."""
_IN_MEMORY = 1_000_000_000
"""Models of transformers with more parameters than this get no weights: they are built on the meta device."""
_TOKENS = 8


@hookimpl
def alignkit_register_model_sources() -> Mapping[str, ModelSource]:
    """Offer the built-in sources. Their libraries are imported only when one is used."""
    return {
        "torchvision": torchvision_model,
        "timm": timm_model,
        "transformers": transformers_model,
        PYTHON: python_model,
    }


def load_model(text: str) -> Example:
    """Return the model that a text names, in eval mode, with the arguments and keywords of an example call.

    Args:
        text: ``SOURCE:NAME``, for example ``torchvision:resnet18``, ``transformers:path/to/config.json``, or
            ``package.module:factory`` for a function that returns a model, or a model and its example inputs.

    Raises:
        UsageError: The text has no colon, or its source or name is unknown.
        MissingExtraError: The library of the source is not installed, or does not fit the installed torch.
        ModelSourceError: The model cannot be built.
    """
    from alignkit.plugins import registry

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
    model, args, kwargs = registry().model_source(source)(name)
    return model.eval(), args, kwargs


# ---------------------------------------------------------------------- torchvision


def torchvision_model(name: str) -> Example:
    """Build a model of torchvision with random weights: ``torchvision:resnet18``."""
    models = _library("torchvision.models", "torchvision")
    _known(name, models.list_models(), "torchvision")
    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    options: dict[str, Any] = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    model = _build(f"torchvision:{name}", lambda: builder(**options))
    return model, _torchvision_inputs(builder.__module__.removeprefix("torchvision.models."), name), {}


def _torchvision_inputs(module: str, name: str) -> tuple[Any, ...]:
    """Return an example call for a model, by the module that defines it."""
    if module.startswith("video"):
        return (_noise(1, 3, 16, 224, 224),)
    if module.startswith("optical_flow"):
        return (_noise(1, 3, 128, 128), _noise(1, 3, 128, 128))
    if module.startswith("detection"):
        return ([_noise(3, 320, 320)],)
    size = 299 if "inception" in name else 224
    return (_noise(1, 3, size, size),)


# ---------------------------------------------------------------------- timm


def timm_model(name: str) -> Example:
    """Build a model of timm with random weights: ``timm:vit_tiny_patch16_224``."""
    timm = _library("timm", "timm")
    _known(name, timm.list_models(), "timm")
    model = _build(f"timm:{name}", lambda: timm.create_model(name, pretrained=False))
    return model, (_noise(1, *model.default_cfg["input_size"]),), {}


# ---------------------------------------------------------------------- transformers


def transformers_model(path: str) -> Example:
    """Build a model of transformers from a configuration: a ``config.json``, or a folder that has one.

    The class is the configuration's first architecture, else the base model of its type. The weights are random; a
    model with more than 10^9 parameters gets none, which is enough for a trace.
    """
    transformers = _library("transformers", "transformers")
    config = _configuration(transformers, Path(path))
    architecture = (config.architectures or [None])[0]
    if architecture is not None and not hasattr(transformers, architecture):
        raise ModelSourceError(
            f"transformers:{path}: the installed transformers {transformers.__version__} has no {architecture}. "
            "Models whose code comes with their weights are not supported: give a factory, package.module:factory."
        )
    model_class = getattr(transformers, architecture) if architecture else transformers.AutoModel
    build = model_class if architecture else model_class.from_config
    model = _build(f"transformers:{path}", lambda: _weighed(lambda: build(config)))
    return model, (), transformers_inputs(model)


def _weighed(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model with weights if they fit into memory, else without."""
    with torch.device("meta"):
        bare = build()
    return bare if sum(p.numel() for p in bare.parameters()) > _IN_MEMORY else build()


def _configuration(transformers: ModuleType, path: Path) -> Any:
    file = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"transformers:{path}: {file} cannot be read: {error.strerror}. Give a folder with a config.json, or "
            f"the file; "
            "nothing is downloaded."
        ) from error
    except ValueError as error:
        raise ModelSourceError(f"transformers:{path}: {file} is no JSON: {error}.") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    known = transformers.CONFIG_MAPPING
    if kind not in known:
        said = f"its model_type {kind!r} is unknown to transformers {transformers.__version__}." if kind else ""
        near = did_you_mean(kind, known) if isinstance(kind, str) else ""
        raise ModelSourceError(f"transformers:{path}: {said or f'{file} has no model_type.'}{near}")
    return _build(f"transformers:{path}", lambda: known[kind].from_dict(content))


def transformers_inputs(model: nn.Module) -> dict[str, Any]:
    """Return example inputs of a transformers model: few tokens, one image, or a short sound.

    Raises:
        ModelSourceError: Its main input is of another kind.
    """
    config: Any = model.config
    main = str(getattr(model, "main_input_name", "input_ids"))
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {}
    if main == "input_ids":
        inputs[main] = _ids(config)
    elif main == "pixel_values":
        size = _field(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        inputs[main] = _noise(1, _field(config, "num_channels", 3), height, width)
    elif main == "input_features":
        inputs[main] = _noise(1, _field(config, "num_mel_bins", 80), 2 * _field(config, "max_source_positions", 64))
    elif main == "input_values":
        inputs[main] = _noise(1, 4000)
    else:
        raise ModelSourceError(
            f"{type(model).__name__} takes {main!r}, for which there is no example input. Give a factory that "
            f"returns the model "
            "and its inputs: package.module:factory."
        )
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _ids(config)
    return inputs


def _ids(config: Any) -> Tensor:
    """Return token ids from the middle of the vocabulary, where no special tokens are."""
    vocabulary = _field(config, "vocab_size", 1000)
    first = vocabulary // 2
    ids: Tensor = torch.arange(_TOKENS) % max(1, vocabulary - first) + first
    return ids.reshape(1, _TOKENS)


def _field(config: Any, name: str, default: Any) -> Any:
    """Return a field of a configuration, or of the first of its parts that has it."""
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))]
    return next((value for part in parts if (value := getattr(part, name, None)) is not None), default)


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
        raise ModelSourceError(f"{text} is {_article(factory)}, not a function that returns a model.")
    made = _build(text, factory)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made[0], *_call(made[1])
    if not isinstance(made, nn.Module):
        raise ModelSourceError(f"{text} returned {_article(made)}. Return a model, or (model, example_inputs).")
    for attribute in ("example_input_array", "dummy_inputs"):
        inputs = getattr(made, attribute, None)
        if inputs is not None:
            return made, *_call(inputs)
    raise ModelSourceError(f"{text} returned a model without example inputs. Return (model, example_inputs).")


def _call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into arguments and keywords."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(f"there is no module {name!r} on the Python path.") from error
        raise ModelSourceError(f"importing {name!r} failed: {_described(error)}") from error
    except Exception as error:
        raise ModelSourceError(f"importing {name!r} failed: {_described(error)}") from error


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        # A parent that is missing makes it unknown; one that fails is a module, whose error is told when it is used.
        return "." in name


# ---------------------------------------------------------------------- shared


def _library(module: str, package: str) -> Any:
    """Import the library of a source, or say why it cannot be."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"the source {package!r} needs {package}, which is not installed: pip install {package}."
        )
    try:
        return importlib.import_module(module)
    except Exception as error:
        _refuse_mismatch(error)
        raise MissingExtraError(f"{package} is installed but cannot be imported: {_described(error)}") from error


def _refuse_mismatch(error: BaseException) -> None:
    """Raise a clear error if a torchvision for another torch is behind a failure; timm and transformers import it."""
    cause: BaseException | None = error
    while cause is not None:
        if "torchvision::" in str(cause):
            raise MissingExtraError(
                f"the installed torchvision was built for another torch than {torch.__version__} "
                f"({_described(cause)}). "
                "Install the pair that belongs together, from the same place: both CPU builds, or both for one CUDA "
                "version."
            ) from error
        cause = cause.__cause__ or cause.__context__


def _known(name: str, names: Iterable[str], source: str) -> None:
    every = list(names)
    if name not in every:
        raise UsageError(f"{source} has no model {name!r}.{did_you_mean(name, every)}")


def _build(text: str, make: Callable[[], Any]) -> Any:
    """Call what makes a model with a fixed seed; its failure becomes one message."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            return make()
        except Exception as error:
            _refuse_mismatch(error)
            raise ModelSourceError(f"{text} could not be built: {_described(error)}") from error


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _article(value: object) -> str:
    return f"an object of type {type(value).__name__}"


def _described(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__
