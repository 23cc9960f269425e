"""The checked front: arguments of public functions held against their annotations, before anything runs.

A wrong type told at the door names the call, the argument and what is needed. Further inside it would be a traceback
of torch or numpy. What a value means (a range, a shape, a name) is for the function itself to check.

Libraries that check types read every value of a mapping and refuse numbers of numpy. Here mappings may be checkpoints
that are read when they are asked, and seeds come from ``numpy.arange``.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

from alignkit.errors import AlignkitError, ArgumentError
from alignkit.text import describe_error, did_you_mean, first_line, show_value, with_article

if TYPE_CHECKING:
    import torch

CallableT = TypeVar("CallableT", bound=Callable[..., Any])
ClassT = TypeVar("ClassT", bound=type[Any])
_ADVICE = {
    "SymmetryGraph": "A graph comes from alignkit.trace(model, example), or SymmetryGraph.from_spec(spec, like=model).",
    "Task": "A task is alignkit.Task(model, batches, loss).",
    "Pair": "A pair comes from graph.bind(a, b).",
    "Module or a Mapping": "Weights of a file come from alignkit.read_weights(path).",
}
"""How to come by what is needed, by its class."""
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "_FabricModule": "_original_module",
}
"""Modules that run another one, by their class: names of tensors have a prefix there. And where they keep it."""
_MOST_MODELS = 1000
"""Items of a list that are looked at: nobody holds more models."""
_CALLBACKS = ("report", "on_progress")
"""Arguments that are called while a function runs."""
_BOOLS = ("builtins.bool", "numpy.bool", "numpy.bool_")
_INT64 = range(-(2**63), 2**63)


class Kind(NamedTuple):
    """What an annotation admits, in words and as a test."""

    needed: str
    admits: Callable[[Any], bool]


ANYTHING = Kind("anything", lambda _: True)
_PLAIN: dict[Any, Kind] = {
    Any: ANYTHING,
    object: ANYTHING,
    None: Kind("None", lambda value: value is None),
    types.NoneType: Kind("None", lambda value: value is None),
    str: Kind("a text", lambda value: isinstance(value, str)),
    bool: Kind("True or False", lambda value: f"{type(value).__module__}.{type(value).__name__}" in _BOOLS),
    int: Kind("a whole number of 64 bits", lambda value: _is_a(Integral, value) and int(value) in _INT64),
    float: Kind("a number", lambda value: _is_a(Real, value) and _fits(value)),
    Iterable: Kind("a sequence or an iterator", lambda value: isinstance(value, Iterable) and _has_items(value)),
}


def _is_a(numbers: type, value: object) -> bool:
    return isinstance(value, numbers) and not isinstance(value, bool)


def _fits(number: Any) -> bool:
    return not isinstance(number, Integral) or int(number) in _INT64


def _has_items(value: object) -> bool:
    return _axes(value) != 0  # tensors and arrays of one number are iterable by their class alone


def _axes(value: Any) -> int | None:
    """Return the number of axes of a tensor or an array; None for anything else."""
    is_array = type(value).__module__.partition(".")[0] in ("numpy", "torch")
    return getattr(value, "ndim", None) if is_array else None


def _plain(value: Any) -> Any:
    """Return Python's own number for one of numpy, and the module inside a wrapper; also of those in a list."""
    is_number: bool = type(value).__module__ == "numpy" and isinstance(value, Real)
    if is_number:
        return value.item()  # random generators and files of JSON take no other
    if type(value) in (list, tuple) and any(map(_inside, value[:_MOST_MODELS])):
        return type(value)(map(unwrapped, value))
    return unwrapped(value)


def unwrapped(value: Any) -> Any:
    """Return the module inside `DataParallel`, `DistributedDataParallel`, Fabric, or what `torch.compile` returns.

    Anything else comes back as it is.
    """
    while attribute := _inside(value):
        value = getattr(value, attribute)
    return value


def _inside(value: object) -> str | None:
    """Return the attribute under which a wrapper keeps its module; None for anything else."""
    kind = type(value)
    return _WRAPPERS.get(kind.__name__) if kind.__module__.startswith(("torch.", "lightning")) else None


def check_arguments(function: CallableT) -> CallableT:
    """Hold the arguments of each call against the function's annotations; raise `ArgumentError` where one is wrong.

    Numbers of numpy reach the function as Python's own, and a wrapped module as the one inside. Of a mapping only the
    type is looked at: its values may have to be read from a disk, and who takes it knows better what its entries are
    called. Iterators are not consumed. Callbacks (`report`, `on_progress`) that
    cannot take what they are called with are named; what else they raise is for their owner.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tuple(map(_plain, args)), {name: _plain(value) for name, value in kwargs.items()}
        expected, arguments = _expected(function), _check(function, args, kwargs)
        callbacks = [name for name in expected.callbacks if arguments.get(name)]
        if not callbacks:
            return function(*args, **kwargs)
        bound = expected.signature.bind(*args, **kwargs)
        for name in callbacks:
            bound.arguments[name] = Callback(function.__qualname__, name, bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return cast(CallableT, call)


def check_fields(kind: ClassT) -> ClassT:
    """Hold the fields of a dataclass against their annotations whenever an instance is made."""
    kind.__init__ = check_arguments(kind.__init__)
    return kind


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device on which a tensor can be made; raise `ArgumentError` for any other."""
    import torch

    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"device={str(device)!r} cannot be used: {first_line(error)}.") from error


class Callback:
    """A function that a call was given: where it cannot take what it is called with, the error says whose it is."""

    def __init__(self, function: str, name: str, called: Callable[..., Any]) -> None:
        self.function, self.name, self.called = function, name, called

    def __call__(self, *args: Any) -> Any:
        """Call the function; raise `ArgumentError` where it fails."""
        try:
            return self.called(*args)
        except (TypeError, AttributeError) as error:  # it cannot take what it is called with
            if isinstance(error, AlignkitError):
                raise
            what = f"what {self.name}= calls failed: {describe_error(error)}"
            raise ArgumentError(f"{self.function}(): {what}") from error


def _check(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a call by name."""
    expected = _expected(function)
    name = function.__qualname__.removesuffix(".__init__")
    try:
        arguments = expected.bind(args, kwargs)
    except TypeError as error:
        unknown = [word for word in kwargs if word not in expected.signature.parameters]
        near = did_you_mean(unknown[0], expected.signature.parameters) if unknown else ""
        raise ArgumentError(f"{name}(): {error}.{near}") from None
    for argument, value in arguments.items():
        kind = expected.kinds[argument]
        if argument in expected.named and kind.admits(value):
            continue
        parameter, places = expected.signature.parameters[argument], {f"{argument}=": value}
        if parameter.kind is parameter.VAR_POSITIONAL:
            places = {f"{argument}[{at}]": item for at, item in enumerate(value)}
        elif parameter.kind is parameter.VAR_KEYWORD:
            places = {f"{key}=": item for key, item in value.items()}
        for place, item in places.items():
            if not kind.admits(item):
                wrong = f"{place} has to be {kind.needed}, found {show_value(item)} of type {type(item).__name__}"
                advice = " ".join(line for class_name, line in _ADVICE.items() if class_name in kind.needed)
                if parameter.kind is parameter.VAR_POSITIONAL and isinstance(item, list | tuple):
                    advice = f"Give them one after the other: {name}(..., *{argument})."
                raise ArgumentError(f"{name}(): {wrong}. {advice}".rstrip())
    return arguments


class _Expected(NamedTuple):
    """What a function takes: its signature, what each parameter admits, and which are callbacks."""

    signature: inspect.Signature
    kinds: dict[str, Kind]
    positional: list[str]
    named: frozenset[str]
    required: frozenset[str]
    callbacks: list[str]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Return the arguments by name, as ``signature.bind`` does; that takes as long as a small product."""
        arguments = {**dict(zip(self.positional, args, strict=False)), **kwargs}
        if len(arguments) == len(args) + len(kwargs) and self.required <= arguments.keys() <= self.named:
            return arguments
        return self.signature.bind(*args, **kwargs).arguments


@functools.cache
def _expected(function: Callable[..., Any]) -> _Expected:
    """Return what a function takes."""
    signature, kinds = inspect.signature(function), {}
    for name, parameter in signature.parameters.items():
        bare = parameter.annotation is parameter.empty
        kinds[name] = ANYTHING if bare else kind_of(_evaluate(parameter.annotation, function.__globals__))
    places = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {name: parameter for name, parameter in signature.parameters.items() if parameter.kind in places}
    positional = [name for name, parameter in named.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    required = frozenset(name for name, parameter in named.items() if parameter.default is parameter.empty)
    callbacks = [name for name in _CALLBACKS if name in kinds and "a function" in kinds[name].needed]
    return _Expected(signature, kinds, positional, frozenset(named), required, callbacks)


def _evaluate(annotation: Any, names: Mapping[str, Any]) -> Any:
    """Evaluate an annotation that is a text; names that only type checkers import are those of `alignkit`."""
    known = dict(names)
    while isinstance(annotation, str):
        try:
            annotation = eval(annotation, known)
        except NameError as error:  # A figure or a console is none of ours: not checked.
            name = str(error.name)
            known[name] = getattr(sys.modules["alignkit"], name, Any)
    return annotation


def kind_of(annotation: Any) -> Kind:
    """Translate an annotation into what it admits."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, TypeVar):
        return kind_of(annotation.__bound__ or Any)
    if origin in (Union, types.UnionType):
        return _either([kind_of(part) for part in inner])
    if origin is Literal:
        names = " or ".join(map(repr, inner))
        return Kind(names, lambda value: any(type(value) is type(name) and value == name for name in inner))
    if origin is type:
        base = get_origin(inner[0]) or inner[0]
        return Kind(f"a subclass of {base.__name__}", lambda value: isinstance(value, type) and issubclass(value, base))
    if origin in (Sequence, list, tuple):
        return _sequence(kind_of(inner[0]))
    return _PLAIN.get(origin or annotation) or _instance(origin or annotation)


def _either(kinds: Sequence[Kind]) -> Kind:
    *others, last = dict.fromkeys(kind.needed for kind in kinds)
    needed = f"{', '.join(others)} or {last}" if others else last
    return Kind(needed, lambda value: any(kind.admits(value) for kind in kinds))


def _sequence(item: Kind) -> Kind:
    def admits(value: Any) -> bool:
        ordered = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return (ordered or _axes(value) == 1) and all(map(item.admits, value))

    return Kind("a sequence" if item is ANYTHING else f"a sequence (each item {item.needed})", admits)


def _instance(wanted: Any) -> Kind:
    wanted = getattr(wanted, "array_type", wanted)  # jaxtyping's annotations say more than a class
    if wanted is os.PathLike:
        return Kind("a path", lambda value: isinstance(value, os.PathLike))
    if wanted is Callable:
        return Kind("a function", callable)
    if not isinstance(wanted, type):
        return ANYTHING
    return Kind(with_article(wanted.__name__), lambda value: isinstance(value, wanted))
