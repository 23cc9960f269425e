"""`trace`: the symmetries of a model, inferred from one run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from alignkit.arguments import check_arguments
from alignkit.errors import OutputError, TraceError
from alignkit.graph import AxisPositions, Phase, Provenance, SymmetryGraph, TracedInput, Untie
from alignkit.graph.nodes import SpaceLimit
from alignkit.graph.proof.model_run import example_call
from alignkit.graph.rewrite_checks import fits
from alignkit.plugins import plugin_registry
from alignkit.rewriting import module_with
from alignkit.text import dtype_name, list_some
from alignkit.tracing.gauges.gauges import NO_GAUGES, find_gauges
from alignkit.tracing.gauges.proof import refute
from alignkit.tracing.gauges.second_pass import run_laws
from alignkit.tracing.gauges.turns import replace_turns
from alignkit.tracing.gauges.untying import tied_heads
from alignkit.tracing.interpreter import Interpreter, LabelledStep, live_steps
from alignkit.tracing.labels import buffers, parameters
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.reads import fix_single_rows, positions_of
from alignkit.tracing.labels.tensor_labels import IntArray, Labels
from alignkit.tracing.reading.causes import pinned_axes
from alignkit.tracing.reading.naming import group_names
from alignkit.tracing.reading.sign_families import add_sign_families
from alignkit.tracing.reading.traced_layouts import TracedLayouts, read_layouts
from alignkit.tracing.reading.written_layouts import write_layouts
from alignkit.tracing.recording.recorder import OpRecord, TensorRef
from alignkit.tracing.recording.run import RecordedRun, record
from alignkit.tracing.rules.table import RuleTable

Symmetries: TypeAlias = Literal["permutation", "all"]
UNWRITTEN_SIGNS, UNWRITTEN_PHASES = "some of its signs have no notation", "some of its phases have no notation"


@check_arguments
def trace(
    model: nn.Module,
    *args: Any,
    outputs: str | Sequence[str] = (),
    symmetries: Symmetries = "permutation",
    keep_tied: bool = False,
    **kwargs: Any,
) -> SymmetryGraph:
    """Return the symmetries of a model, inferred from one run on example inputs.

    The model runs once, in eval mode and without gradients, on fake tensors (no weights needed: models on the meta
    device work), or on real ones where its code depends on values; the graph's provenance says which. Inputs and
    outputs keep their order. What could not be freed is in the provenance too: pinned axes with the op that pinned
    them, ops without a rule, tensors that were never read. The model, its mode and its weights stay as they are.

    Args:
        model: The model.
        *args: Example inputs, as for calling the model. Small ones are enough; a batch size of 1 is best. A single
            dict holds inputs by name, as in a `Task`. A model that feeds a state back by code of its own needs two
            time steps: of one, the units of the state stay, and the report says so. (torch's recurrent layers and cells
            need one.)
        outputs: Names of the outputs that count, such as "logits": keys or fields of what the model returns, or
            numbers ("0") for a tuple. Others may come in another order, and nobody should read them. Without names all
            count. (A model with an input of this name gets it in a dict.)
        symmetries: ``"permutation"``, or ``"all"`` for signs, rotations and planes of rotary positions as well, with
            what has to be folded first and what can be balanced. Where the model has weights, each of these is proved
            on perturbed ones, and what fails is given up; the provenance says what keeps a group from more.
        keep_tied: With ``"all"``: whether a head that is tied to the embedding stays so. Otherwise the graph has both
            as tensors of their own, and an `alignkit.graph.Untie` among its folds, where more can be rotated then.
        **kwargs: Example inputs by name.

    Returns:
        The graph. Every symmetry that it allows leaves the model's function unchanged.

    Raises:
        OutputError: The model has no such output, or hides its tensors.
        TraceError: The model does not run on these inputs, or is compiled, scripted or lazy.
        OutputError: It returns an object in which its tensors cannot be found.

    Source: congruence closure (Downey, Sethi and Tarjan 1980) and colour refinement (Weisfeiler and Leman 1968) over
    labelled tensor elements; the page "Tracing" of the documentation explains them.
    """
    args, kwargs = example_call(args, kwargs)
    table = RuleTable(plugin_registry.registry().trace_rules())
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    run, inputs = record(model, args, kwargs, names), _traced_inputs(args, kwargs)
    run = replace(run, partly_taken=_axes_cut_by_numbers(model, args, kwargs, names, table))
    graph = build_graph(model, run, table, inputs, names, symmetries)
    if not keep_tied and (heads := tied_heads(graph, model)):
        untied = trace(module_with(model, {}, heads), *args, outputs=outputs, symmetries=symmetries, **kwargs)
        if untied.dimension > graph.dimension:
            folds = (*(Untie(head, source) for head, source in heads.items()), *untied.folds)
            rewrites = folds, untied.balances, untied.blocked
            return SymmetryGraph(untied.tensors, untied.groups, untied.provenance, *rewrites)
    if symmetries == "permutation" or any(ref.is_meta for ref in model.state_dict(keep_vars=True).values()):
        return graph
    refuted: dict[str, frozenset[str]] = {}
    while failed := refute(graph, model, args, kwargs):
        known = dict(refuted)
        refuted |= {name: refuted.get(name, frozenset()) | what for name, what in failed.items()}
        if refuted == known:
            groups = list_some([*failed], 5)
            raise TraceError(
                f"what was found of {groups} changes the outputs, and cannot be given up. Please report the model; "
                'symmetries="permutation" still works.'
            )
        graph = build_graph(model, run, table, inputs, names, symmetries, refuted)
    provenance = replace(graph.provenance, proved=True)
    rewrites = graph.folds, graph.balances, graph.blocked
    return SymmetryGraph(graph.tensors, graph.groups, provenance, *rewrites)


def _traced_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[TracedInput, ...]:
    """Describe the arguments of an example call; nothing where some are not tensors."""
    inputs = []
    for name, value in [*((None, value) for value in args), *kwargs.items()]:
        if not isinstance(value, Tensor):
            return ()
        low = high = None
        has_values = value.numel() > 0 and not value.is_meta and not isinstance(value, FakeTensor)
        if has_values and not value.is_floating_point() and not value.is_complex():
            low, high = int(value.min()), int(value.max())
        inputs.append(TracedInput(name, tuple(value.shape), dtype_name(value.dtype), low, high))
    return tuple(inputs)


def _axes_cut_by_numbers(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: tuple[str, ...], table: RuleTable
) -> frozenset[tuple[str, int]]:
    """Return the axes of tensors of which a call with a smaller number reads a part: widths that the call chooses.

    A slice as long as its axis is not recorded, so that a run with the largest number does not show it. A number may
    also be the default of an argument that the call leaves out.
    """
    leaves, tree = pytree.tree_flatten((args, {**_default_numbers(model, args, kwargs), **kwargs}))
    cut: set[tuple[str, int]] = set()
    for place, number in enumerate(leaves):
        smaller = number // 2 if type(number) is int else number / 2 if type(number) is float else 0
        if smaller <= 0:
            continue
        smaller_args, smaller_kwargs = pytree.tree_unflatten([*leaves[:place], smaller, *leaves[place + 1 :]], tree)
        with suppress(TraceError, OutputError):  # the model does not take this number
            run = record(model, smaller_args, smaller_kwargs, outputs)
            steps, tensors = _live_part(run, run.steps, _movable_tensors(model, run))
            constant = buffers.constant_buffers(model, run)
            _, labels, reading = interpret(model, run.results, table, steps, tensors, constant)
            cut.update((name, dim) for name, x in labels.items() for dim in positions_of(x, reading.left_aside))
    return frozenset(cut)


def _default_numbers(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers that arguments of a forward have which a call leaves out, by their names."""
    try:
        signature = inspect.signature(model.forward)
        given = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # code that has no signature, or a call that does not fit
        return {}
    left_out = [p for name, p in signature.parameters.items() if name not in given and p.kind is not p.POSITIONAL_ONLY]
    return {p.name: p.default for p in left_out if type(p.default) in (int, float)}


def _live_part(
    run: RecordedRun, steps: Sequence[OpRecord], tensors: Mapping[str, TensorRef]
) -> tuple[list[OpRecord], dict[str, TensorRef]]:
    """Return the steps on which the results of a run depend, and those of some tensors that they read."""
    live = live_steps(steps, [ref for _, ref in run.results])
    read = {ref.storage for step in live for ref in step.inputs}
    return live, {name: ref for name, ref in tensors.items() if ref.storage in read}


def build_graph(
    model: nn.Module,
    run: RecordedRun,
    table: RuleTable,
    inputs: tuple[TracedInput, ...] = (),
    outputs: tuple[str, ...] = (),
    symmetries: Symmetries = "permutation",
    refuted: Mapping[str, frozenset[str]] = MappingProxyType({}),
) -> SymmetryGraph:
    """Return the graph of a recorded run. See `trace`, and `find_gauges` for what was ``refuted``."""
    movable = _movable_tensors(model, run)
    constant = buffers.constant_buffers(model, run)
    gauges = NO_GAUGES
    while True:
        steps, lost = run.steps, gauges.lost
        if symmetries == "all":
            steps = replace_turns(run.steps, {ref.storage for ref in movable.values()}, lost)
        steps, tensors = _live_part(run, steps, movable)
        history: list[LabelledStep] | None = [] if symmetries == "all" else None
        traced, labels, interpreter = interpret(
            model, run.results, table, steps, tensors, constant, history, run.gives_numbers, run.partly_taken
        )
        names = group_names(traced.axes, {name: ref.shape for name, ref in tensors.items()}, traced.symmetry)
        if history is not None:
            findings = run_laws(traced, labels, tensors, history, run.results, _scalars(model, run))
            gauges = find_gauges(findings, names, history, refuted, gauges)
        if gauges.lost == lost:
            break
    layouts, sizes = write_layouts(traced, names, gauges.marks)
    shapes = {name: ref.shape for name, ref in tensors.items()}
    layouts, sizes, unwritten = add_sign_families(layouts, sizes, shapes, gauges.signs, gauges.lone)
    layouts |= {name: " ".join("." * len(tensors[name].shape)) for name in gauges.constants}
    layout_of = {tensors[name].key: layout for name, layout in layouts.items()}
    provenance = Provenance(
        source="traced",
        tensors=run.tensors,
        pinned=pinned_axes(interpreter.constraints, traced, labels),
        unknown_ops=tuple(interpreter.unknown),
        unused=tuple(name for name in movable if name not in tensors),
        unread=_list_positions(labels, interpreter.unread),
        single_step=_list_positions(labels, interpreter.single_step),
        constant=tuple(_live_part(run, run.steps, constant)[1]),
        choosing=run.choosing,
        outputs=outputs,
        inputs=inputs,
        limits=tuple(_with_reason(limit, unwritten, UNWRITTEN_SIGNS) for limit in gauges.limits),
        joint=traced.joint,
        proved=False if symmetries == "all" else None,
        contracted=gauges.contracted,
    )
    # Tied tensors have one layout; buffers that hold no units, and tensors that are never read, are fixed.
    saved = model.state_dict(keep_vars=True)
    spec = {
        name: layout_of.get(ref.key, " ".join("." * len(ref.shape))) for name, ref in run.state.items() if name in saved
    }
    graph = SymmetryGraph.from_spec(
        spec,
        model,
        sizes=sizes,
        provenance=provenance,
        folds=gauges.folds,
        balances=gauges.balances,
        blocked=gauges.blocked,
    )
    return _with_phases(graph, gauges.phases) if gauges.phases else graph


def _with_phases(graph: SymmetryGraph, phases: Iterable[Phase]) -> SymmetryGraph:
    """Add the phases of a trace to its graph, but for those of biases whose units have no notation of their own."""
    kept = [phase for phase in phases if fits(graph.tensors, phase)]
    left = {phase.group for phase in phases if phase not in kept}
    limits = tuple(_with_reason(limit, left, UNWRITTEN_PHASES) for limit in graph.provenance.limits)
    provenance, balances = replace(graph.provenance, limits=limits), (*graph.balances, *kept)
    return SymmetryGraph(graph.tensors, graph.groups, provenance, graph.folds, balances, graph.blocked)


def _scalars(model: nn.Module, run: RecordedRun) -> dict[tuple[int, ...], str]:
    """Return the first names of tensors of one number that a checkpoint holds and the run does not write, by key."""
    written = {ref.storage for step in run.steps for ref in step.written}
    names: dict[tuple[int, ...], str] = {}
    for name in model.state_dict(keep_vars=True):
        ref = run.state.get(name)
        if ref is not None and math.prod(ref.shape) == 1 and ref.storage not in written and name not in run.replaced:
            names.setdefault(ref.key, name)
    return names


def _with_reason(limit: SpaceLimit, groups: Collection[str], reason: str) -> SpaceLimit:
    """Return what keeps a space from more, with a further reason if it is one of some groups."""
    if limit.group not in groups and limit.group.rpartition(".")[0] not in groups:
        return limit
    return replace(limit, reason="; ".join(filter(None, (limit.reason, reason))))


def interpret(
    model: nn.Module,
    results: Sequence[tuple[str, TensorRef]],
    table: RuleTable,
    steps: Sequence[OpRecord],
    tensors: Mapping[str, TensorRef],
    constant: Mapping[str, TensorRef],
    history: list[LabelledStep] | None = None,
    gives_numbers: bool = False,
    partly_taken: Collection[tuple[str, int]] = (),
) -> tuple[TracedLayouts, dict[str, Labels], Interpreter]:
    """Run the rules until the layouts of all tensors can be written; return these, the first labels and what ran.

    Where the notation loses units of tensors whose axes depend on each other, such as those of a square matrix between
    the units of one group, these tensors are labelled without, and what has more symmetries is returned. Where such
    axes would have too many labels, a first reading has none, and tells which of them have units of other tensors:
    these need no labels in each matrix. If the rest is still too many, the first reading is returned.
    """
    uses = parameters.parameter_uses(steps, tensors)
    nested = {
        name: set(parameters.nested_axes(ref.shape, uses.get(ref.storage, parameters.ParameterUse())))
        for name, ref in tensors.items()
    }
    # Tensors each of whose axes moves by itself: weights of a state, and those that have no notation otherwise.
    plain = {name for pair in parameters.state_weights(model, tensors) for name in pair}
    recurrent = {name for name, _ in parameters.state_weights(model, tensors)}
    weights = {ref.storage for name, ref in tensors.items() if name not in recurrent}
    stacks = {
        name for name in nested if name not in plain and _is_large(tensors, nested, [name], parameters.SMALL_STACK)
    }
    joint = stacks if _is_large(tensors, nested, stacks, parameters.MAX_NESTED) else set()
    readings: list[tuple[TracedLayouts, dict[str, Labels], Interpreter]] = []
    while True:
        constraints = Constraints()
        if history is not None:
            history.clear()
        interpreter = Interpreter(table, constraints, weights, history, gives_numbers)
        labels: dict[str, Labels] = {}
        for name, ref in tensors.items():
            use = uses.get(ref.storage, parameters.ParameterUse())
            axes = () if name in plain or name in joint else nested[name]
            labels[name] = parameters.first_labels(constraints, ref.shape, use, axes)
            interpreter.set_labels(ref, labels[name])
        for ref in constant.values():
            interpreter.set_labels(ref, Labels.constant(ref.shape))
        buffers.fix_tables(constraints, model, labels)
        parameters.close_states(constraints, model, labels)
        interpreter.run(steps, results)
        aside = {name: positions_of(x, interpreter.left_aside) for name, x in labels.items()}
        partly_read = {name for name, positions in aside.items() if positions and nested[name]}
        if partly_read - plain:  # what was read of their axes has to stand for the rest
            plain |= partly_read
            continue
        constraints.blame("a smaller number among the inputs", "")
        for name, dim in partly_taken:
            if name in labels and (owner := labels[name].owner.get(dim)):
                constraints.fix_axis(owner.atoms, owner.span.index(dim))
        constraints.blame("unread positions", "")
        for name, x in labels.items():
            fix_single_rows(constraints, x, aside[name])
        traced = read_layouts(constraints, labels)
        plain |= set(traced.varying)
        if traced.varying:
            continue
        if joint:
            for name, axes in parameters.shared_axes(labels, traced.closed.classes, joint).items():
                nested[name] -= axes
            if _is_large(tensors, nested, joint - plain, parameters.MAX_NESTED):
                traced.joint = tuple(name for name in tensors if name in joint)
                return traced, labels, interpreter
            joint = set()
            continue
        readings.append((traced, labels, interpreter))
        lost = _lost_contexts(traced, labels)
        if not lost or len(readings) > 1:
            return max(readings, key=lambda reading: reading[0].symmetry.log_order)
        plain |= lost


def _is_large(
    tensors: Mapping[str, TensorRef], nested: Mapping[str, set[int]], names: Iterable[str], most: int
) -> bool:
    """Return whether nested axes of some tensors have more labels together than `most`."""
    return sum(parameters.nested_atoms(tensors[name].shape, nested[name]) for name in names) > most


def _lost_contexts(traced: TracedLayouts, labels: Mapping[str, Labels]) -> set[str]:
    """Return tensors with axes that depend on each other, of whose classes some have no notation."""
    given_up = np.zeros(traced.closed.count, bool)
    for members in traced.given_up:
        given_up[members] = True
    nested = ((name, block) for name, x in labels.items() for block in x.blocks if block.context)
    return {name for name, block in nested if given_up[traced.closed.classes[block.atoms]].any()}


def _list_positions(labels: Mapping[str, Labels], atoms: IntArray) -> tuple[AxisPositions, ...]:
    """List the positions of parameters whose atoms are among these."""
    return tuple(
        AxisPositions.of(name, dim, positions.tolist())
        for name, first in labels.items()
        for dim, positions in sorted(positions_of(first, atoms).items())
    )


def _movable_tensors(model: nn.Module, run: RecordedRun) -> dict[str, TensorRef]:
    """Return parameters, and buffers that move, in the order of the state dict, tied ones under their first name."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names += buffers.movable_buffers(model, run)
    position = {name: i for i, name in enumerate(model.state_dict(keep_vars=True))}
    first_name: dict[tuple[int, ...], str] = {}
    for name in sorted(names, key=lambda n: position.get(n, len(position))):
        if run.state[name].shape:
            first_name.setdefault(run.state[name].key, name)
    return {name: run.state[name] for name in first_name.values()}
