"""Running the model once: on fake tensors where that works, on real ones otherwise."""

from __future__ import annotations

import copy
import gc
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from alignkit.errors import OutputError, TraceError
from alignkit.graph.proof.outputs import named_outputs
from alignkit.graph.proof.process_switch import NO_COMPILATION, NO_FAKE_TENSOR_LOG, NO_FUSED_ATTENTION, NO_MKLDNN
from alignkit.text import dtype_name, first_line
from alignkit.tracing.recording.recorder import OpRecord, Recorder, TensorRef, follow_modules
from alignkit.tracing.recording.refusals import refuse_hidden_ops
from alignkit.tracing.recording.watch import Watch


@dataclass(frozen=True)
class RecordedRun:
    """One run of a model: all ops in order, and the tensors that the model returned.

    `results` have the names of their outputs, see `named_outputs`. `state` holds parameters and buffers as the ops saw
    them, by name; tied ones have one `TensorRef`. `replaced` names buffers that the run replaced by another tensor.
    `alive` keeps all storages, so that identities stay unique. `choosing` are the modules whose code got numbers or
    truths from values, see `Recorder`. `partly_taken` are axes of tensors, by name and number, of which other calls
    take a part.
    """

    steps: list[OpRecord]
    results: list[tuple[str, TensorRef]]
    state: dict[str, TensorRef]
    tensors: Literal["fake", "real"]
    replaced: frozenset[str]
    alive: dict[int, object]
    gives_numbers: bool
    choosing: tuple[str, ...] = ()
    partly_taken: frozenset[tuple[str, int]] = frozenset()


def record(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Sequence[str] = ()
) -> RecordedRun:
    """Run the model in eval mode without gradients and record every op. The model is left as it was.

    Raises:
        TraceError: The model cannot run on these inputs, or is not a plain module; the message says what to do.
        OutputError: It returns an object in which its tensors cannot be found.
    """
    refuse_hidden_ops(model, (args, dict(kwargs)))
    kind = type(model).__name__
    state = [*model.named_parameters(), *model.named_buffers()]
    try:
        with _borrow(model):
            return _run(model, (args, dict(kwargs)), FakeTensorMode(allow_non_fake_inputs=True), outputs)
    except OutputError:
        raise
    except Exception as error:
        if "HigherOrderOperator" in str(error):
            raise TraceError(_name_operator(model, error)) from error
        fake_error = error  # fake tensors refuse data-dependent code and some kernels; real ones may not
    meta = [name for name, p in state if p.device.type == "meta"]
    if meta:
        narrow = {p.dtype for _, p in state} & {torch.float16, torch.bfloat16}
        if not narrow and any(word in str(fake_error) for word in ("BF16", "BFloat16", "bfloat16", "Half")):
            raise TraceError(
                f"{kind} does not run in {dtype_name(state[0][1].dtype)} on tensors without values: "
                f"{first_line(fake_error)}. Trace model.bfloat16(), with inputs of that dtype: the graph is the same."
            ) from fake_error
        raise TraceError(
            f"the model has tensors without values ({meta[0]} is on the meta device), so it can only be traced on fake "
            f"tensors, which failed: {first_line(fake_error)}. Check the inputs. If the model's code depends on values "
            "of tensors (.item(), `if tensor:`), load the weights or pass inputs that avoid that code, such as a mask."
        ) from fake_error
    try:
        with _borrow(model):
            return _run(model, (args, dict(kwargs)), None, outputs)
    except OutputError:
        raise
    except Exception as error:
        raise TraceError(_explain(model, error)) from error


def _name_operator(model: nn.Module, error: Exception) -> str:
    """Say which operator takes functions as arguments, and what to use in its place."""
    match = re.search(r"HigherOrderOperator (\w+)", str(error))
    name = match[1] if match else "a higher-order operator"
    instead = (
        'Trace it with scaled_dot_product_attention: attn_implementation="sdpa" in transformers'
        if "flex" in name
        else "Trace it with plain Python control flow"
    )
    return (
        f"{type(model).__name__} runs {name}, an operator that takes functions, whose insides cannot be followed. "
        f"{instead}; the graph fits both, because their tensors have the same names."
    )


def _explain(model: nn.Module, error: Exception) -> str:
    """Say why a model did not run, and what usually helps."""
    narrow = sorted({dtype_name(p.dtype) for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)})
    message = str(error).lower()

    def mentions(*words: str) -> bool:
        return any(word in message for word in words)

    hint = "Run model(*args, **kwargs) first; what fails there fails here."
    if isinstance(error, TypeError) and mentions("argument"):
        hint = (
            "Pass all arguments of its forward: trace(model, *args, **kwargs). A dict alone holds inputs by name; a "
            "model that takes a dict gets it by the name of that argument."
        )
    elif narrow and mentions("half", "bfloat16", "dtype", "implemented for"):
        weights = f"Its weights are {', '.join(narrow)}."
        hint = f"{weights} Trace model.float(): the graph is the same; or pass inputs of that dtype."
    elif mentions("dtype", "scalar type", "long"):
        hint = (
            "Check the dtypes of the inputs: token ids are integers, images and features have the dtype of the weights."
        )
    elif mentions("shape", "size", "dimension", "channels"):
        hint = "Check the shapes of the inputs."
    cause = f"{type(error).__name__}: {first_line(error)}"
    return f"{type(model).__name__} does not run on the inputs given: {cause}. {hint}"


@contextmanager
def _borrow(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, off gradients and fused fast paths, and leave every attribute of every module as it was.

    Models may store what they compute (masks, rotary tables): a fake tensor must not stay behind.
    """
    kept = []  # each module, its attributes, and the content of those that are containers
    for module in model.modules():
        held = {k: copy.copy(v) for k, v in module.__dict__.items() if type(v) in (dict, list, set, OrderedDict)}
        kept.append((module, dict(module.__dict__), held))
    try:
        model.eval()
        with (
            torch.no_grad(),
            NO_FUSED_ATTENTION.held(),
            NO_MKLDNN.held(),
            NO_FAKE_TENSOR_LOG.held(),
            NO_COMPILATION.held(),
        ):
            yield
    finally:
        for module, before, held in kept:
            module.__dict__.clear()
            module.__dict__.update(before)
            for name, content in held.items():
                container = before[name]  # other objects may hold the container itself: only its content is given back
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)


def _run(
    model: nn.Module, inputs: tuple[Any, dict[str, Any]], mode: FakeTensorMode | None, outputs: Sequence[str]
) -> RecordedRun:
    """Run the model on fake tensors where there is a mode for them.

    Without one it runs on its own parameters, and on copies of its buffers and the inputs: ops may write into them.
    """
    copies: dict[int, Tensor] = {}

    def copy_tensor(tensor: Tensor) -> Tensor:
        if mode is None and isinstance(tensor, nn.Parameter):
            return tensor
        if id(tensor) in copies:
            return copies[id(tensor)]
        if mode is None:
            copied = tensor.clone()
        elif tensor.device.type == "meta":  # acts as if it were on the CPU
            bare = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            copied = FakeTensor(mode, bare, torch.device("cpu"))
            if isinstance(tensor, nn.Parameter):
                copied = nn.Parameter(copied, tensor.requires_grad)
        else:
            copied = mode.from_tensor(tensor, static_shapes=True)
        copies[id(tensor)] = copied
        return copied

    copy_input = torch.clone if mode is None else copy_tensor
    args, kwargs = pytree.tree_map_only(Tensor, copy_input, inputs)
    state = _replace_tensors(model, copy_tensor)
    before = [o for o in gc.get_objects() if issubclass(type(o), Tensor)] if mode is None else None
    with ExitStack() as stack:
        path = stack.enter_context(follow_modules(model))
        if mode is not None:
            stack.enter_context(mode)
        recorder = stack.enter_context(Recorder(path, before))
        refs = {name: recorder.describe(tensor) for name, tensor in state.items()}
        recorder.vary((args, kwargs, [tensor for tensor in state.values() if isinstance(tensor, nn.Parameter)]))
        recorder.describe((args, kwargs))
        stack.enter_context(Watch(recorder))
        result = model(*args, **kwargs)
    results = [(name, recorder.describe(tensor)) for name, tensor in named_outputs(result, outputs)]
    if not recorder.is_whole:  # any tensor may have been read or written by what was not recorded
        recorder.leak("unrecorded::op", list(state.values()))
        recorder.steps.insert(0, recorder.steps.pop())
    buffers = dict(model.named_buffers(remove_duplicate=False))
    replaced = frozenset(name for name, tensor in state.items() if buffers.get(name, tensor) is not tensor)
    kind: Literal["fake", "real"] = "fake" if mode else "real"
    choosing = tuple(recorder.choosing)
    return RecordedRun(recorder.steps, results, refs, kind, replaced, recorder.alive, recorder.gives_numbers, choosing)


def _replace_tensors(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Put other tensors in place of the model's own; return them by name."""
    state: dict[str, Tensor] = {}
    seen: set[nn.Module] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = state[dot + name] = tensor if module in seen else replace(tensor)
        seen.add(module)
        if isinstance(module, nn.RNNBase):  # keeps a list of its own
            module.__dict__["_flat_weights"] = [getattr(module, n, None) for n in module._flat_weights_names]
    return state
