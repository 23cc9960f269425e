"""How transformers turns the tensors of a checkpoint into those of a model, learned from its own loader.

transformers renames tensors while it reads them, stacks experts and splits projections, by rules that differ from
version to version and from family to family. None of these rules is known here. Its loader is given marked tensors:
those that arrive as the very same piece of memory were only renamed; of the others every entry is numbered, and the
numbers tell where it went. So every tensor is accounted for, and the way back follows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignkit.arguments import check_arguments
from alignkit.checkpoints import Conversion, Rearranged, TensorEntry
from alignkit.checkpoints.fit import is_number
from alignkit.errors import ModelSourceError
from alignkit.models import building
from alignkit.text import list_some

BASE = 1 << 23
"""Numbers below it, and twice it, are exact in float32."""


@check_arguments
def conversion_of(model: nn.Module, entries: Mapping[str, TensorEntry]) -> Conversion | None:
    """Return how the tensors of a checkpoint become those of a model; None where a library takes them as they are.

    Args:
        model: The model; its parameters may be on the meta device.
        entries: Name, dtype and shape of each tensor on disk.

    Raises:
        ModelSourceError: The loader fails; it computes values that are not entries of the checkpoint; or more than
            10^9 numbers are stored in other pieces than the model holds.
    """
    if type(model).__module__.partition(".")[0] != "transformers":
        return None
    loader = _Loader(model)
    marked = {name: _mark(entry) for name, entry in entries.items()}
    with _Bound() as bound:
        try:
            loaded = loader.load(marked, tied=True)
        except ModelSourceError as error:
            raise _too_many(list(entries)) if bound.left < 0 else error from error
    renamed = _same_memory(loaded, marked)
    unread = [name for name in entries if name not in renamed.values()]
    # Where a tie is stored twice, the model has one of the two, by which it may call the other as well.
    read, own = {marked[name].data_ptr() for name in renamed.values()}, loaded.state_dict()
    tied = [name for name in unread if name in own and own[name].data_ptr() in read]
    renamed |= {name: name for name in tied if tuple(own[name].shape) == entries[name].shape and name not in renamed}
    unread = [name for name in unread if name not in renamed and is_number(entries[name].dtype)]
    if not unread:
        return Conversion(renamed)
    return _numbered(loader, marked, {name: entries[name].shape for name in unread}, renamed)


class _Loader:
    """The loader of transformers for the class and the configuration of a model.

    Attributes:
        missing: Tensors that the last load did not take from the checkpoint, as transformers tells it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model_class, self.config, self.name = type(model), model.config, type(model).__name__
        self.missing: set[str] = set()

    def load(self, tensors: Mapping[str, Tensor], *, tied: bool) -> nn.Module:
        """Load tensors by names on disk; with ``tied``, ties of the model are made as always."""
        untied = {"tie_weights": lambda *args, **kwargs: None, "__module__": self.model_class.__module__}
        model_class: Any = self.model_class if tied else type(self.name, (self.model_class,), untied)
        config = copy.deepcopy(self.config)

        def build() -> tuple[nn.Module, dict[str, Any]]:
            return model_class.from_pretrained(  # type: ignore[no-any-return]
                None, config=config, state_dict=dict(tensors), ignore_mismatched_sizes=True, output_loading_info=True
            )

        with _quiet():
            model, told = building.build_alone(f"{self.name} from the checkpoint", build)
        self.missing = {*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])}
        return model  # type: ignore[no-any-return]


def _mark(entry: TensorEntry) -> Tensor:
    """Return a tensor of the shape of a stored one on little memory, with a stride of its own for each axis."""
    strides = range(len(entry.shape), 0, -1)
    size = 1 + sum(max(0, count - 1) * stride for count, stride in zip(entry.shape, strides, strict=True))
    dtype = torch.float32 if is_number(entry.dtype) else entry.dtype
    return torch.zeros(size, dtype=dtype).as_strided(entry.shape, tuple(strides))


def _same_memory(model: nn.Module, marked: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the stored name of each tensor of a loaded model that is a marked one, whole and as it was."""
    stored = {tensor.data_ptr(): name for name, tensor in marked.items() if tensor.numel()}
    holders: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        source = stored.get(tensor.data_ptr())
        if source and (tensor.shape, tensor.stride()) == (marked[source].shape, marked[source].stride()):
            holders.setdefault(source, {})[name] = tensor
    for source, tensors in holders.items():
        if len({id(tensor) for tensor in tensors.values()}) > 1:
            both = list_some(list(tensors), 3)
            raise ModelSourceError(f"transformers reads {both} from one stored tensor, {source!r}.")
    return {source if source in tensors else next(iter(tensors)): source for source, tensors in holders.items()}


def _numbered(
    loader: _Loader, marked: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], renamed: Mapping[str, str]
) -> Conversion:
    """Find where the entries of some stored tensors go, by their numbers, beside what is only renamed."""
    counts = [marked[name].numel() for name in shapes]
    if sum(counts) > building.MAX_PARAMETERS:
        raise _too_many(list(shapes))
    starts = torch.tensor([0, *counts]).cumsum(0)

    def load(digit: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        sent = {
            name: digit(torch.arange(int(start), int(start) + count)).to(torch.float32).reshape(shape)
            for (name, shape), start, count in zip(shapes.items(), starts, counts, strict=False)
        }
        everything = {**marked, **sent}
        model = loader.load(everything, tied=False)
        return model.state_dict(), _same_memory(model, sent)

    low, also_renamed = load(lambda number: number % BASE)
    # What moves with the numbers was copied from the checkpoint, and what stays was not read from it.
    shifted, _ = load(lambda number: number % BASE + BASE)
    high, _ = load(lambda number: number // BASE) if starts[-1] > BASE else ({}, {})
    renamed = {**renamed, **{name: source for name, source in also_renamed.items() if name not in renamed}}
    numbers: dict[str, Tensor] = {}
    for name, tensor in low.items():
        if name in renamed or tensor.is_meta or not is_number(tensor) or torch.equal(tensor, shifted[name]):
            continue
        number = tensor.long() + BASE * high[name].long() if high else tensor.long()
        whole = torch.equal(tensor.float() + BASE, shifted[name].float()) and int(number.max()) < int(starts[-1])
        if whole:
            numbers[name] = number
        elif name not in loader.missing:
            raise ModelSourceError(f"transformers computes {name!r} from values of the checkpoint, not by moving them.")
    return Conversion(renamed, tuple(_groups(numbers, shapes, starts)))


def _groups(
    numbers: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], starts: Tensor
) -> Iterator[Rearranged]:
    """Yield tensors of the model that share stored tensors, with all of these, as one rearrangement each."""
    names = list(shapes)
    owners = {name: torch.bucketize(number.reshape(-1), starts, right=True) for name, number in numbers.items()}
    read = {name: set(torch.bincount(owner).nonzero().flatten().tolist()) for name, owner in owners.items()}
    while read:
        held = [next(iter(read))]
        sources: set[int] = set()
        for name in held:
            sources |= read.pop(name)
            held += [other for other, its in read.items() if its & sources and other not in held]
        local, offset = torch.zeros(len(names), dtype=torch.int64), 0
        for source in sorted(sources):
            local[source - 1] = offset - starts[source - 1]
            offset += int(starts[source] - starts[source - 1])
        flat = torch.cat([numbers[name].reshape(-1) for name in held])
        order = flat + local[torch.cat([owners[name] for name in held]) - 1]
        stored = [names[source - 1] for source in sorted(sources)]
        if len(order) != offset or not bool((torch.bincount(order, minlength=offset) == 1).all()):
            raise ModelSourceError(
                f"transformers makes {list_some(held, 3)} from {list_some(stored, 3)}, but not from every entry once, "
                "so that they cannot be written back."
            )
        yield Rearranged({n: shapes[n] for n in stored}, {n: tuple(numbers[n].shape) for n in held}, order)


def _too_many(names: list[str]) -> ModelSourceError:
    return ModelSourceError(
        f"more than 10^9 numbers are stored in other pieces than the model holds ({list_some(names, 3)}), such as each "
        "expert on its own. Write them with the names and shapes that the model has in memory."
    )


class _Bound(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to make new tensors of more than 10^9 numbers together, as where experts of a large model are stacked."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = building.MAX_PARAMETERS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.left < 0:
            raise MemoryError("more than 10^9 new numbers")
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.left -= sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor) and not t.is_meta)
        return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the loader prints to itself."""
    logging = building.import_library("transformers", "transformers").utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
