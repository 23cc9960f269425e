"""Which names the code of a module reads in a forward pass: an attribute that no code reads changes no output."""

from __future__ import annotations

import dis
import functools
import types
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

_LOADS = frozenset(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_GLOBAL", "LOAD_NAME"))
_JOINS = frozenset(("FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "BUILD_STRING", "+", "%"))
"""Instructions and operators that put texts together."""
_ANY_NAME = frozenset(("__dict__", "vars", "eval", "exec", "attrgetter"))
_NOT_RUN = frozenset(("__init__", "__repr__", "__setstate__", "__getstate__", "__reduce__", "__deepcopy__"))
"""Methods between underscores that no forward pass runs. The others may run without being named."""


def is_of_torch(kind: type) -> bool:
    """Tell whether a class is one of torch or of Python itself."""
    return kind.__module__.partition(".")[0] in ("torch", "builtins", "abc", "typing", "collections")


def names_read(module: nn.Module) -> frozenset[str] | None:
    """List what the code of a module and its parts reads by name, and all texts in that code.

    Methods are followed by their names from ``forward`` on, and so are functions and classes of the same packages and
    what the parts hold. Code of torch is not.

    Returns:
        The names; None where some are no constants, so that any attribute may be meant.
    """
    parts = list(module.modules())
    kinds = {kind for part in parts for kind in type(part).__mro__ if not is_of_torch(kind)}
    held = [value for part in parts for value in vars(part).values()]
    return _names_read(frozenset(kinds), frozenset(_code_in(held)))


@functools.lru_cache(maxsize=64)
def _names_read(kinds: frozenset[type], held: frozenset[Any]) -> frozenset[str] | None:
    packages = {kind.__module__.partition(".")[0] for kind in kinds}
    names: set[str] = {"forward"}
    methods: dict[str, list[Any]] = defaultdict(list)
    seen: set[Any] = set()
    rest = [*kinds, *held]
    while rest:
        value = rest.pop()
        if value in seen:
            continue
        seen.add(value)
        if isinstance(value, type):
            for name, member in vars(value).items():
                methods[name].append(member)
                if name in names or (name.startswith("__") and name not in _NOT_RUN):
                    rest += _code_in([member])
            continue
        loaded: set[str] = set()
        for code in _nested(value.__code__):
            steps = list(dis.get_instructions(code))
            new = {step.argval for step in steps if step.opname in _LOADS} | set(_texts(code.co_consts))
            looked_up = [steps[at:] for at, step in enumerate(steps, 1) if step.argval == "getattr"]
            if new & _ANY_NAME or not all(_is_known(after, value.__globals__) for after in looked_up):
                return None
            loaded |= new
        rest += _code_in(member for name in loaded - names for member in methods[name])
        names |= loaded
        near = [found for name in loaded if _package(found := value.__globals__.get(name)) in packages]
        inside = [vars(found).get(name) for found in near if isinstance(found, types.ModuleType) for name in loaded]
        rest += _code_in([*near, *(found for found in inside if _package(found) in packages)])
    return frozenset(names)


def _package(value: Any) -> str:
    place = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return place.partition(".")[0] if isinstance(place, str) else ""


def _code_in(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the functions in values, unwrapped, and the classes of objects that may have code of their own."""
    for value in values:
        match value:
            case types.FunctionType():
                yield value
                yield from _code_in(cell.cell_contents for cell in value.__closure__ or () if is_filled(cell))
            case types.MethodType() | staticmethod() | classmethod():
                yield from _code_in([value.__func__])
            case property():
                yield from _code_in([value.fget])
            case functools.partial():
                yield from _code_in([value.func, *value.args, *value.keywords.values()])
            case list() | tuple():
                yield from _code_in(value)
            case dict():
                yield from _code_in(value.values())
            case type():
                yield from [] if is_of_torch(value) else [value]
            case nn.Module() | types.ModuleType():
                pass
            case _:
                yield from _code_in([type(value)])


def is_filled(cell: types.CellType) -> bool:
    """Tell whether a variable that a function encloses has a value."""
    try:
        cell.cell_contents  # noqa: B018  raises where it is empty
    except ValueError:
        return False
    return True


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _is_known(steps: Sequence[dis.Instruction], variables: Mapping[str, Any]) -> bool:
    """Tell whether what ``getattr`` loads next is a module, or an object and a text that is not put together."""
    first, *rest = steps
    if isinstance(first.argval, str) and isinstance(variables.get(first.argval), types.ModuleType):
        return True
    name = next((step for step in rest if step.opname != "LOAD_ATTR"), first)
    is_text = name.opname == "LOAD_CONST" and isinstance(name.argval, str)
    return (
        first.opname.startswith("LOAD_")
        and is_text
        and all(_JOINS.isdisjoint((step.opname, step.argrepr)) for step in rest)
    )


def _texts(constants: Iterable[Any]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _texts(constant)
