"""Running a model on example inputs, in one precision: its outputs in float64, where casts inside it are widened."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from alignkit.errors import AlignkitError, VerificationError
from alignkit.graph.module_copy import copy_module
from alignkit.graph.proof.outputs import named_outputs
from alignkit.text import describe_error

ResultT = TypeVar("ResultT")
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook for subclasses untyped
    """Make every cast to a narrower floating-point type, and every new tensor of one, float64.

    Many models normalise or attend in float32 whatever their weights are. Run in float64, they round like float32
    models, and the rounding of two equal functions differs by more than float64 lets expect.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an op with each narrow dtype among its arguments replaced."""

        def widen(value: Any) -> Any:
            return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value

        return func(*map(widen, args), **{name: widen(value) for name, value in (kwargs or {}).items()})


class ModelRun:
    """A copy of a model in eval mode and its example call, both cast to one dtype, and what the call returns.

    Args:
        model: The model; it is left as it is.
        args: Example inputs.
        kwargs: Example inputs by name.
        dtype: float64 or float32.
        chosen: Names of the outputs that count; all where there are none, see `named_outputs`.

    Attributes:
        model: The cast copy.
        arguments: Positional and named arguments of the call.
        outputs: Every floating-point tensor that it returns, in float64.
    """

    def __init__(
        self, model: nn.Module, args: Any, kwargs: Any, dtype: torch.dtype, chosen: Sequence[str] = ()
    ) -> None:
        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        self.dtype, self.chosen = dtype, chosen
        self.model = copy_module(model).to(dtype).eval()
        self.arguments = pytree.tree_map(cast, (args, dict(kwargs)))
        self.outputs = self.call(copy_module(self.model))

    def on(self, arguments: Any) -> ModelRun:
        """Return the run of the same model on other arguments, which have the dtypes of its own."""
        other = copy.copy(self)
        other.arguments = arguments
        other.outputs = other.call(copy_module(self.model))
        return other

    def call(self, model: nn.Module) -> list[Tensor]:
        """Run a model of the same dtype on the example call and return its floating-point outputs.

        A run may leave what it computed in the model: give a copy that nothing else needs.
        """
        # It may write into its inputs, too.
        args, kwargs = pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, self.arguments)
        wide = self.dtype == torch.float64
        with torch.no_grad(), Widened() if wide else nullcontext():  # type: ignore[no-untyped-call]
            result = model(*args, **kwargs)
        real = [torch.view_as_real(t) if t.is_complex() else t for _, t in named_outputs(result, self.chosen)]
        return [t.detach().to(torch.float64) for t in real if t.is_floating_point()]


def run_in_widest(run: Callable[[torch.dtype], ResultT]) -> ResultT:
    """Call ``run`` with float64, and with float32 where that fails.

    Some kernels refuse float64; what also fails in float32 is the model's own error, and a `VerificationError` here.
    """
    try:
        return run(torch.float64)
    except AlignkitError:
        raise
    except Exception:  # any model can fail in any way
        pass  # its frames, which hold copies in float64, are let go before there are more
    try:
        return run(torch.float32)
    except Exception as error:
        raise VerificationError(f"the model does not run on these inputs: {describe_error(error)}.") from error


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments with which a model is called on `inputs`.

    Args:
        inputs: A tuple or list holds positional arguments, a mapping arguments by name; anything else, such as a
            tensor, is the only argument.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def example_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of an example call `f(model, *args, **kwargs)`.

    A single mapping holds inputs by name, as in the batches of a `Task`: `trace(model, {"x": x})` is
    `trace(model, x=x)`. A model that takes a dict as its argument gets it by the argument's name.
    """
    if len(args) == 1 and not kwargs and isinstance(args[0], Mapping):
        return call_arguments(args[0])
    return args, dict(kwargs)
