"""Whether tensors are what a graph, a model or another checkpoint expects: every mismatch found, then told at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignkit.checkpoints.dense import why_no_values
from alignkit.checkpoints.mismatch import dtypes_cause, names_cause, sizes_cause
from alignkit.errors import AlignkitError
from alignkit.text import did_you_mean, dtype_name, plural, shorten_list

MAX_LISTED = 5
"""Maximum number of mismatches that a message lists as examples; a model of another size has thousands."""
MAX_HINTS = 5
"""Maximum number of unknown names that are compared with the missing ones; a search among thousands takes seconds."""


class Fit:
    """Holds tensors against names, shapes and ties, and collects what does not fit.

    Args:
        shapes: Expected shape of each tensor, by its first name.
        first_names: The first name of each tensor by every name that it has. Names that share one are tied: one tensor
            under several names, of which a side has at least one.
        owner: What messages call the side that expects the tensors, such as ``"the graph"``.

    Attributes:
        problems: A sentence for each mismatch, without its full stop.
        causes: What lies behind many of them, in a sentence each, such as a prefix that all names have.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], first_names: Mapping[str, str], owner: str = "the graph"
    ) -> None:
        self.problems: list[str] = []
        self.causes: list[str] = []
        self._shapes, self._first_names, self._owner = shapes, first_names, owner

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]], label: str) -> None:
        """Compare the names and shapes of one side, which messages call ``label``, such as ``"A"``."""
        expected = {name: tuple(self._shapes[first]) for name, first in self._first_names.items()}
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
        for cause_of in (names_cause, sizes_cause):
            self.causes += filter(None, [cause_of(shapes, expected, label, self._owner)])
        present = {self._first_names[name] for name in shapes if name in self._first_names}
        missing = [name for name in self._shapes if name not in present]
        unknown = [name for name in shapes if name not in self._first_names]
        self.problems += [f"{name!r} is missing in {label}" for name in missing]
        for at, name in enumerate(unknown):
            hint = did_you_mean(name, missing) if at < MAX_HINTS else ""
            self.problems.append(f"{name!r} of {label} is not in {self._owner}" + hint.replace(" Did", "; did"))
        for name, shape in shapes.items():
            if shape != expected.get(name, shape):
                self.problems.append(f"{name!r} has shape {shape} in {label}, {self._owner} says {expected[name]}")

    def check_tensors(self, tensors: Mapping[str, Tensor], label: str, *, values: bool = True) -> dict[str, Tensor]:
        """Compare names, shapes, ties and values of one side.

        Args:
            tensors: Tensors by name.
            label: What messages call the side.
            values: Whether to check that all numbers are finite.

        Returns:
            Those that fit, by first name and in the order of the expectation.
        """
        self.check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, label)
        fitting: dict[str, tuple[str, Tensor]] = {}
        for name, tensor in tensors.items():
            first = self._first_names.get(name)
            if first is None or tuple(tensor.shape) != tuple(self._shapes[first]):
                continue
            if (kind := why_no_values(tensor)) is not None:
                self.problems.append(f"{name!r} of {label} is {kind}")
            elif first not in fitting:
                fitting[first] = name, tensor
                if values and not all_finite(tensor):
                    self.problems.append(f"{name!r} of {label} holds NaN or infinity")
            else:
                twin, same = fitting[first]
                if tensor_identity(tensor) != tensor_identity(same) and not torch.equal(tensor, same):
                    self.problems.append(f"{name!r} and {twin!r} are tied in {self._owner} but differ in {label}")
        return {first: fitting[first][1] for first in self._shapes if first in fitting}

    def check_dtypes(self, sides: Mapping[str, Mapping[str, torch.dtype]]) -> None:
        """Compare dtypes, by the label of a side and the first name of a tensor, with those of the first side.

        Floating-point dtypes may differ: sums are taken in a wider one. Whole numbers have to be of one dtype. Complex
        weights are refused: units are compared by real products, and distances by real squares.
        """
        (reference, expected), *others = sides.items()
        advice = "alignkit compares real numbers. Give torch.view_as_real of it, and its layout one more axis of 2"
        self.problems += [
            f"{name!r} of {label} is {dtype_name(dtype)}; {advice}"
            for label, dtypes in sides.items()
            for name, dtype in dtypes.items()
            if dtype.is_complex
        ]
        for label, dtypes in others:
            differing = {
                name: (expected[name], dtype)
                for name, dtype in dtypes.items()
                if dtype != expected.get(name, dtype)
                and not (dtype.is_floating_point and expected[name].is_floating_point)
            }
            if cause := dtypes_cause(list(differing.values()), reference, label):
                self.causes.append(cause)
            self.problems += [
                f"{name!r} is {dtype_name(wanted)} in {reference} but {dtype_name(own)} in {label}"
                for name, (wanted, own) in differing.items()
            ]

    def raise_if_any(self, error: type[AlignkitError], what: str, note: str = "") -> None:
        """Raise one error of a class for all mismatches, if there are any.

        ``what`` begins its message, such as ``"the weights do not fit the graph"``; ``note`` is added to the count.
        """
        if self.problems:
            count = plural(len(self.problems), "problem") + (f" ({note})" if note else "")
            first = f"{what}: {self.causes[0]}.\n{count}" if self.causes else f"{what}, {count}"
            lines = shorten_list([f"- {problem}" for problem in sorted(self.problems)], MAX_LISTED)
            raise error(f"{first}:\n" + "\n".join(lines))


def is_number(tensor: Tensor | torch.dtype) -> bool:
    """Tell whether a tensor, or one of this dtype, holds weights: numbers that have differences and averages.

    Whole numbers and truth values are counters, indices, masks or the codes of quantised weights. They belong to no
    distance, no average and no task vector. Codes mean something with their scale and offset alone: weights have to be
    dequantised before they are compared. An alignment moves whole numbers as it moves everything else.
    """
    dtype = tensor.dtype if isinstance(tensor, Tensor) else tensor
    return dtype.is_floating_point or dtype.is_complex


def is_counter(name: str) -> bool:
    """Tell whether a tensor counts the steps of a training, which no output depends on; two networks may differ in it.

    These are the counters of torch's norms and of ``torch.optim.swa_utils.AveragedModel``.
    """
    return name.rpartition(".")[2] in ("num_batches_tracked", "n_averaged")


def tensor_identity(tensor: Tensor) -> object:
    """Return a key that tied tensors share: the same place of the same storage, seen in the same way."""
    if tensor.numel() == 0:
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Map every name to the first name of the same tensor."""
    first: dict[object, str] = {}
    return {name: first.setdefault(tensor_identity(tensor), name) for name, tensor in tensors.items()}


def all_finite(tensor: Tensor) -> bool:
    """Say whether a tensor holds neither NaN nor infinity; whole numbers never do."""
    if not is_number(tensor):
        return True
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch.isfinite lacks most floats of 8 bits
    # NaN and infinity stay in a sum, which is taken many times as fast; it may overflow without them.
    return bool(torch.isfinite(wide.sum())) or bool(torch.isfinite(wide).all())
