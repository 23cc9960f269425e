"""`trace`: the permutation symmetries of a model, inferred from one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from alignkit.graph import Provenance, SymmetryGraph, TracedInput
from alignkit.text import dtype_name
from alignkit.tracing.interpret import Interpreter, live_steps, unread
from alignkit.tracing.labels.constants import constant_buffers
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.feedback import close_states, state_weights
from alignkit.tracing.labels.labels import Labels
from alignkit.tracing.labels.parameters import ParameterUse, first_labels, uses
from alignkit.tracing.reading.blame import pinned_axes
from alignkit.tracing.reading.layouts import write_axis
from alignkit.tracing.reading.naming import group_names
from alignkit.tracing.reading.readoff import TracedLayouts, read
from alignkit.tracing.recording.recorder import OpRecord, TensorRef
from alignkit.tracing.recording.run import RecordedRun, record
from alignkit.tracing.rules.table import RuleTable

_RUNNING_STATISTICS = ("running_mean", "running_var")


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> SymmetryGraph:
    """Return the permutation symmetries of a model, inferred from one run on example inputs.

    The model runs once, in eval mode and without gradients, on fake tensors (no weights needed: models on the meta
    device work), or on real ones where its code depends on values; the graph's provenance says which. Inputs and
    outputs keep their order. What could not be freed is in the provenance too: pinned axes with the op that pinned
    them, ops without a rule, tensors that were never read. The model, its mode and its weights stay as they are.

    Args:
        model: The model.
        *args: Example inputs, as for calling the model. Small ones are enough; a batch size of 1 is best. A model
            that feeds a state back by code of its own needs two time steps at least: what the example does not run
            is not seen. (torch's recurrent layers and cells are safe with one.)
        **kwargs: Example inputs by name.

    Returns:
        The graph. Every permutation that it allows leaves the model's function unchanged.

    Raises:
        TraceError: The model does not run on these inputs, or is compiled, scripted or lazy.

    Source: congruence closure and colour refinement over labelled tensor elements; see `docs/trace.md`.
    """
    return graph_of(model, record(model, args, kwargs), rule_table(), traced_inputs(args, kwargs))


def rule_table() -> RuleTable:
    """Return the built-in rules with those of plugins."""
    from alignkit.plugins.plugin_registry import registry

    return RuleTable.build(registry().trace_rules())


def traced_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[TracedInput, ...]:
    """Describe the arguments of an example call; nothing where some are no tensors."""
    given = [*((None, value) for value in args), *kwargs.items()]
    if not all(isinstance(value, Tensor) for _, value in given):
        return ()
    return tuple(_described(name, value) for name, value in given)


def _described(name: str | None, tensor: Tensor) -> TracedInput:
    low = high = None
    has_values = tensor.numel() > 0 and not tensor.is_meta and not isinstance(tensor, FakeTensor)
    if has_values and not tensor.is_floating_point() and not tensor.is_complex():
        low, high = int(tensor.min()), int(tensor.max())
    return TracedInput(name, tuple(tensor.shape), dtype_name(tensor.dtype), low, high)


def graph_of(
    model: nn.Module, run: RecordedRun, table: RuleTable, inputs: tuple[TracedInput, ...] = ()
) -> SymmetryGraph:
    """Return the graph of a recorded run. See `trace`."""
    steps = live_steps(run.steps, run.results)
    movable = _movable(model, run)
    unused = unread(steps, movable)
    tensors = {name: ref for name, ref in movable.items() if name not in unused}
    plain = {name for pair in state_weights(model, tensors) for name in pair}
    while True:
        constraints, interpreter, labels = _interpret(model, run, steps, tensors, table, plain)
        reading = read(constraints, labels)
        if not reading.varying:
            break
        plain |= set(reading.varying)
    spec, sizes = _spec(run, reading, tensors)
    provenance = Provenance(
        source="traced",
        tensors=run.tensors,
        pinned=pinned_axes(constraints, reading, labels),
        unknown_ops=tuple(interpreter.unknown),
        unused=tuple(unused),
        inputs=inputs,
    )
    saved = set(model.state_dict(keep_vars=True))
    return SymmetryGraph.from_spec(
        {name: text for name, text in spec.items() if name in saved}, model, sizes=sizes, provenance=provenance
    )


def _movable(model: nn.Module, run: RecordedRun) -> dict[str, TensorRef]:
    """Return the tensors that permutations may touch.

    Parameters and running statistics, tied ones under their first name.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in model.named_buffers() if name.rpartition(".")[2] in _RUNNING_STATISTICS]
    order = {name: place for place, name in enumerate(model.state_dict(keep_vars=True))}
    movable: dict[str, TensorRef] = {}
    seen: set[int] = set()
    for name in sorted(names, key=lambda n: order.get(n, len(order))):
        ref = run.state[name]
        if ref.shape and ref.key not in seen:
            seen.add(ref.key)
            movable[name] = ref
    return movable


def _interpret(
    model: nn.Module,
    run: RecordedRun,
    steps: list[OpRecord],
    tensors: Mapping[str, TensorRef],
    table: RuleTable,
    plain: set[str],
) -> tuple[Constraints, Interpreter, dict[str, Labels]]:
    constraints = Constraints()
    interpreter = Interpreter(table, constraints)
    found = uses(steps, tensors)
    labels: dict[str, Labels] = {}
    for name, ref in tensors.items():
        use = found.get(ref.storage, ParameterUse())
        labels[name] = first_labels(constraints, ref.shape, use, contextual=name not in plain)
        interpreter.label(ref, labels[name])
    for ref in constant_buffers(model, run):
        interpreter.label(ref, Labels.constant(ref.shape))
    close_states(constraints, model, labels)
    interpreter.run(steps, run.results)
    return constraints, interpreter, labels


def _spec(
    run: RecordedRun, reading: TracedLayouts, tensors: Mapping[str, TensorRef]
) -> tuple[dict[str, str], dict[str, int]]:
    """Write the layouts of all tensors of the model."""
    symmetry = reading.symmetry
    names = group_names(reading.axes, {name: ref.shape for name, ref in tensors.items()}, symmetry)
    texts = {}
    for group, name in names.items():
        parent = symmetry.orbits[group].parent
        texts[group] = name if parent is None else f"{name}[{names[parent]}]"
    written = {
        ref.key: " ".join(write_axis(axis, texts) for axis in reading.axes[name]) for name, ref in tensors.items()
    }
    spec = {name: written.get(ref.key, " ".join("." * len(ref.shape))) for name, ref in run.state.items()}
    return spec, {name: symmetry.orbits[group].size for group, name in names.items()}
