"""Deep-Align: similarities of units from an encoder, brought to agree over the graph, then linear assignment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.deepalign import SHIPPED_CHECKPOINT, Aligner, AlignerInput, load_aligner
from alignkit.deepalign.aligner import USUAL, Schedule
from alignkit.deepalign.consensus import consensus
from alignkit.deepalign.midpoint import SAMPLES, meet_in_the_middle
from alignkit.deepalign.own_texts import write_texts
from alignkit.deepalign.probes import probe_similarities
from alignkit.deepalign.probing import Inputs, find_probing
from alignkit.deepalign.relaxation import relax
from alignkit.deepalign.stand_ins import find_middle_inputs
from alignkit.errors import SolverError
from alignkit.graph import SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import KINDS
from alignkit.matching.families import best_element
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.solver import Needs, Outcome, Problem, Report, Returns, Solver, SolverOptions, Step
from alignkit.solvers.coordinate_ascent import Ascent, colour_roots
from alignkit.solvers.sinkhorn import Sinkhorn

TURNS, TURN_BATCH = 200, 32
"""Steps that turn rotations until the middle does what both networks do, and inputs in each."""
_MATRICES = 8
"""Square matrices for each group that are alive at once."""

Encoder = Literal["learned", "probes", "dws"]


class DeepAlignOptions(SolverOptions):
    """Options of Deep-Align."""

    encoder: Encoder = "probes"
    """Where the first scores come from. "learned": the universal encoder, trained on many architectures. "probes":
    responses to probes, nothing learned. "dws": the paper's encoder, trained for one graph; needs ``checkpoint``."""
    checkpoint: Path | None = None
    """File of an aligner that ``alignkit train-deepalign`` wrote. Without it "learned" takes the shipped one."""
    probes: int = Field(128, ge=2)
    """Inputs that both networks are run on, forwards and backwards."""
    inputs: Inputs = "auto"
    """What probes are: the first inputs of the task, or random ones in their shape. "auto" takes the data of a task and
    random inputs where only their shape is known. In place of random tokens networks of the next token write texts."""
    consensus_rounds: int | None = Field(None, ge=0)
    """Rounds of consensus between neighbouring groups. None is 3, or what the aligner has learned; 0 for "dws"."""
    sharpness: float | None = Field(None, gt=0)
    """Factor of standardised scores before Sinkhorn. Larger is closer to a hard permutation. None is 6, or what the
    aligner has learned."""
    carry_over: float | None = Field(None, ge=0)
    """Weight of the scores of the round before, beside the similarities of weights. None is 1, or what the aligner has
    learned."""
    midpoint_steps: int | None = Field(None, ge=0)
    """Steps that move scores until the network in the middle does on 512 inputs what the two do on average. None is 8
    (or what the aligner has learned) on data of a task, on inputs of the domain that the aligner knows, on texts that
    networks of the next token write, and on those of many random inputs on which two classifiers are sure; else it is
    0, as for ``encoder="dws"``. Where units rotate these are 200 steps of `sinkhorn` with ``objective="outputs"``,
    which keep the order of units that do not."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one input, without the batch. Without it the shape is that of the task's inputs, or of the inputs that
    the graph was traced on."""


class DeepAlign(Solver[DeepAlignOptions]):
    """Match units by what they do on probes and by what depends on them, and let neighbours agree.

    After [Navon24]: features that follow the units under any permutation, cosine similarities, Sinkhorn, linear
    assignment; here followed by rounds of consensus with the similarities of weights, and by a few steps that make the
    network in the middle do what the two do. No labels are used: of a task only inputs, and with modules and a
    traced graph (or ``input_shape``) no data at all. Where networks cannot be run it works from weights alone, all
    groups unknown at first. Where units rotate, coordinate ascent takes the place of the rounds. The scores in the end
    are the soft alignment that solvers after it start from; where units rotate it is hard.
    """

    name = "deepalign"
    kinds = frozenset(KINDS)
    needs = Needs(in_memory=False)
    returns = Returns(soft=True, exact_on_permuted_copies=True)

    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Encode, agree, meet in the middle, assign."""
        options = self.options
        if options.encoder != "probes":
            problem.graph.check_kinds(f'encoder="{options.encoder}"', SolverError, 'Take encoder="probes".')
        aligner = self._load_aligner(problem)
        schedule, probed = self._schedule(aligner), None
        if aligner is None or aligner.needs_probes or options.midpoint_steps:
            domain = None if aligner is None else aligner.domain
            probed = find_probing(problem, options.probes, options.inputs, options.input_shape, domain)
            probed = write_texts(probed, options.probes)
        notes = {} if aligner is None else {"aligner": aligner.fingerprint}
        if probed is not None:
            notes["probes"] = probed.why
        scores: dict[str, Tensor] = {}  # of every group that the encoder sees
        if aligner is not None and not aligner.needs_probes:
            if problem.bound.is_stored:
                raise SolverError(
                    'encoder="dws" reads whole networks, which are to stay on disk: bind without memory=.'
                )
            scores = aligner.score(AlignerInput(problem.graph, problem.a, problem.b, seed=problem.seed))
        elif probed is not None and (probing := probed.pair.probing) is not None:
            scores = probe_similarities(probed.pair, probing) if aligner is None else aligner.score(probed.pair)
        rotates = any(map(problem.graph.rotates, problem.graph.groups))
        if rotates:
            agreed = self._ascend(problem, scores)
        else:
            if not scores:  # From weights alone there is nothing to agree on before the first round.
                schedule = replace(schedule, rounds=max(schedule.rounds, USUAL.rounds))
            scores = consensus(problem.objective, scores, schedule)
            agreed = Alignment(problem.graph, best_element(problem.graph, scores))
        asked = bool(options.midpoint_steps)
        middle = None if probed is None or not schedule.steps else find_middle_inputs(probed, anything=asked)
        if asked and middle is None:
            reason = "" if probed is None else f": {probed.why}"
            advice = f"give a task, or leave midpoint_steps= out{reason}"
            raise SolverError(f"midpoint_steps={schedule.steps} runs both networks: {advice}.")
        alignment = agreed
        if probed is not None and middle is not None:
            notes["midpoint steps"] = middle.why
            report(Step(1, problem.objective.distance2(agreed), "rounds of consensus", agreed))
            if rotates:
                alignment = self._turn(replace(problem, init=agreed, task=middle.task))
            else:
                steps = replace(schedule, rate=middle.length * schedule.rate)
                scores = meet_in_the_middle(middle.task, middle.batches, probed.pair, scores, steps)
                alignment = Alignment(problem.graph, best_element(problem.graph, scores))
        report(Step(1 if middle is None else 2, problem.objective.distance2(alignment), alignment=alignment))
        soft = (
            SoftAlignment.from_alignment(alignment) if rotates else softened(problem.graph, scores, schedule.sharpness)
        )
        return Outcome(alignment, notes=notes, soft=soft.completed(problem.device, problem.dtype))

    def _ascend(self, problem: Problem, scores: Mapping[str, Tensor]) -> Alignment:
        """Let groups of which some rotate agree by coordinate ascent, from probes and from weights alone.

        Soft alignments say little about rotations: their mean is 0. Of both ends the nearer one is taken.
        """
        graph, unknown = problem.graph, dict.fromkeys(problem.graph.groups)
        starts: list[dict[str, Tensor | None]] = [unknown]
        trees = [graph.tree(root) for root in graph.roots]
        seen = [n for tree in trees if all(n in scores or graph.children(n) for n in tree) for n in tree]
        if seen:
            probed = best_element(graph, scores)
            starts.append({**unknown, **{name: probed[name] for name in seen}})
        ascent, classes = Ascent(problem.objective), colour_roots(graph)
        best = min((ascent.run(start, classes) for start in starts), key=lambda run: run.distance)
        return Alignment(graph, best.elements)

    def _turn(self, problem: Problem) -> Alignment:
        """Turn rotations from a start until the network in the middle does what both do; keep orders."""
        steps = self.options.midpoint_steps or TURNS
        seen = {"samples": SAMPLES, "score_samples": SAMPLES, "batch_size": TURN_BATCH}
        looks = {"check_every": max(1, steps // 5), "patience": steps}
        turning = Sinkhorn(objective="outputs", max_steps=steps, **seen, **looks)
        return turning.solve(problem, lambda step: None).alignment

    def memory(self, graph: SymmetryGraph) -> int:
        """Return the bytes of scores and soft alignments of all groups, in float64."""
        return 8 * _MATRICES * sum(graph.unit_count(name) ** 2 for name in graph.groups)

    def _schedule(self, aligner: Aligner | None) -> Schedule:
        """Return what the aligner has learned, with the options that were given in its place."""
        options, learned = self.options, USUAL if aligner is None else aligner.schedule

        def chosen(given: float | None, otherwise: float) -> float:
            return otherwise if given is None else given

        return replace(
            learned,
            rounds=int(chosen(options.consensus_rounds, learned.rounds)),
            sharpness=chosen(options.sharpness, learned.sharpness),
            carry_over=chosen(options.carry_over, learned.carry_over),
            steps=int(chosen(options.midpoint_steps, learned.steps)),
        )

    def _load_aligner(self, problem: Problem) -> Aligner | None:
        """Load the trained weights; None for "probes"."""
        options = self.options
        if options.encoder == "probes":
            if options.checkpoint is not None:
                raise SolverError('encoder="probes" has no trained weights: leave checkpoint= out.')
            return None
        path = options.checkpoint or (SHIPPED_CHECKPOINT if options.encoder == "learned" else None)
        if path is None:
            wanted = "give checkpoint=, a file that alignkit train-deepalign wrote"
            raise SolverError(f'encoder="dws" is trained for one graph: {wanted}.')
        aligner = _load_once(Path(path), os.stat(path).st_mtime_ns if os.path.exists(path) else 0)
        if aligner.encoder != options.encoder:
            raise SolverError(f'{path} holds an aligner with encoder="{aligner.encoder}", not "{options.encoder}".')
        if (reason := aligner.fits(problem.graph)) is not None:
            raise SolverError(f"the aligner of {path} does not fit this graph: {reason}")
        return aligner.to(problem.device)


def softened(graph: SymmetryGraph, scores: Mapping[str, Tensor], sharpness: float) -> SoftAlignment:
    """Return the soft alignment of scores, which consensus and midpoint steps work with."""
    with torch.no_grad():
        return relax(graph, {name: matrix[None] for name, matrix in scores.items()}, sharpness).alignment(0)


@lru_cache(maxsize=4)
def _load_once(path: Path, changed: int) -> Aligner:
    """Read an aligner once; ``changed`` is the time of the file's last change."""
    return load_aligner(path)
