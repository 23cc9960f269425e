"""Statistics of merged networks: recompute those of BatchNorm, and bring back the spread of activations.

Averaging two networks shrinks the variance of their activations layer by layer. [Jordan23] "REPAIR: REnormalizing
Permuted Activations for Interpolation Repair" rescales every channel to the statistics that its parents have.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from alignkit.activations import Moments
from alignkit.errors import MergeError
from alignkit.graph.bind import weights_of
from alignkit.graph.proof.example_call import call_arguments
from alignkit.jobs.average import check_alike, shares_of
from alignkit.tasks.batches import Batches, tensors_in
from alignkit.tasks.task import Task

ModuleT = TypeVar("ModuleT", bound=nn.Module)

SILENT = 1e-6
"""A channel whose deviation is below this share of the largest in its layer is shifted, but not rescaled."""


# ---------------------------------------------------------------------- what users call


def reset_batchnorm(model: ModuleT, batches: Any) -> ModuleT:
    """Recompute the running statistics of every BatchNorm from data.

    Running statistics that were averaged or carried over do not fit the network that they are in. Each batch is
    normalised by its own statistics, as in training, and the statistics of all batches are pooled exactly. All else
    (dropout, other norms) is in eval mode. Source: Izmailov et al., "Averaging weights leads to wider optima", 2018.

    Args:
        model: A network; it is left as it is. Without BatchNorm there is nothing to do.
        batches: The data, as for `alignkit.Task` (targets are not looked at); or a task; or one tensor of inputs. Large
            batches come closest to the statistics of all data at once.

    Returns:
        A copy with new running statistics, in the same training mode.

    Raises:
        MergeError: The statistics are NaN or infinite, or a batch is too small to have any; the module is named.
        TaskError: The batches are not what is described above.
    """
    fresh = copy.deepcopy(model)
    if any(_has_statistics(module) for module in fresh.modules()):
        _store_statistics(fresh, _measure(fresh, _data(batches), normalise=True))
    return fresh


def repair(
    merged: ModuleT, parents: Sequence[nn.Module], batches: Any, weights: Sequence[float] | None = None
) -> ModuleT:
    """Rescale every channel of a merged network to the statistics that its parents have there ([Jordan23], REPAIR).

    Works on the outputs of every linear and convolutional module, transposed ones and the output projections of
    attention included, whatever stands between them. The mean and the deviation of a channel become the averages of
    those of the parents; the change is folded into weight and bias, so the network keeps its form. Each layer is
    measured with all layers before it repaired already, in one pass over the data.

    - A layer that feeds a BatchNorm is left alone: there the running statistics are recomputed, which does the same.
    - A layer without bias is rescaled and not shifted.
    - Weights that several modules share are left alone, as are modules that are never called.

    Args:
        merged: The merged network; it is left as it is.
        parents: The networks that it was merged from, with units in the same order: ``[a, solution.apply(b)]``.
        batches: The data, as for `alignkit.Task` (targets are not looked at); or a task; or one tensor of inputs. A few
            thousand samples do, in batches of some hundred.
        weights: Share of each parent, as in `alignkit.average`.

    Returns:
        A repaired copy, in the same training mode.

    Raises:
        MergeError: Parents differ from the merged network in tensors (each is named), a layer cannot be changed, or
            statistics are NaN or infinite.
        TaskError: The batches are not what is described above.
    """
    shares = shares_of(weights, len(parents))
    labels = ["the merged network", *(f"parent {at}" for at in range(len(parents)))]
    check_alike([weights_of(merged), *map(weights_of, parents)], labels)
    data = _data(batches)
    fixed = copy.deepcopy(merged)
    kept = _measure(fixed, data, first_only=True).feeding
    seen = [_measure(parent, data).layers for parent in parents]
    targets = {
        path: Target(
            sum((share * side[path].mean.cpu() for share, side in zip(shares, seen, strict=True)), torch.zeros(())),
            sum(
                (share * side[path].variance.sqrt().cpu() for share, side in zip(shares, seen, strict=True)),
                torch.zeros(()),
            ),
        )
        for path in seen[0]
        if path not in kept and all(path in side for side in seen)
    }
    measured = _measure(fixed, data, normalise=True, targets=targets)
    layers = channel_layers(fixed)
    with torch.no_grad():
        for path, target in targets.items():
            if path in measured.layers:
                found = measured.layers[path]
                layers[path].change(*target.change(found.mean, found.variance.sqrt(), layers[path].has_bias))
    _store_statistics(fixed, measured)
    return fixed


# ---------------------------------------------------------------------- layers with channels


@dataclass(frozen=True)
class Target:
    """Statistics that the channels of a layer are to have."""

    mean: Tensor
    deviation: Tensor

    def change(self, mean: Tensor, deviation: Tensor, shifts: bool) -> tuple[Tensor, Tensor]:
        """Factor and shift, float64 ``[channels]``, that turn these statistics into the target's."""
        wanted, wanted_mean = self.deviation.to(mean), self.mean.to(mean)
        silent = (deviation <= SILENT * deviation.max()) | (wanted <= SILENT * wanted.max())
        factor = torch.where(silent, 1.0, wanted / torch.where(silent, 1.0, deviation))
        return factor, wanted_mean - factor * mean if shifts else torch.zeros_like(mean)


@dataclass(frozen=True)
class ChannelLayer:
    """A module that writes channels, and how a factor for each of them is put into its weights.

    Attributes:
        path: Path of the module.
        owner: The module that owns weight and bias.
        weight_axis: Axis of the weight that counts the channels.
        groups: Groups of a transposed convolution, whose channels are spread over two axes; 1 for all others.
        spatial: Axes of the output behind the channels.
    """

    path: str
    owner: nn.Module
    weight_axis: int = 0
    groups: int = 1
    spatial: int = 0

    @property
    def has_bias(self) -> bool:
        """Whether the layer can be shifted."""
        return getattr(self.owner, "bias", None) is not None

    @property
    def axis(self) -> int:
        """Axis of the output that counts the channels, from the right."""
        return -1 - self.spatial

    def changed(self, output: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
        """What the layer gives once factor and shift are in its weights."""
        shape = (-1, *(1,) * self.spatial)
        return output * factor.to(output).reshape(shape) + shift.to(output).reshape(shape)

    def change(self, factor: Tensor, shift: Tensor) -> None:
        """Put a factor and a shift for each channel into weight and bias."""
        weight = self.owner.weight
        assert isinstance(weight, Tensor)
        shape = [1] * weight.ndim
        shape[self.weight_axis] = -1
        if self.groups == 1:
            scaled = weight.double() * factor.to(weight.device).reshape(shape)
        else:
            parts = weight.double().unflatten(0, (self.groups, -1))  # type: ignore[no-untyped-call]
            scaled = (parts * factor.to(weight.device).reshape(self.groups, *shape)).flatten(0, 1)
        self._set("weight", weight, scaled)
        if self.has_bias:
            bias = self.owner.bias
            assert isinstance(bias, Tensor)
            self._set("bias", bias, bias.double() * factor.to(bias.device) + shift.to(bias.device))

    def _set(self, name: str, tensor: Tensor, values: Tensor) -> None:
        if not parametrize.is_parametrized(self.owner, name):
            tensor.copy_(values)
            return
        try:
            setattr(self.owner, name, values.to(tensor.dtype))
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise MergeError(
                f"{name} of {self.path!r} is computed by a parametrisation that cannot be undone ({error}). Remove it "
                "first: torch.nn.utils.parametrize.remove_parametrizations."
            ) from error


def channel_layers(model: nn.Module) -> dict[str, ChannelLayer]:
    """Every module whose outputs have channels that its own, unshared weights can rescale, by path."""
    uses = Counter(id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False))
    found: dict[str, ChannelLayer] = {}
    for path, module in model.named_modules():
        layer = _layer(path, module)
        if layer is not None and all(uses[id(p)] == 1 for p in layer.owner.parameters()):
            found[path] = layer
    return found


def _layer(path: str, module: nn.Module) -> ChannelLayer | None:
    if isinstance(module, nn.MultiheadAttention):
        return ChannelLayer(path, module.out_proj)
    if isinstance(module, _ConvTransposeNd):
        return ChannelLayer(path, module, weight_axis=1, groups=module.groups, spatial=len(module.kernel_size))
    if isinstance(module, _ConvNd):
        return ChannelLayer(path, module, spatial=len(module.kernel_size))
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers' linear layer, weight [in, out]
        return ChannelLayer(path, module, weight_axis=1)
    return ChannelLayer(path, module) if isinstance(module, nn.Linear) else None


# ---------------------------------------------------------------------- measuring


@dataclass
class Measured:
    """Statistics of one network.

    Attributes:
        layers: Of the outputs of each layer, before any change.
        norms: Of the inputs of each BatchNorm.
        feeding: Paths of the layers whose output is the input of a BatchNorm.
    """

    layers: dict[str, Moments] = field(default_factory=dict)
    norms: dict[str, Moments] = field(default_factory=dict)
    feeding: set[str] = field(default_factory=set)


def _measure(
    model: nn.Module,
    data: Batches,
    *,
    normalise: bool = False,
    targets: Mapping[str, Target] | None = None,
    first_only: bool = False,
) -> Measured:
    """Run a network over the data in eval mode.

    Args:
        model: The network; nothing of it is changed.
        data: The batches.
        normalise: Let every BatchNorm use the statistics of the batch.
        targets: Rescale the outputs of these layers, batch by batch.
        first_only: Read some samples of the first batch only, to see which layer feeds which norm.
    """
    measured = Measured()
    made: list[tuple[Tensor, str]] = []
    layers = channel_layers(model)

    def after_layer(path: str, output: Any) -> Any:
        first = output if isinstance(output, Tensor) else tensors_in(output)[0]
        moments = measured.layers.setdefault(path, Moments())
        mean, deviation = moments.update(first, layers[path].axis)
        if first_only:
            made.append((first, path))
        if not targets or path not in targets:
            return None
        changed = layers[path].changed(first, *targets[path].change(mean, deviation, layers[path].has_bias))
        return changed if isinstance(output, Tensor) else type(output)((changed, *output[1:]))

    def after_norm(path: str, norm: nn.Module, given: Tensor) -> Tensor | None:
        assert isinstance(norm, _BatchNorm)
        measured.feeding.update(maker for tensor, maker in made if tensor is given)
        moments = measured.norms.setdefault(path, Moments())
        moments.update(given, 1)
        if not normalise:
            return None
        try:
            return nn.functional.batch_norm(given, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        except ValueError as error:
            raise MergeError(f"{path!r} cannot take statistics of a batch: {error}. Use larger batches.") from error

    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    with _watched(model, layers, after_layer, after_norm):
        for batch in data:
            made.clear()
            part = batch.rows(0, min(batch.size, 2)) if first_only and batch.splittable else batch
            args, kwargs = call_arguments(part.to(device).inputs)
            model(*args, **kwargs)
            if first_only:
                break
    for path, moments in (*measured.layers.items(), *measured.norms.items()):
        if not moments.is_finite:
            raise MergeError(f"the statistics of {path!r} are NaN or infinite. Are the weights and the inputs finite?")
    return measured


@contextmanager
def _watched(
    model: nn.Module,
    layers: Mapping[str, ChannelLayer],
    after_layer: Callable[[str, Any], Any],
    after_norm: Callable[[str, nn.Module, Tensor], Tensor | None],
) -> Iterator[None]:
    """Eval mode, no gradients, no fused fast paths, and hooks; all is put back at the end."""
    fast = torch.backends.mha.get_fastpath_enabled()
    training = [module for module in model.modules() if module.training]
    with ExitStack() as stack, torch.no_grad():
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        for module in training:
            stack.callback(setattr, module, "training", True)
            module.training = False
        for path, module in model.named_modules():
            hook = None
            if path in layers:
                hook = _layer_hook(path, after_layer)
            elif _has_statistics(module):
                hook = _norm_hook(path, after_norm)
            if hook is not None:
                stack.callback(module.register_forward_hook(hook).remove)
        yield


def _layer_hook(path: str, visit: Callable[[str, Any], Any]) -> Callable[..., Any]:
    return lambda module, args, output: visit(path, output)


def _norm_hook(path: str, visit: Callable[[str, nn.Module, Tensor], Tensor | None]) -> Callable[..., Any]:
    return lambda module, args, output: visit(path, module, args[0])


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _store_statistics(model: nn.Module, measured: Measured) -> None:
    for path, found in measured.norms.items():
        norm = model.get_submodule(path)
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(found.mean)
        norm.running_var.copy_(found.squares / max(found.count - 1, 1))


def _data(batches: Any) -> Batches:
    if isinstance(batches, Task):
        assert isinstance(batches.batches, Batches)
        return batches.batches
    if isinstance(batches, Tensor):
        return Batches((batches, torch.zeros(len(batches))))
    return batches if isinstance(batches, Batches) else Batches(batches)
