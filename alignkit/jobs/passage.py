"""The way from the axes of one network to those of another: rewritten, aligned, and written back."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.activations.random_inputs import traced_call
from alignkit.activations.readings import hooked
from alignkit.checkpoints.dtypes import narrow
from alignkit.checkpoints.fit import is_number
from alignkit.errors import AlignmentError, BindError, GraphError, MergeError
from alignkit.graph import Fixed, Gain, Pair, Segment, SymmetryGraph
from alignkit.graph.bind import WeightsSource
from alignkit.graph.elements.action import act_on_blocks
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import KINDS
from alignkit.graph.layout import Axis
from alignkit.graph.nodes import TensorNode
from alignkit.graph.notation import format_layout
from alignkit.graph.proof.model_run import ModelRun
from alignkit.graph.proof.perturb import perturbed
from alignkit.graph.proof.verify import TOLERANCE, relative_difference
from alignkit.jobs.attachments import Attachments, Place
from alignkit.jobs.fold import Folded, fold
from alignkit.jobs.solve import completed, graph_and_models, solve
from alignkit.reports import Check, Facts, Section
from alignkit.reports.sections import facts_section, function_section, uncovered_section
from alignkit.rewriting import AxisChanges
from alignkit.rewriting.axes import Likes
from alignkit.solver.solution import Solution
from alignkit.text import describe_error, did_you_mean

SAME = TOLERANCE[torch.float64]


@dataclass(frozen=True, eq=False)
class Passage:
    """What brings attachments of A to B.

    Attributes:
        bound: Both networks on their graph, folded and balanced where it says so.
        model: A module of the architecture; None where there is none.
        changes_a: What folding changed on the axes of A.
        changes_b: The same of B.
        alignment: Brings folded B to folded A.
        solution: How it was solved; None where the alignment was given.
    """

    bound: Pair
    model: nn.Module | None
    changes_a: AxisChanges
    changes_b: AxisChanges
    alignment: Alignment
    solution: Solution | None

    @property
    def graph(self) -> SymmetryGraph:
        """The graph of both networks."""
        return self.bound.graph

    @classmethod
    def between(
        cls,
        call: str,
        pair: Pair | SymmetryGraph,
        a: WeightsSource | Folded | None,
        b: WeightsSource | Folded | None,
        alignment: Alignment | Solution | None,
        model: nn.Module | None = None,
        **arguments: Any,
    ) -> Passage:
        """Fold two networks and align the second to the first, unless an alignment is given.

        Raises:
            BindError: The networks do not fit the graph.
            FoldError: They cannot be folded.
            AlignmentError: The alignment belongs to another graph.
            SolverError: The solver is unknown or failed.
        """
        if isinstance(pair, Pair):
            graph, (a, b) = graph_and_models(call, pair, ())
        elif a is None or b is None:
            raise BindError(f"a graph alone says nothing about weights: call {call}(graph, a, b).")
        else:
            graph = pair
        changes = [AxisChanges(), AxisChanges()]
        networks: list[Any] = [a, b]
        for at, network in enumerate(networks):
            if graph.folds or graph.balances or isinstance(network, Folded):
                done = network if isinstance(network, Folded) else fold(network, graph)
                if done.graph != graph:
                    raise BindError("a network was folded for another graph than the one that is given.")
                networks[at], changes[at] = done.network, AxisChanges(done.taken, done.spaces)
        model = a if isinstance(a, nn.Module) else model
        bound = graph.bind(networks[0], networks[1])
        solution = completed(solve(bound, **arguments)) if alignment is None else None
        given = solution if alignment is None else alignment
        assert given is not None
        order = given if isinstance(given, Alignment) else given.alignment
        if order.graph != graph:
            raise AlignmentError("the alignment belongs to another graph than the networks.")
        return cls(bound, model, changes[0], changes[1], order, solution)

    def carry(self, attachments: Attachments, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring attachments to B, in their dtypes; computed in float64 and rounded once where anything is computed.

        Raises:
            FoldError: A gain of B is 0, which nothing can be divided by.
            MergeError: Whole numbers would have to be computed with, or a result overflows its dtype.
        """
        nodes = attachments.graph.tensors
        order = self._order(attachments)
        return {name: self._carry(nodes[name], t, attachments.likes[name], order) for name, t in tensors.items()}

    def constants(
        self, attachments: Attachments, tensors: Mapping[str, Tensor], carried: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return what has to be added to what carried attachments read, where that has a shift or the bias of values.

        Those of A and B are no symmetry. Each constant is the tensor without the axis that reads, in float64;
        those that are 0 are left out.
        """
        order, constants = self._order(attachments), {}
        for name, likes in attachments.likes.items():
            node = attachments.graph.tensors[name]
            for axis, like in likes.items():
                before = self.changes_a.constant(node, tensors[name].cpu(), axis, like)
                after = self.changes_b.constant(node, carried[name].cpu(), axis, like)
                if before is None or after is None:
                    continue
                rest = [at for at in range(len(node.shape)) if at != axis]
                shape, layout = tuple(before.shape), tuple(node.layout[at] for at in rest)
                others = {rest.index(at): place for at, place in likes.items() if at != axis}
                inner = TensorNode(name, (name,), shape, "float64", layout)
                constant = self._carry(inner, before, others, order) - after
                rounding = max(SAME, 30 * torch.finfo(carried[name].dtype).eps)
                if bool((constant.abs() > rounding * torch.maximum(before, after).abs().max()).any()):
                    constants[name] = constant
        return constants

    def _order(self, attachments: Attachments) -> Alignment:
        """Return the way from A to B as an alignment of the attachments."""
        back = self.alignment.inverse()
        return Alignment(attachments.graph, {name: back.elements[name] for name in attachments.graph.groups})

    def _carry(self, node: TensorNode, tensor: Tensor, likes: Likes, order: Alignment) -> Tensor:
        kinds = {order.graph.groups[group].kind for group in node.groups}
        rewritten = bool(likes) and (self.changes_a.taken or self.changes_a.spaces)
        if not is_number(tensor) and (rewritten or any(kind != "permutation" for kind in kinds)):
            raise MergeError(f"{node.name!r} holds whole numbers, which can be put into another order and no more.")
        if not is_number(tensor) or not (likes or any(KINDS[kind].rotates for kind in kinds)):
            return act_on_blocks(node.blocks, tensor.detach(), order.elements)
        wide = tensor.detach().cpu().to(torch.promote_types(tensor.dtype, torch.float64))
        moved = act_on_blocks(node.blocks, self.changes_a.do(node, wide, likes), order.elements)
        carried = narrow(self.changes_b.undo(node, moved, likes), tensor.dtype, node.name, MergeError)
        return carried.to(tensor.device)

    def output_place(self, path: str) -> Place:
        """Find an axis of the graph that is laid out as the axis of units of what comes out of a module, by running it.

        The model is run with random weights, folded, and under a random symmetry. Its units are at the axis whose
        layout explains what the symmetry did.

        Raises:
            MergeError: There is no model, it has no such module, or what comes out of it is not the units of one axis.
        """
        if self.model is None:
            problem = f"'@{path}': the network has no tensor {path!r}, and a module is found by running it"
            raise MergeError(f"{problem}. Give a model, or name a tensor and its axis, as in '@fc.weight:0'.")
        if path not in dict(self.model.named_modules()):
            listed = did_you_mean(path, [name for name, _ in self.model.named_modules()])
            raise MergeError(f"'@{path}': the network has no module and no tensor of this name.{listed}")
        moving, other = Alignment.random(self.graph, 1), perturbed(self.model).to(torch.float64)
        plain = _output(other, self.graph, path)
        folded_other = fold(other, self.graph).network
        assert isinstance(folded_other, nn.Module)
        folded, moved = (_output(net, self.graph, path) for net in (folded_other, moving.apply(folded_other)))
        for axis in (-1, 1) if plain.ndim > 2 else (-1,):
            place = self._explained(moving, folded.movedim(axis, -1), moved.movedim(axis, -1))
            if place is None:
                continue
            balanced = {balance.group for balance in self.graph.balances}
            if balanced & {units.group for units in self.graph.tensors[place[0]].layout[place[1]].units()}:
                return place
            centred = plain - plain.mean(axis, keepdim=True)
            if any(relative_difference([folded], [values]) <= SAME for values in (plain, centred)):
                return place
            raise MergeError(f"'@{path}': folding changes what comes out there. Name an axis {self._readers(path)}.")
        raise MergeError(f"'@{path}': what comes out there are not the units of one axis of the network.")

    def _explained(self, moving: Alignment, before: Tensor, after: Tensor) -> Place | None:
        """Return an axis of the graph whose layout says how the last axis of a tensor was moved; None if none does."""
        before, after = (values.reshape(-1, values.shape[-1]) for values in (before, after))
        tried: set[str] = set()
        for name, tensor in self.graph.tensors.items():
            for axis, layout in enumerate(tensor.layout):
                text = format_layout((layout,))
                if text in tried or layout.is_fixed or tensor.shape[axis] != before.shape[-1]:
                    continue
                tried.add(text)
                rows = Axis((Segment((Fixed(len(before)),)),))
                node = TensorNode(name, (name,), tuple(before.shape), "float64", (rows, layout))
                with contextlib.suppress(GraphError):  # units whose parents stand on another axis
                    if relative_difference([act_on_blocks(node.blocks, before, moving.elements)], [after]) <= SAME:
                        return name, axis
        return None

    def _readers(self, path: str) -> str:
        """Say which axes read a norm whose gain is folded."""
        for gain in (done for done in self.graph.folds if isinstance(done, Gain)):
            if gain.gain.rpartition(".")[0] == path:
                return "that reads it: " + " or ".join(f"'@{place.tensor}:{place.axis}'" for place in gain.readers)
        return "of a tensor that reads or writes it, as in '@fc.weight:0'"


def alignment_sections(
    title: str, alignment: Alignment, solution: Solution | None, pair: Pair | None, check: Check, facts: Facts
) -> tuple[Section, ...]:
    """Show facts and an alignment in a report, with pictures where it was solved."""
    if solution is not None:
        return solution.report(title, pair=pair, check=check, facts=facts).sections
    return facts_section(facts or {}), function_section(check), uncovered_section(alignment.graph)


def _output(network: Any, graph: SymmetryGraph, path: str) -> Tensor:
    """Run a network in float64 on random inputs; return the first tensor that comes out of a module."""
    traced = graph.provenance.inputs
    if not traced:
        problem = f"'@{path}': the graph was not traced, so that nothing is known about inputs of the network"
        raise MergeError(f"{problem}. Name a tensor and its axis, as in '@fc.weight:0'.")
    count = traced[0].shape[0] if traced[0].shape else 1
    args, kwargs = traced_call(traced, count, torch.Generator().manual_seed(0))
    outputs: list[Tensor] = []
    try:
        run = ModelRun(network, args, kwargs, torch.float64)
        with hooked(run.model, [path], lambda _, call: outputs.extend(call.outputs[:1])):
            run.call(run.model)
    except Exception as error:  # any model can fail in any way
        problem = f"'@{path}': the network does not run on inputs drawn at random, in the shapes of the trace"
        problem += f": {describe_error(error)}"
        raise MergeError(f"{problem}. Name a tensor and its axis, as in '@fc.weight:0'.") from error
    if not outputs or outputs[0].ndim < 2 or not outputs[0].is_floating_point():
        raise MergeError(f"'@{path}': no numbers come out there when the network runs. Name a tensor and its axis.")
    return outputs[0].double()
