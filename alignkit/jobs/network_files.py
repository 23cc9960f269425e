"""Checkpoints of one architecture with the graph of their symmetries: what the jobs of the command line begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints import (
    Checkpoint,
    OnProgress,
    write_checkpoint,
    written_together,
)
from alignkit.checkpoints.fit import Fit, first_names
from alignkit.checkpoints.folder import CONFIG
from alignkit.checkpoints.shard import as_whole, file_kind
from alignkit.checkpoints.staging import check_output, fills_folder, prepare_output, staged
from alignkit.checkpoints.weights import write_weights
from alignkit.checkpoints.writer import check_place
from alignkit.errors import (
    BindError,
    FoldError,
    ShapeMismatchError,
    UsageError,
    VerificationError,
)
from alignkit.graph import Pair, SymmetryGraph
from alignkit.graph.bind import fit_of, weights_of
from alignkit.graph.proof.verify import Equivalence, same_function
from alignkit.graph.rewrites import under_both_names, untied_heads
from alignkit.graph.stored import Budget, StoredNetwork, parse_memory
from alignkit.graph.stored.opening import open_stored
from alignkit.jobs.estimate import Estimate, Job, SolverNames, estimate
from alignkit.jobs.fold import Folded, fold
from alignkit.models import Example, load_model, untied_config
from alignkit.rewriting import module_with
from alignkit.tracing.tracer import Symmetries


@dataclass(frozen=True, eq=False)
class NetworkFiles:
    """Checkpoints of one architecture, the first of which is the reference.

    Names, shapes and files are known at once. Values are read when they are asked for.

    Attributes:
        paths: Files and folders, as they were given; ``checkpoints`` are the same, opened.
        model: Name of the model, as `alignkit.models.load_model` takes it; None where there is only a spec.
        unknown: Tensors of the checkpoints that the model does not have. They stay as they are.
        own_models: Names of the models of all networks, where each is run with a configuration of its own.
        notes: What differs between the folders and does not change what the weights compute, such as tokenizers.
        symmetries: What was traced. With ``"all"`` the networks are folded when they are read.
        balance: Whether they are balanced, too.
    """

    graph: SymmetryGraph
    paths: tuple[Path, ...]
    checkpoints: tuple[Checkpoint, ...]
    model: str | None = None
    unknown: tuple[str, ...] = ()
    own_models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    symmetries: Symmetries = "permutation"
    balance: bool = True

    @cached_property
    def given(self) -> tuple[dict[str, Tensor], ...]:
        """The tensors of each network as its files hold them, without those that the model does not have."""
        networks = [checkpoint.read_all() for checkpoint in self.checkpoints]
        return tuple({name: t for name, t in tensors.items() if name not in self.unknown} for tensors in networks)

    @cached_property
    def folded(self) -> tuple[Folded, ...]:
        """What `alignkit.fold` made of each network; nothing where permutations were traced.

        Raises:
            FoldError: A network does not fit the graph, or cannot be folded; as for the next, the message names it.
            VerificationError: A folded network does not compute the same.
        """
        return tuple(map(self._fold, range(len(self.paths)))) if self.symmetries == "all" else ()

    def _fold(self, index: int) -> Folded:
        module, args, kwargs = self.own_example(index) or (None, (), {})
        try:
            return fold(self.given[index], self.graph, *args, balance=self.balance, model=module, **kwargs)
        except (FoldError, VerificationError) as error:
            raise type(error)(f"{self.paths[index]}: {error}") from error

    @cached_property
    def weights(self) -> tuple[Mapping[str, Tensor], ...]:
        """The tensors of each network, in memory, as the graph needs them: folded where it has folds."""
        networks = tuple(folded.network for folded in self.folded)
        return tuple(network for network in networks if isinstance(network, dict)) or self.given

    @check_arguments
    def networks(self, memory: str | None = None) -> Sequence[Mapping[str, Tensor]]:
        """Return the networks: their tensors, or with a limit of memory networks of the graph that stay on disk."""
        if memory is None:
            return self.weights
        self._refuse_folds()
        labelled = dict(zip(map(str, self.paths), self.checkpoints, strict=True))
        return open_stored(self.graph, labelled, Budget.of(self.graph, memory))

    @check_arguments
    def bind(self, memory: str | None = None, on_progress: OnProgress | None = None) -> Pair:
        """Bind the first network and the second to the graph, as `SymmetryGraph.bind` does."""
        if memory is not None:
            self._refuse_folds()
        a, b = self.weights if memory is None else self.checkpoints
        return self.graph.bind(a, b, memory=memory, on_progress=on_progress)

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
        """Return the model with the weights of one network.

        Raises:
            UsageError: There is only a spec, or the model is too large.
            ShapeMismatchError: The weights do not fit the model.
        """
        example = self.own_example(index)
        if example is None:
            raise UsageError("this runs the networks, which a spec cannot do: say --model SOURCE:NAME.")
        module, weights = module_with(example[0], {}, untied_heads(self.graph.folds)), self.weights[index]
        own = module.state_dict()
        names = first_names(own)
        fit = Fit({name: tuple(own[name].shape) for name in names.values()}, names, "the model")
        fit.check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, "the checkpoint")
        fit.raise_if_any(ShapeMismatchError, f"{self.paths[index]} does not fit the model")
        module.load_state_dict(weights, strict=False)
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
    def estimate(
        self,
        job: Job,
        *,
        solver: SolverNames = "weight_matching",
        memory: str | None = None,
        writes: Sequence[str] = (),
    ) -> Estimate:
        """Estimate by `alignkit.estimate` what a job needs, once names and shapes are held against the graph.

        Raises:
            BindError: The checkpoints do not fit the graph; every mismatch is listed.
        """
        fit = fit_of(self.graph)
        for path, checkpoint in zip(self.paths, self.checkpoints, strict=True):
            shapes = {name: shape for name, shape in checkpoint.shapes.items() if name not in self.unknown}
            fit.check_shapes(under_both_names(shapes, self.graph.folds), str(path))
        fit.raise_if_any(BindError, "the checkpoints do not fit the graph")
        reads = list(map(str, self.paths))
        count, size = len(reads), self.checkpoints[0].nbytes if self.checkpoints else None
        limit = None if memory is None else parse_memory(memory)
        return estimate(
            self.graph, job, models=count, solver=solver, memory=limit, bytes_each=size, reads=reads, writes=writes
        )

    @check_arguments
    def write(
        self,
        output: Path,
        network: nn.Module | Mapping[str, Tensor],
        *,
        like: int,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Write weights in the form of the checkpoint numbered ``like``, or of the output's suffix if that is another.

        Tensors get the names and pieces that the checkpoint has on disk; those that the network lacks are written as
        they are in it. With ``overwrite`` an output that exists is replaced. ``on_progress`` is called with the bytes
        written so far. Networks on disk are written in pieces, and keep the form of the checkpoint. Heads that the
        graph unties from embeddings are written beside them, and a ``config.json`` says so.

        Raises:
            WeightsError: The output cannot be written.
        """
        weights = network.state_dict() if isinstance(network, nn.Module) else network
        own = self.checkpoints[like]
        if untied := self._tied_heads(like):
            copies = dict((head, source) if source in own else (source, head) for head, source in untied.items())
            texts = {Path(CONFIG): untied_config(own.folder / CONFIG)} if own.folder and own.config else {}
            own = own.extended(copies, texts)
        self.check_place(output, like=like, overwrite=overwrite)
        if isinstance(network, StoredNetwork):
            write_checkpoint(output, own, network.pieces, on_progress, overwrite=overwrite)
        elif self._keeps_form(output, like):

            def tensor(name: str) -> Tensor:
                return weights[name].to(own.entry(name).dtype) if name in weights else own[name]

            write_checkpoint(output, own, tensor, on_progress, overwrite=overwrite)
        else:
            stored = own.stored_values(lambda name: weights[name] if name in weights else own[name])
            write_weights(output, {name: as_whole(stored(name)) for name in own.stored_names}, {"format": "pt"})

    def _tied_heads(self, index: int) -> dict[str, str]:
        """Return the heads that the graph unties and that a network has tied, with their embeddings."""
        ties = untied_heads(self.graph.folds)
        given = under_both_names(self.given[index], self.graph.folds) if ties else {}
        return {head: source for head, source in ties.items() if torch.equal(given[head], given[source])}

    def _refuse_folds(self) -> None:
        if self.symmetries == "all":
            raise BindError("a fold takes whole networks, in float64: leave the limit of memory out.")

    def check_place(self, output: Path, *, like: int, overwrite: bool = False) -> frozenset[Path]:
        """Raise the `WeightsError` that `write` would; return the files that a folder there may hold."""
        if self._keeps_form(output, like):
            return check_place(output, self.checkpoints[like], overwrite)
        check_output(prepare_output(output), folder=False, overwrite=overwrite)
        return frozenset()

    def write_set(
        self, folder: Path, networks: Iterable[nn.Module | Mapping[str, Tensor]], *, first: int, overwrite: bool = False
    ) -> None:
        """Write networks into one folder, each in the form and under the name of its checkpoint: all of them, or none.

        They are those of the checkpoints from number ``first`` on. Other files of the folder stay.

        Raises:
            WeightsError: One of them cannot be written.
        """
        numbers = range(first, len(self.paths))
        names = [Path(self.paths[number].name) for number in numbers]
        folder = prepare_output(folder)
        replaces = self.check_set(folder, first=first, overwrite=overwrite)
        if fills_folder(folder, replaces):
            with staged(folder, folder=True, overwrite=overwrite, replaces=replaces) as temporary:
                for number, name, network in zip(numbers, names, networks, strict=True):
                    self.write(temporary / name, network, like=number)
        else:
            with written_together():
                for number, name, network in zip(numbers, names, networks, strict=True):
                    self.write(folder / name, network, like=number, overwrite=overwrite)

    def check_set(self, folder: Path, *, first: int, overwrite: bool = False) -> frozenset[Path]:
        """Raise the `WeightsError` that `write_set` would; return the paths of the files that it may replace."""
        if not folder.is_dir():
            check_output(folder, folder=True, overwrite=False)
            return frozenset()
        replaces: set[Path] = set()
        for number in range(first, len(self.paths)):
            name = self.paths[number].name
            inside = self.check_place(folder / name, like=number, overwrite=overwrite)
            replaces |= {Path(name, path) for path in inside} if inside else {Path(name)}
        return frozenset(replaces)

    def _keeps_form(self, output: Path, like: int) -> bool:
        """Whether an output by its name has the form of a checkpoint: a folder, or a file of its kind."""
        own = self.checkpoints[like]
        return file_kind(output) == (None if own.folder is not None else file_kind(own.shards[0].path))


def with_weights(model: str) -> Example | None:
    """Build a model with random weights; None where it is too large for them."""
    example = load_model(model)
    return None if any(parameter.is_meta for parameter in example[0].parameters()) else example
