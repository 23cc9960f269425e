"""Checkpoints of one architecture with the graph of their symmetries: what the jobs of the command line begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints import Checkpoint
from alignkit.checkpoints.filled import FilledCheckpoint
from alignkit.checkpoints.fit import Fit, first_names, is_number
from alignkit.checkpoints.writer import byte_counter
from alignkit.errors import (
    BindError,
    FoldError,
    ShapeMismatchError,
    TaskChoiceError,
    TaskError,
    UsageError,
    VerificationError,
)
from alignkit.graph import Pair
from alignkit.graph.bind import fit_of, weights_of
from alignkit.graph.proof.verify import Equivalence, same_function
from alignkit.graph.rewrites import under_both_names, untied_heads
from alignkit.graph.stored import Budget, StoredNetwork, parse_memory
from alignkit.graph.stored.network import PatchedNetwork
from alignkit.graph.stored.opening import open_as_given
from alignkit.jobs.average import Method
from alignkit.jobs.estimate import Estimate, Job, SolverNames, estimate
from alignkit.jobs.file_tasks import FORMS, task_from_file
from alignkit.jobs.fold import Folded, fold, fold_stored
from alignkit.jobs.output_forms import OutputForms
from alignkit.jobs.partial import shares_of_present, stand_ins
from alignkit.jobs.record import Record, RecordedInput, input_of, input_of_path, make_record
from alignkit.jobs.shares import SharesByPattern
from alignkit.models import Example, load_model
from alignkit.rewriting import folding_bytes, module_with
from alignkit.tasks.task import Task
from alignkit.tracing.tracer import Symmetries


@dataclass(frozen=True, eq=False)
class NetworkFiles(OutputForms):
    """Checkpoints of one architecture, the first of which is the reference.

    Names, shapes and files are known at once. Values are read when they are asked for.

    Attributes:
        model: Name of the model, as `alignkit.models.load_model` takes it; None where there is only a spec.
        unknown: Tensors of the checkpoints that the model does not have. They stay as they are.
        own_models: Names of the models of all networks, where each is run with a configuration of its own.
        notes: What differs between the folders and does not change what the weights compute, such as tokenizers.
        symmetries: What was traced. With ``"all"`` the networks are folded when they are read.
        balance: Whether they are balanced, too.
        memory: With a limit the networks stay on disk, and are folded when they are asked for a tensor.
        scratch: A folder for what was folded on disk, so that it is not folded again; None: it is.
        bases: The number of the base of each network that is a fine-tune of another one. It is balanced as its base is.
            A base may be among them: it is rewritten by the same numbers then, so that equals of it become equal.
        missing: First names of the tensors that each network lacks, and may lack.
    """

    model: str | None = None
    unknown: tuple[str, ...] = ()
    own_models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    symmetries: Symmetries = "permutation"
    balance: bool = True
    bases: Mapping[int, int] = field(default_factory=dict)
    memory: str | None = None
    scratch: Path | None = None
    missing: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def given(self) -> tuple[dict[str, Tensor], ...]:
        """The tensors of each network as its files hold them, without those that the model does not have.

        They are in the dtype of outputs where that is wider. Zeros stand for tensors that may be missing; where a
        fine-tune or its base lacks one, it counts as not changed.
        """
        advance = byte_counter(self.on_progress, "reading", sum(each.nbytes for each in self.checkpoints))
        networks = []
        for checkpoint in self._filled:
            networks.append(checkpoint.read_all())
            advance(checkpoint.nbytes)
        own = [{name: t for name, t in tensors.items() if name not in self.unknown} for tensors in networks]
        for tuned, base in self._unknown_changes.items():
            for name in self._lacked(tuned, base):
                own[tuned] |= {n: own[base][n] for n in self.graph.tensors[name].names if n in own[base]}
        return tuple(map(self._widened, own))

    @cached_property
    def _filled(self) -> tuple[Checkpoint, ...]:
        """The checkpoints, with zeros for what each lacks."""
        lacks = self.missing or ((),) * len(self.checkpoints)
        return tuple(
            FilledCheckpoint(own, stand_ins(names, self.graph, self.checkpoints)) if names else own
            for own, names in zip(self.checkpoints, lacks, strict=True)
        )

    def _widened(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors in the dtype of outputs where that is wider; tied ones stay tied."""
        if self.dtype is None:
            return tensors
        size = self.dtype.itemsize
        every = {id(t): t.to(self.dtype) if is_number(t) and t.itemsize < size else t for t in tensors.values()}
        return {name: every[id(tensor)] for name, tensor in tensors.items()}

    @cached_property
    def folded(self) -> tuple[Folded, ...]:
        """What `alignkit.fold` made of each network; nothing where permutations were traced.

        Raises:
            FoldError: A network does not fit the graph, or cannot be folded; as for the next, the message names it.
            VerificationError: A folded network does not compute the same.
        """
        if self.symmetries != "all":
            return ()
        bases = {base: self._fold(base, None) for base in sorted(set(self.bases.values()))}
        like = {base: replace(folded, network={}) for base, folded in bases.items()}  # spaces alone are followed
        return tuple(
            bases[index]
            if index in bases and index not in self.bases
            else self._fold(index, like[self.bases[index]] if index in self.bases else None)
            for index in range(len(self.paths))
        )

    def _fold(self, index: int, base: Folded | None) -> Folded:
        try:
            if self.memory is not None:
                source, balance = self._stored[index], self.balance
                place = None
                if self.scratch is not None:
                    place = self.scratch / str(len(list(self.scratch.iterdir())))
                    place.mkdir()
                return fold_stored(source, self.graph, balance=balance, like=base, dtype=self.dtype, scratch=place)
            module, args, kwargs = self.own_example(index) or (None, (), {})
            return fold(self.given[index], self.graph, *args, balance=self.balance, like=base, model=module, **kwargs)
        except (FoldError, VerificationError) as error:
            raise type(error)(f"{self.paths[index]}: {error}") from error

    @cached_property
    def weights(self) -> tuple[Mapping[str, Tensor], ...]:
        """The tensors of each network as the graph needs them, folded where it has folds: in memory, or on disk."""
        networks = tuple(folded.network for folded in self.folded)
        as_given = self.given if self.memory is None else self._stored
        return tuple(network for network in networks if isinstance(network, Mapping)) or as_given

    @cached_property
    def _stored(self) -> tuple[StoredNetwork, ...]:
        """The networks on disk, as their files hold them, within what folding leaves of the limit of memory."""
        assert self.memory is not None
        limit, own = parse_memory(self.memory), 0
        labelled = dict(zip(map(str, self.paths), self._filled, strict=True))
        opened = dict(zip(labelled, open_as_given(self.graph, labelled, Budget(limit)), strict=True))
        networks = [opened[str(path)] for path in self.paths]  # a path may be named twice
        for tuned, base in self._unknown_changes.items():
            networks[tuned] = PatchedNetwork(networks[tuned], dict.fromkeys(self._lacked(tuned, base), networks[base]))
        if self.symmetries == "all":
            own = folding_bytes(networks, self.graph.balances if self.balance else ())
        several = len(networks) > 1  # which are matched, and not only folded
        budget = Budget.of(self.graph, limit, own, "folds") if several else Budget(limit - own)
        return tuple(network.within(budget) for network in networks)

    def bind(self) -> Pair:
        """Bind the first network and the second to the graph, as `SymmetryGraph.bind` does.

        Tensors that one of them lacks are zero in both, so that nothing that is measured on the pair counts them.
        """
        a, b = map(self._without_lacked, self.weights)
        return self.graph.bind(a, b, on_progress=self.on_progress)

    def _without_lacked(self, network: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a network with zeros for the tensors that some network lacks."""
        if not (lacked := self._lacked(*range(len(self.missing)))):
            return network
        if isinstance(network, StoredNetwork):
            return PatchedNetwork(network, dict.fromkeys(lacked))
        known = self.graph.first_names
        return {name: torch.zeros_like(t) if known[name] in lacked else t for name, t in network.items()}

    def _lacked(self, *numbers: int) -> set[str]:
        """Return the first names of the tensors that some of the networks of these numbers lack."""
        return {name for number in numbers for name in self.missing[number]}

    @property
    def _unknown_changes(self) -> Mapping[int, int]:
        """The fine-tunes, with their bases, that may lack tensors: what tuning changed in them is not known."""
        return {tuned: base for tuned, base in self.bases.items() if self.missing and self._lacked(tuned, base)}

    @cached_property
    def example(self) -> Example | None:
        """The model with random weights and an example call; None where there is none, or it is too large."""
        return None if self.model is None else with_weights(self.model)

    def own_example(self, index: int) -> Example | None:
        """Return the same for one network, with its own configuration."""
        own = self.own_models[index] if self.own_models else self.model
        return self.example if own is None or own == self.model else with_weights(own)

    @check_arguments
    def module(self, index: int) -> nn.Module:
        """Return the model with the weights of one network, folded where the graph has folds.

        Tensors that it lacks have random values.

        Raises:
            UsageError: There is only a spec, or the model is too large.
            ShapeMismatchError: The weights do not fit the model.
        """
        return self._module_with(index, self.weights[index], untied_heads(self.graph.folds))

    @check_arguments
    def given_module(self, index: int) -> nn.Module:
        """Return the model with the weights of one network as its files hold them; see `module` for errors."""
        heads = [head for head in untied_heads(self.graph.folds) if head not in self._tied_heads(index)]
        return self._module_with(index, self.given[index], heads)

    def _module_with(self, index: int, weights: Mapping[str, Tensor], untied: Iterable[str]) -> nn.Module:
        example = self.own_example(index)
        if example is None:
            raise UsageError("this runs the networks, which a spec cannot do: say --model SOURCE:NAME.")
        module = module_with(example[0], {}, untied)
        own = module.state_dict()
        names = first_names(own)
        fit = Fit({name: tuple(own[name].shape) for name in names.values()}, names, "the model")
        fit.check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, "the checkpoint")
        fit.raise_if_any(ShapeMismatchError, f"{self.paths[index]} does not fit the model")
        lacked = self.missing[index] if self.missing else ()
        present = {name: t for name, t in weights.items() if self.graph.first_names.get(name) not in lacked}
        module.load_state_dict(present, strict=False)
        return module

    @check_arguments
    def error_of(self, index: int, network: nn.Module | Mapping[str, Tensor]) -> Equivalence | None:
        """Run a network as its files hold it, and the same with other weights; None where it cannot be run.

        Raises:
            VerificationError: The outputs cannot be compared.
        """
        example = self.own_example(index)
        if example is None:
            return None
        module, args, kwargs = example
        changed = module_with(module, weights_of(network), untied_heads(self.graph.folds))
        given = module_with(module, self.given[index])
        return same_function(given, changed, *args, outputs=self.graph.provenance.outputs, **kwargs)

    @check_arguments
    def task(self, source: str) -> Task:
        """Return the task that a name stands for, ``package.module:function``, or that a file of data makes.

        Args:
            source: The name; or the path of a table of inputs and targets, or of a text for a language model.

        Raises:
            TaskChoiceError: There is nothing of this name.
            TaskError: It makes no task, or a network lacks tensors, so that it cannot be run.
            UsageError: A file needs a model that can be run, and there is only a spec.
        """
        path = Path(source)
        for own, lacks in zip(self.paths, self.missing, strict=False):
            if lacks:
                raise TaskError(f"--task {source} runs the networks, and {own} lacks {lacks[0]!r}: leave --task out.")
        if not path.exists():
            if ":" in source:
                return Task.from_name(source)
            raise TaskChoiceError(f"--task {source}: there is no such file. Give {FORMS}.")
        if self.example is None:
            raise UsageError(f"--task {source} runs the networks, which a spec cannot do: say --model SOURCE:NAME.")
        return task_from_file(path, self.example, self.checkpoints[0].folder if self.checkpoints else None)

    @check_arguments
    def estimate(
        self,
        job: Job,
        *,
        solver: SolverNames = "weight_matching",
        writes: Sequence[str] = (),
    ) -> Estimate:
        """Estimate by `alignkit.estimate` what a job needs, once names and shapes are held against the graph.

        Raises:
            BindError: The checkpoints do not fit the graph; every mismatch is listed.
        """
        fit = fit_of(self.graph)
        missing = self.missing or ((),) * len(self.paths)
        for path, checkpoint, lacks in zip(self.paths, self.checkpoints, missing, strict=True):
            shapes = {name: shape for name, shape in checkpoint.shapes.items() if name not in self.unknown}
            shapes |= {name: self.graph.tensors[name].shape for name in lacks}
            fit.check_shapes(under_both_names(shapes, self.graph.folds), str(path))
        fit.raise_if_any(BindError, "the checkpoints do not fit the graph")
        return self.plan(job, solver=solver, writes=writes)

    @check_arguments
    def plan(
        self,
        job: Job,
        *,
        solver: SolverNames = "weight_matching",
        writes: Sequence[str] = (),
    ) -> Estimate:
        """Estimate the same without a look at names and shapes."""
        reads = list(map(str, self.paths))
        count, size = len(reads), self.checkpoints[0].nbytes if self.checkpoints else None
        limit = None if self.memory is None else parse_memory(self.memory)
        return estimate(
            self.graph, job, models=count, solver=solver, memory=limit, bytes_each=size, reads=reads, writes=writes
        )

    @check_arguments
    def weights_for(self, weights: SharesByPattern, method: Method = "linear") -> SharesByPattern:
        """Return weights of `alignkit.merge` by which no network counts for tensors that it lacks.

        Raises:
            MergeError: The weights are wrong, or the base of task vectors lacks a tensor.
        """
        return shares_of_present(weights, method, self.missing, self.graph) if any(self.missing) else weights

    @cached_property
    def inputs(self) -> tuple[RecordedInput, ...]:
        """What was read, with the check sums of all files; they are read through for it once."""
        return tuple(map(input_of, self.paths, self.checkpoints))

    @check_arguments
    def record(
        self, job: str, parameters: Mapping[str, Any], results: Mapping[str, Any], more: Sequence[Path] = ()
    ) -> Record:
        """Return the record of what a job made of the networks; see `write`.

        Args:
            job: Name of the job.
            parameters: What it was given, by name.
            results: The numbers that were reached, such as ``result.facts()``.
            more: Files and folders of adapters that were read beside the networks.

        Raises:
            WeightsError: A file was changed since it was opened, or cannot be read.
        """
        return make_record(job, parameters, (*self.inputs, *map(input_of_path, more)), results)

    @property
    def _stays_on_disk(self) -> bool:
        """Whether networks are written in pieces."""
        return self.memory is not None

    def _tied_heads(self, index: int) -> dict[str, str]:
        """Return the heads that the graph unties and that a network has tied, with their embeddings."""
        ties = untied_heads(self.graph.folds)
        if self.memory is not None:
            return dict(self.folded[index].untied) if ties else {}
        given = under_both_names(self.given[index], self.graph.folds) if ties else {}
        return {head: source for head, source in ties.items() if torch.equal(given[head], given[source])}


def with_weights(model: str) -> Example | None:
    """Build a model with random weights; None where it is too large for them."""
    example = load_model(model)
    return None if any(parameter.is_meta for parameter in example[0].parameters()) else example
