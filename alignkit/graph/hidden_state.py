"""State of modules outside their state dicts: two networks on one graph have to share it.

A non-persistent buffer, a plain tensor, ``eps``, ``num_heads`` or another class changes what a module computes, and no
state dict tells. An alignment moves no such state, and an average has none of B's. So it is compared, part by part.
"""

from __future__ import annotations

import enum
import functools
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignkit.checkpoints.dtypes import coarser_dtype
from alignkit.errors import AlignkitError
from alignkit.graph.names_read import is_filled, is_of_torch, names_read
from alignkit.text import list_some, show_value

HARMLESS = re.compile(
    # what is kept for later or counted
    r"(^|_)(cached?|device|calls?|counter|layer_idx|dtype)$|^_cache|^_?cached_|^use_cache$|^inplace$"
    # what belongs to training
    r"|(^|_|p|layer)drop(out)?(_?(path|block|connect))?(_?(p|probs?|rates?|ratio))?$|^(use_|gradient_)checkpoint"
    r"|^momentum$|^label_smoothing$|^_?(loss|criterion)(_fn|_fct|_function|_type)?$"
    # what lightning, accelerate and transformers write into modules and configurations
    r"|^_?(torchdynamo|is_torch_compile|trainer|fabric|old_forward|is_hf|hf_|example_input|compiled_call|compile_kwargs|flat_weight|commit_hash)"
    r"|^_weight_conversions$|^_use_kernels$|_tied_weights_keys$"
    r"|_implementation|transformers_version|architectures|label2id|id2label|problem_type|token_id"
    r"|^(use_)?return_dict$|^output_(attentions|hidden_states)$"
)
"""Attributes that change no output in eval mode, though code may read them."""
RECORDS = re.compile(
    r"hook|verbose|logg|path|(^|_)names?($|_)|_step$|initiali|hyper|hparams|^_?lr$|learning_rate|weight_decay|optimi"
    r"|schedul|epoch|batch_size|seed$|metric"
)
"""Names of what is only said, in configurations and in modules whose code may read any name."""
IDLE = re.compile(r"Drop(out|Path|Block)|StochasticDepth|^Identity$|Loss$")
"""Classes of parts that do nothing in eval mode, or belong to training."""
INTERNAL = frozenset(vars(nn.Module()))
"""What torch itself keeps in every module; the mode is part of it, and each network runs in eval mode."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, range, slice, np.generic)
"""Types whose values are compared as they are."""
DEPTH = 8
"""Maximum depth of containers and objects inside an attribute."""


def check_hidden_state(models: Mapping[str, object], error: type[AlignkitError]) -> None:
    """Compare the modules among networks with the first of them.

    Args:
        models: Networks by what messages call them; those that are not modules have no state to compare.
        error: Class of the error.

    Raises:
        AlignkitError: Two modules differ outside their state dicts; the message names what differs.
    """
    modules = [(label, model) for label, model in models.items() if isinstance(model, nn.Module)]
    for label, module in modules[1:]:
        first, reference = modules[0]
        if differences := list(_Comparison(reference, module).differences(first, label)):
            advice = "If it changes no output, give state dicts: model.state_dict()"
            what = f"{first} and {label} differ outside their weights"
            raise error(f"{what}, in what no alignment moves: {list_some(differences, 5, '; ')}. {advice}.")


def check_constants(names: Sequence[str], models: Mapping[str, object], error: type[AlignkitError]) -> None:
    """Check that buffers which a trace took for constant hold one value in every module among networks.

    Args:
        names: The buffers, ``graph.provenance.constant``.
        models: Networks by what messages call them.
        error: Class of the error.

    Raises:
        AlignkitError: A buffer holds several values, so that units that the graph calls interchangeable are not.
    """
    for label, model in models.items():
        buffers = dict(model.named_buffers(remove_duplicate=False)) if names and isinstance(model, nn.Module) else {}
        for name, buffer in ((name, buffers[name]) for name in names if name in buffers):
            if not buffer.is_meta and buffer.numel() and not bool((buffer == buffer.flatten()[0]).all()):
                problem = f"the non-persistent buffer {name!r} of {label} holds several values"
                raise error(f"{problem}, and one in the model that the graph was traced on. Trace {label} itself.")


class _Comparison:
    """Two modules, compared part by part."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        self.parts = [dict(module.named_modules()) for module in (a, b)]
        self.places = [_places(module) for module in (a, b)]
        named = [names_read(module) for module in (a, b)]
        self.read = None if None in named else frozenset().union(*filter(None, named))

    def differences(self, first: str, second: str) -> Iterator[str]:
        """Say what differs, each in a part of a sentence."""
        ours, theirs = self.parts
        for path in dict.fromkeys((*ours, *theirs)):
            a, b = ours.get(path), theirs.get(path)
            where = f"part {path!r}" if path else "the model"
            if all(part is None or IDLE.search(type(part).__name__) for part in (a, b)):
                continue
            if a is None or b is None:
                yield f"{where}, a {type(a or b).__name__}, is in {second if a is None else first} only"
            elif not self.same_class(type(a), type(b)):
                yield f"{where} is of two classes, {type(a).__qualname__} and {type(b).__qualname__}"
            else:
                yield from self._differences_of_part(a, b, where, first, second)

    def _differences_of_part(self, a: nn.Module, b: nn.Module, where: str, first: str, second: str) -> Iterator[str]:
        ours, theirs = _state(a, self.read), _state(b, self.read)
        for name in dict.fromkeys((*ours, *theirs)):
            kind = "non-persistent buffer" if name in {**a._buffers, **b._buffers} else "attribute"
            if name not in ours or name not in theirs:
                yield f"the {kind} {name!r} of {where} is in {first if name in ours else second} only"
            elif not self.same(ours[name], theirs[name]):
                shown = ""
                if isinstance(ours[name], PLAIN) and isinstance(theirs[name], PLAIN):
                    shown = f" ({show_value(ours[name])} in {first}, {show_value(theirs[name])} in {second})"
                yield f"the {kind} {name!r} of {where} differs{shown}"

    def same_class(self, a: type, b: type) -> bool:
        """Tell whether two classes are one, or the same code that ran twice, as in a notebook."""
        if a is b:
            return True
        if _full_name(a) != _full_name(b) or len(a.__mro__) != len(b.__mro__):
            return False
        if a.__module__.startswith("torch."):  # made anew for each module that is parametrised, or a graph of torch.fx
            return True
        pairs = [(ours, theirs) for ours, theirs in zip(a.__mro__, b.__mro__, strict=True) if ours is not theirs]
        return all(self.same(_body(ours), _body(theirs)) for ours, theirs in pairs)

    def same(self, a: Any, b: Any, depth: int = 0) -> bool:
        """Tell whether two values mean the same; objects of which nothing is known count as the same."""
        places = [places.get(id(value)) for places, value in zip(self.places, (a, b), strict=True)]
        if a is b or depth > DEPTH or (None not in places and places[0] == places[1]):
            return True  # Parts and saved tensors are compared at their own place.

        def each(left: Sequence[Any], right: Sequence[Any]) -> bool:
            return len(left) == len(right) and all(self.same(x, y, depth + 1) for x, y in zip(left, right, strict=True))

        if isinstance(a, PLAIN) or isinstance(b, PLAIN):
            return type(a) is type(b) and bool(a == b or (a != a and b != b))
        if isinstance(a, type) and isinstance(b, type):
            return _full_name(a) == _full_name(b)
        if _full_name(type(a)) != _full_name(type(b)):
            return False
        if isinstance(a, Tensor):
            return _same_tensors(a, b)
        if isinstance(a, np.ndarray):
            return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
        if isinstance(a, nn.Module):
            ours, theirs = (dict(_tensors(module)) for module in (a, b))
            return self.same(ours, theirs, depth + 1) and not any(_Comparison(a, b).differences("", ""))
        if isinstance(a, set | frozenset):
            return len(a) == len(b) and (a == b or not all(isinstance(value, PLAIN) for value in (*a, *b)))
        if isinstance(a, Mapping):
            ours, theirs = ({k: v for k, v in side.items() if not _is_harmless(k)} for side in (a, b))
            return ours.keys() == theirs.keys() and each([*ours.values()], [theirs[key] for key in ours])
        return each(_contents(a), _contents(b))


def _contents(value: Any) -> Sequence[Any]:
    """List what a container, a function or an object is made of; nothing for objects that libraries keep."""
    match value:
        case list() | tuple():
            return value
        case functools.partial():
            return (value.func, value.args, value.keywords)
        case types.MethodType():
            return (value.__func__, value.__self__)
        case types.FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or () if is_filled(cell)]
            return (value.__code__, value.__defaults__, value.__kwdefaults__, cells)
        case types.CodeType():
            return (value.co_code, value.co_names, value.co_consts)
        case types.BuiltinFunctionType():
            return (value.__name__,)
        case property():
            return (value.fget, value.fset)
        case staticmethod() | classmethod():
            return (value.__func__,)
    library = type(value).__module__.partition(".")[0]
    if hasattr(value, "to_dict") and hasattr(value, "model_type"):  # a configuration of transformers
        return (value.to_dict(),)
    if isinstance(value, types.SimpleNamespace) or library not in (*sys.stdlib_module_names, "torch"):
        return (getattr(value, "__dict__", {}),)
    return ()


def _body(kind: type) -> dict[str, Any]:
    """Return what a class defines, without what Python keeps in it."""
    functions = (types.FunctionType, property, staticmethod, classmethod)
    body = vars(kind).items()
    return {name: x for name, x in body if isinstance(x, functions) or not name.startswith(("__", "_abc_"))}


def _full_name(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def _is_harmless(name: object) -> bool:
    return isinstance(name, str) and bool(HARMLESS.search(name) or RECORDS.search(name))


def _same_tensors(a: Tensor, b: Tensor) -> bool:
    both_floats = a.is_floating_point() and b.is_floating_point()
    if (a.shape, a.layout) != (b.shape, b.layout) or (a.dtype != b.dtype and not both_floats):
        return False
    if a.grad_fn is not None or a.is_meta or b.is_meta:  # computed from what is saved; or without values
        return True
    a, b = a.detach().cpu(), b.detach().cpu()
    if a.dtype != b.dtype:  # a module in another dtype has such tensors rounded
        coarser = coarser_dtype(a.dtype, b.dtype)
        a, b = a.to(coarser), b.to(coarser)
    return torch.equal(a, b) or bool((a.isclose(b, 0, 0, equal_nan=True)).all())


def _places(module: nn.Module) -> dict[int, str]:
    """Name the parts of a module and its saved tensors by their identities."""
    return {id(value): name for name, value in (*module.named_modules(), *_tensors(module))}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in the state dict of a module, themselves."""
    unsaved = {id(tensor) for part in module.modules() for tensor in _unsaved(part).values()}
    named = (*module.named_parameters(), *module.named_buffers())
    yield from ((name, tensor) for name, tensor in named if id(tensor) not in unsaved)


def _unsaved(part: nn.Module) -> dict[str, Tensor]:
    buffers = {name: part._buffers[name] for name in part._non_persistent_buffers_set if name in part._buffers}
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def _state(part: nn.Module, read: frozenset[str] | None) -> dict[str, Any]:
    """Return what may change the outputs of a part of a module, besides what is saved.

    Args:
        part: The part.
        read: The names that the code of the module reads; None where that is not known.
    """
    state = {name: value for name, value in vars(part).items() if name not in INTERNAL} | _unsaved(part)
    # Old weight norms and pruning keep what they compute before each run; hooks of accelerate replace a method.
    computed = {name for name in state if part._parameters.keys() & {f"{name}_orig", f"{name}_g"}}
    hooked = {"forward"} if "_hf_hook" in state else set()
    if read is not None and not is_of_torch(type(part)):
        return {n: x for n, x in state.items() if n in read - computed - hooked and not HARMLESS.search(n)}
    return {name: x for name, x in state.items() if name not in computed | hooked and not _is_harmless(name)}
