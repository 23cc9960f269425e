"""Readings: where, and how, the activations of a group's units are read while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignkit.activations.sites import ActivationSite, ModuleCall, Positions
from alignkit.graph.proof.process_switch import NO_FUSED_ATTENTION


@dataclass(frozen=True, eq=False)
class Reading:
    """One activation site where the units of a group are seen.

    Attributes:
        module: Path of the module.
        site: Which axis of which of its inputs and outputs.
        positions: Where on that axis the units are.
        pooled: Average over all axes but the first, because units of other groups may be on them.
    """

    module: str
    site: ActivationSite
    positions: Positions
    pooled: bool = False

    @property
    def group(self) -> str:
        """The group whose units are seen."""
        return self.positions.group

    def features(self, call: ModuleCall) -> Float[Tensor, "samples units"]:
        """Read the activations of all units over all parents, in float64; all that is not a unit counts as a sample."""
        index = self.positions.index - self.site.start
        values = self.site.read(call).movedim(self.site.axis, -1)
        flat = index.reshape(-1)
        if flat.numel() != values.shape[-1] or not torch.equal(flat, torch.arange(flat.numel())):
            values = values.index_select(-1, flat.to(values.device))
        values = values.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        values = values.reshape(*values.shape[:-1], *index.shape)
        values = values.squeeze(-2) if index.shape[1] == 1 else values.mean(-2)
        if self.pooled and values.ndim > 3:
            values = values.mean(tuple(range(1, values.ndim - 2)))
        return values.reshape(-1, values.shape[-1])

    def fits(self, call: ModuleCall) -> bool:
        """Return whether the site has all the positions."""
        tensor, axis = self.site.read(call), self.site.axis
        index = self.positions.index - self.site.start
        has_axis = tensor.is_floating_point() and -axis <= tensor.ndim
        return has_axis and int(index.min()) >= 0 and int(index.max()) < tensor.shape[axis]


@contextmanager
def hooked(model: nn.Module, paths: Iterable[str], record: Callable[[str, ModuleCall], None]) -> Iterator[None]:
    """Call ``record`` after each call of the named modules, without gradients and fused attention."""
    with ExitStack() as stack, torch.no_grad(), NO_FUSED_ATTENTION.held():
        for path in paths:
            module = model.get_submodule(path)
            handle = module.register_forward_hook(
                lambda module, args, kwargs, output, path=path: record(path, ModuleCall(module, args, kwargs, output)),
                with_kwargs=True,
            )
            stack.callback(handle.remove)
        yield
