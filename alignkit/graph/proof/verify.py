"""Proof by running: symmetries of a graph keep the outputs of a real model, and two models compute the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.errors import VerificationError
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.hidden_state import check_constants
from alignkit.graph.kinds import KINDS, GroupKind
from alignkit.graph.module_copy import copy_module
from alignkit.graph.phases import move_phases, phases_in
from alignkit.graph.proof.model_run import ModelRun, example_call, run_in_widest
from alignkit.graph.proof.other_inputs import other_runs
from alignkit.graph.rewrites import Phase
from alignkit.graph.structure import GraphStructure
from alignkit.text import dtype_name, list_some, plural, shorten_list

RANDOM = "the model is random: two runs of it differ. Fix its seed, or turn its randomness off."
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Largest relative difference of outputs that still counts as rounding, by the dtype of the run.

Rounding grows with the depth of a model and the length of its sums: a thousandfold the unit roundoff, and more, is seen
in trained models. A wrong order of units changes outputs by more than a percent.
"""


def relative_difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the largest difference of an element over pairs of tensors, relative to the largest element of all.

    Computed in float64. 0 where there are no elements, infinity where the shapes differ, NaN where an element is not
    finite: test ``relative_difference(...) <= tolerance``, which NaN fails.
    """
    if [tensor.shape for tensor in left] != [tensor.shape for tensor in right]:
        return float("inf")
    pairs = [(x.detach().double().cpu(), y.detach().double().cpu()) for x, y in zip(left, right, strict=True)]
    pairs = [(x, y) for x, y in pairs if x.numel()]
    if not pairs:
        return 0.0
    largest = torch.stack([(x - y).abs().max() for x, y in pairs]).max()
    scale = torch.stack([side.abs().max() for pair in pairs for side in pair]).max()
    return float(largest / scale) if scale else 0.0


@dataclass(frozen=True)
class Verification:
    """What a verification measured, with ``draws`` random elements of the symmetry group.

    ``error`` is the largest change of an output element over all draws, relative to the largest output element,
    ``tolerance`` the largest that passes, ``dtype`` that of the run, ``"float64"`` wherever the model runs in it.
    ``others`` says which sizes of the example were changed as well, ``refused`` which the model takes no other of, and
    ``kinds`` what groups there are: of more than one kind each was drawn alone, too. ``phases`` counts the spaces whose
    biases moved by random half periods.
    """

    error: float
    tolerance: float
    dtype: str
    draws: int
    others: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    kinds: tuple[GroupKind, ...] = ("permutation",)
    phases: int = 0

    def explain(self) -> str:
        """Say in a sentence what was tried and what it changed."""
        others = f" Inputs of other sizes were tried too: {', '.join(self.others)}." if self.others else ""
        refused = f" Sizes that the model takes no other of: {', '.join(self.refused)}." if self.refused else ""
        drawn = f"{self.draws} random {_noun(self.kinds)} of all groups"
        if len(self.kinds) > 1:
            drawn += f", and of those alone that are {' or '.join(KINDS[kind].words for kind in self.kinds)},"
        if self.phases:
            drawn += f" and random half periods of {plural(self.phases, 'space')} of sines"
        return (
            f"{drawn} change the outputs by at most {self.error:.1g} of their size "
            f"(tolerance {self.tolerance:.0e}, {self.dtype}).{others}{refused}"
        )


def _noun(kinds: Sequence[GroupKind]) -> str:
    return "reorderings" if set(kinds) <= {"permutation"} else "symmetries"


@check_arguments
def verify(
    graph: GraphStructure, model: nn.Module, *args: Any, draws: int = 3, seed: int = 0, **kwargs: Any
) -> Verification:
    """Apply random elements of the symmetry group to a copy of the model and compare its outputs.

    The model runs in eval mode, in float64 where its operations allow it and in float32 otherwise; casts that it makes
    inside to a narrower type are to float64 instead. Parameters and saved buffers are moved as the graph says. Elements
    of the whole group are drawn, and of a graph with several kinds of groups elements that move those of one kind. With
    each, biases of sine units move by random half periods, where the graph has phases.

    A symmetry has to hold for every input. So one of the random symmetries is tried on other sizes of the example too,
    changed one at a time: the batch, and each length, height or number, smaller and larger. Values that the model
    refuses are left out and told.

    Args:
        graph: The graph to be proved.
        model: A model with real weights; it is left as it is. Weights that are all alike (norms just initialised, zero
            gates) can hide a wrong graph: perturb them first.
        *args: Example inputs of the model; a single dict holds inputs by name.
        draws: Number of random symmetries.
        seed: Seed of the draws.
        **kwargs: Example inputs by name.

    Raises:
        VerificationError: An output changes; the message names the guilty groups and the largest error. Also when the
            model does not run on the inputs, gives other outputs on a second run, or NaN.
    """
    check_constants(graph.provenance.constant, {"the model": model}, VerificationError)
    args, kwargs = example_call(args, kwargs)
    run = run_in_widest(partial(ModelRun, model, args, kwargs, chosen=graph.provenance.outputs))
    tolerance, dtype = TOLERANCE[run.dtype], dtype_name(run.dtype)
    if not run.outputs:
        raise VerificationError("the model returns no floating-point tensor, so nothing can be compared.")
    if any(not bool(torch.isfinite(tensor).all()) for tensor in run.outputs):
        problem = "the unpermuted model returns NaN or infinity, so nothing can be compared"
        raise VerificationError(f"{problem}. Try other weights or inputs.")
    if not relative_difference(run.call(copy_module(run.model)), run.outputs) <= tolerance:
        raise VerificationError(RANDOM)

    worst = 0.0
    for draw in range(draws):
        alignment = Alignment.random(graph, seed + draw)
        worst = max(worst, _proved_change(graph, run, alignment, ""))
    kinds = tuple(kind for kind in KINDS if any(group.kind == kind for group in graph.groups.values()))
    for kind in kinds if len(kinds) > 1 else ():
        moving = {name for name, group in graph.groups.items() if group.kind == kind}
        worst = max(worst, _proved_change(graph, run, _only(Alignment.random(graph, seed), moving), ""))
    others, refused = [], []
    for size, other in other_runs(run) if graph.groups else ():
        if other is None:
            refused.append(size)
            continue
        others.append(size)
        worst = max(worst, _proved_change(graph, other, Alignment.random(graph, seed), f" with {size}"))
    return Verification(worst, tolerance, dtype, draws, tuple(others), tuple(refused), kinds, len(phases_in(graph)))


def _only(alignment: Alignment, groups: Collection[str]) -> Alignment:
    """Return an alignment that moves some groups alone, as another does."""
    still = Alignment.identity(alignment.graph).elements
    elements = {name: element if name in groups else still[name] for name, element in alignment.elements.items()}
    return Alignment(alignment.graph, elements)


def _proved_change(graph: GraphStructure, run: ModelRun, alignment: Alignment, where: str) -> float:
    """Return by how much an element changes the outputs of a run.

    Raises:
        VerificationError: By more than rounding. The message names the groups that do so by themselves.
    """

    def change(element: Alignment, phases: Sequence[Phase] = ()) -> float:
        moved = element.apply(run.model)
        tensors = {name: tensor.data for name, tensor in moved.state_dict(keep_vars=True).items()}
        move_phases(graph, phases, tensors, torch.Generator().manual_seed(0))
        return relative_difference(run.call(moved), run.outputs)

    tolerance, dtype = TOLERANCE[run.dtype], dtype_name(run.dtype)
    error = change(alignment, phases_in(graph))
    if error <= tolerance:
        return error
    still = Alignment.identity(graph)
    if wrong := [phase for phase in phases_in(graph) if not change(still, [phase]) <= tolerance]:
        told = f"moving these biases by half periods changes the outputs{where} (tolerance {tolerance:.0e} in {dtype})"
        raise VerificationError("\n".join([f"{told}:", *shorten_list([f"- {phase}" for phase in wrong], 5)]))
    guilty = [name for name in graph.groups if not change(_only(alignment, {name})) <= tolerance]
    is_permuted = all(group.kind == "permutation" for group in graph.groups.values())
    moving = "permuting" if is_permuted else "permuting or rotating"
    measured = f"largest relative change {error:.2g}, tolerance {tolerance:.0e} in {dtype}"
    if not guilty:
        problem = f"{moving} all groups together changes the outputs{where}, each alone does not"
        raise VerificationError(f"{problem} ({measured}).")
    acts = {name: list_some(graph.tensors_of(name), 5) for name in guilty}
    lines = shorten_list([f"- {name!r}, which acts on {names}" for name, names in acts.items()], 5)
    raise VerificationError(f"{moving} these groups changes the outputs{where} ({measured}):\n" + "\n".join(lines))


@dataclass(frozen=True)
class Equivalence:
    """How far the outputs of two networks are apart, run in the dtype ``dtype``.

    ``error`` is the largest difference of an output element, relative to the largest output element, and ``tolerance``
    the largest error that counts as rounding.
    """

    error: float
    tolerance: float
    dtype: str

    @property
    def same(self) -> bool:
        """Whether the outputs differ by no more than rounding."""
        return self.error <= self.tolerance


def same_function(a: nn.Module, b: nn.Module, *args: Any, outputs: Sequence[str] = (), **kwargs: Any) -> Equivalence:
    """Run two models on one example call, in eval mode, in float64 where they run in it.

    The same outputs on an example do not prove that two networks are equal everywhere, but any error in the order of
    units shows at once.

    Args:
        a: The first model.
        b: The second, of the same architecture.
        *args: Example inputs; a single dict holds inputs by name.
        outputs: Names of the outputs to compare; all where there are none.
        **kwargs: Example inputs by name.

    Raises:
        VerificationError: The outputs differ in number or shape, are not floating-point tensors, or hold NaN; or two
            runs of one model differ.
    """
    args, kwargs = example_call(args, kwargs)
    runs = run_in_widest(lambda dtype: [ModelRun(model, args, kwargs, dtype, outputs) for model in (a, b)])
    left, right = (run.outputs for run in runs)
    if not left or [t.shape for t in left] != [t.shape for t in right]:
        raise VerificationError("the two models return no floating-point tensors of the same shapes to compare.")
    if any(not bool(torch.isfinite(t).all()) for t in (*left, *right)):
        raise VerificationError("a model returns NaN or infinity, so nothing can be compared.")
    compared = Equivalence(relative_difference(left, right), TOLERANCE[runs[0].dtype], dtype_name(runs[0].dtype))
    if not compared.same and relative_difference(left, runs[0].on(runs[0].arguments).outputs) > compared.tolerance:
        raise VerificationError(RANDOM)
    return compared
