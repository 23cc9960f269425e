"""Outputs in the form of checkpoints: their names, pieces, files and dtypes, or another dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints import Checkpoint, OnProgress, write_checkpoint, written_together
from alignkit.checkpoints.dtypes import Rounding
from alignkit.checkpoints.folder import CARD, CONFIG, RUN_RECORD
from alignkit.checkpoints.shard import Values, ValuesOf, as_whole, file_kind
from alignkit.checkpoints.staging import check_output, check_room, check_writable, fills_folder, prepare_output, staged
from alignkit.checkpoints.weights import write_weights
from alignkit.checkpoints.writer import byte_counter, bytes_like, check_place
from alignkit.errors import WeightsError
from alignkit.graph import SymmetryGraph
from alignkit.graph.stored import StoredNetwork
from alignkit.jobs.record import Record, sidecar, write_sidecar
from alignkit.models import edited_config, tokenizer_files
from alignkit.text import dtype_name, plural


@dataclass(frozen=True, eq=False)
class OutputForms:
    """Checkpoints of one architecture whose forms outputs take.

    Attributes:
        paths: Files and folders, as they were given; ``checkpoints`` are the same, opened.
        dtype: Floating-point dtype of outputs; None: those of the checkpoint that an output is written like.
        rounding: What weights lost when they were written.
        tokenizer: Folder whose tokenizer outputs have; None: that of the checkpoint that an output is written like.
        on_progress: Called with the bytes of networks that were read into memory, and of those that were written.
    """

    graph: SymmetryGraph
    paths: tuple[Path, ...]
    checkpoints: tuple[Checkpoint, ...]
    dtype: torch.dtype | None = field(default=None, kw_only=True)
    rounding: Rounding = field(default_factory=Rounding, kw_only=True)
    tokenizer: Path | None = field(default=None, kw_only=True)
    on_progress: OnProgress | None = field(default=None, kw_only=True, repr=False)

    @check_arguments
    def write(
        self,
        output: Path,
        network: nn.Module | Mapping[str, Tensor],
        *,
        like: int,
        overwrite: bool = False,
        record: Record | None = None,
        card: str | None = None,
    ) -> None:
        """Write weights in the form of the checkpoint numbered ``like``, or of the output's suffix if that is another.

        Tensors get the names and pieces that the checkpoint has on disk; those that the network lacks are written as
        they are in it. With ``overwrite`` an output that exists is replaced. Networks on disk are written
        in pieces, and keep the form of the checkpoint. Heads that the graph unties from embeddings are written beside
        them, and a ``config.json`` says so, as it says another dtype.

        A ``record`` says what made the output. It is in the headers of safetensors files, in ``alignkit.json`` of a
        folder, and beside a file of another kind. A ``card`` becomes the ``README.md`` of a folder.

        Raises:
            WeightsError: The output cannot be written.
        """
        self._write(output, network, like, overwrite, self.on_progress, record, card)

    def _write(
        self,
        output: Path,
        network: nn.Module | Mapping[str, Tensor],
        like: int,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
        record: Record | None = None,
        card: str | None = None,
    ) -> None:
        form = self._described(self._form(like, self._tied_heads(like)), record, card)
        self.check_place(output, like=like, overwrite=overwrite)
        values = self._values_of(network, like, form)
        with written_together():
            if isinstance(network, StoredNetwork) or self._keeps_form(output, like):
                write_checkpoint(output, form, values, on_progress, overwrite=overwrite)
            else:
                stored = form.stored_values(values)
                tensors = {name: as_whole(stored(name)) for name in form.stored_names}
                write_weights(output, tensors, {"format": "pt", **({} if record is None else record.header)})
            if record is not None:
                write_sidecar(output, record)

    @property
    def _stays_on_disk(self) -> bool:
        """Whether networks are written in pieces."""
        return False

    def _tied_heads(self, index: int) -> dict[str, str]:
        """Return the heads that outputs have beside the embeddings to which a network has tied them."""
        return {}

    def _form(self, like: int, untied: Mapping[str, str]) -> Checkpoint:
        """Return what an output is written like: a checkpoint, with its heads untied and in another dtype."""
        own = self.checkpoints[like]
        texts = {}
        if own.folder is not None and own.config is not None and (untied or self.dtype is not None):
            dtype = None if self.dtype is None else dtype_name(self.dtype)
            texts[Path(CONFIG)] = edited_config(own.folder / CONFIG, untied=bool(untied), dtype=dtype)
        if untied:
            copies = dict((head, source) if source in own else (source, head) for head, source in untied.items())
            own = own.extended(copies, texts)
        return own if self.dtype is None else own.retyped(self.dtype, texts)

    def _described(self, form: Checkpoint, record: Record | None, card: str | None) -> Checkpoint:
        """Let a form say what made an output, not what made its model, and give it the tokenizer that is wanted."""
        contents: dict[Path, str | Path] = {} if card is None else {Path(CARD): card}
        without: tuple[Path, ...] = ()
        if self.tokenizer is not None and form.folder is not None:
            without = tokenizer_files(form.folder)
            contents |= {path: self.tokenizer / path for path in tokenizer_files(self.tokenizer)}
        if record is not None:
            contents[Path(RUN_RECORD)] = record.to_json()
        return form.described({} if record is None else record.header, contents, without)

    def _values_of(self, network: nn.Module | Mapping[str, Tensor], like: int, form: Checkpoint) -> ValuesOf:
        """Return what gives the values of an output in the dtypes of its form."""
        weights = network.state_dict() if isinstance(network, nn.Module) else network
        known = self.graph.first_names if isinstance(weights, StoredNetwork) else weights

        def values(name: str) -> Values:
            dtype = form.entry(name).dtype
            if name not in known:
                new: Values = self.checkpoints[like][name]
            else:
                new = weights.pieces(name) if isinstance(weights, StoredNetwork) else weights[name]
            if isinstance(new, Tensor):
                return self._in_dtype(new, dtype, name)
            return (self._in_dtype(piece, dtype, name) for piece in new)

        return values

    def _in_dtype(self, tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
        both_floats = tensor.is_floating_point() and dtype.is_floating_point
        if tensor.dtype == dtype or not both_floats:
            return tensor.to(dtype)
        return self.rounding.narrow(tensor, dtype, name, WeightsError)

    def check_place(self, output: Path, *, like: int, overwrite: bool = False) -> frozenset[Path]:
        """Raise the `WeightsError` that `write` would; return the files that a folder there may hold."""
        if file_kind(output) == "pickle":
            check_output(prepare_output(sidecar(output)), folder=False, overwrite=overwrite)
        own = self.checkpoints[like]
        if self._stays_on_disk or self._keeps_form(output, like):  # in pieces no other kind of file can be written
            replaces = check_place(output, own, overwrite)
        else:
            check_output(prepare_output(output), folder=False, overwrite=overwrite)
            replaces = frozenset()
        check_writable(output)
        if output.absolute().parent.is_dir():  # a folder that is made for several networks is not there yet
            check_room(output, bytes_like(own))
        return replaces

    def write_set(
        self,
        folder: Path,
        networks: Iterable[nn.Module | Mapping[str, Tensor]],
        *,
        first: int,
        overwrite: bool = False,
        record: Callable[[int], Record] | None = None,
    ) -> None:
        """Write networks into one folder, each in the form and under the name of its checkpoint: all of them, or none.

        They are those of the checkpoints from number ``first`` on. Other files of the folder stay. ``record`` makes the
        record of the output of one number; see `write`.

        Raises:
            WeightsError: One of them cannot be written.
        """
        numbers = range(first, len(self.paths))
        names = [Path(self.paths[number].name) for number in numbers]
        folder = prepare_output(folder)
        replaces = self.check_set(folder, first=first, overwrite=overwrite)
        total = sum(self.checkpoints[number].nbytes for number in numbers)
        advance = byte_counter(self.on_progress, f"writing {plural(len(numbers), 'network')}", total)

        def write(place: Path, replaced: bool) -> None:
            for number, name, network in zip(numbers, names, networks, strict=True):
                told = record and record(number)
                self._write(place / name, network, number, replaced, record=told)
                advance(self.checkpoints[number].nbytes)

        if fills_folder(folder, replaces):
            with staged(folder, folder=True, overwrite=overwrite, replaces=replaces) as temporary:
                write(temporary, False)
        else:
            with written_together():
                write(folder, overwrite)

    def check_set(self, folder: Path, *, first: int, overwrite: bool = False) -> frozenset[Path]:
        """Raise the `WeightsError` that `write_set` would; return the paths of the files that it may replace."""
        numbers = range(first, len(self.paths))
        check_room(folder, sum(bytes_like(self.checkpoints[number]) for number in numbers))
        if not folder.is_dir():
            check_output(folder, folder=True, overwrite=False)
            return frozenset()
        replaces: set[Path] = set()
        for number in numbers:
            name = self.paths[number].name
            inside = self.check_place(folder / name, like=number, overwrite=overwrite)
            beside = {Path(name), sidecar(Path(name))}
            replaces |= {Path(name, path) for path in inside} if inside else beside
        return frozenset(replaces)

    def _keeps_form(self, output: Path, like: int) -> bool:
        """Whether an output by its name has the form of a checkpoint: a folder, or a file of its kind."""
        own = self.checkpoints[like]
        return file_kind(output) == (None if own.folder is not None else file_kind(own.shards[0].path))
