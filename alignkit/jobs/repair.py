"""Statistics of merged networks: recompute those of BatchNorm, and bring back the spread of activations.

Averaging two networks shrinks the variance of their activations layer by layer. [Jordan23] "REPAIR: REnormalizing
Permuted Activations for Interpolation Repair" rescales every channel to the statistics that its parents have.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from alignkit.activations import Moments
from alignkit.arguments import check_arguments
from alignkit.checkpoints.dtypes import narrow
from alignkit.errors import MergeError
from alignkit.graph.bind import weights_of
from alignkit.graph.hidden_state import check_hidden_state
from alignkit.graph.proof.model_run import call_arguments
from alignkit.graph.proof.process_switch import NO_FUSED_ATTENTION
from alignkit.jobs.average import check_alike
from alignkit.jobs.running_statistics import RunningStatistics, keeps_statistics
from alignkit.jobs.shares import shares_of
from alignkit.tasks.batches import Batch, Batches, tensors_in
from alignkit.tasks.input_batches import InputBatches
from alignkit.tasks.task import Task
from alignkit.text import describe_error

ModuleT = TypeVar("ModuleT", bound=nn.Module)

SILENT = 1e-6
"""A channel whose deviation is below this share of the largest in its layer is shifted, but not rescaled."""


@check_arguments
def reset_batchnorm(model: ModuleT, batches: Any) -> ModuleT:
    """Return a copy whose BatchNorm statistics are recomputed: ``model = alignkit.reset_batchnorm(model, batches)``.

    Running statistics that were averaged or carried over do not fit the network that they are in. Each batch is
    normalised by its own statistics, as in training, and the statistics of all batches are pooled exactly. All else
    (dropout, other norms) is in eval mode. Source: Izmailov et al., "Averaging weights leads to wider optima", 2018.

    All modules with buffers ``running_mean`` and ``running_var`` count, with one entry for each channel: BatchNorm of
    every kind, SyncBatchNorm, InstanceNorm that tracks statistics, and those of other libraries. A norm that the data
    does not reach keeps its statistics.

    Args:
        model: A network; it is left as it is. Without running statistics there is nothing to do.
        batches: The data: a DataLoader, or a list of batches, or one batch. A batch is a tensor, a dict of keyword
            arguments (with labels or without), a tuple of arguments, or a pair of inputs and targets, which are not
            looked at. Or a task. Large batches come closest to the statistics of all data at once.

    Returns:
        A copy with new running statistics, in the same training mode.

    Raises:
        MergeError: The statistics are NaN or infinite, a batch is too small to have any, or it is not clear which axis
            counts the channels; the module is named. Or the model has no values, or cannot be copied.
        TaskError: The batches are not what is described above, or the model fails on one; it is named.
    """
    fresh = _copied(model)
    if any(map(keeps_statistics, fresh.modules())):
        _repair_layers(fresh, _batches_of(batches, fresh), {})
    return fresh


@check_arguments
def repair(
    merged: ModuleT, parents: Sequence[nn.Module], batches: Any, weights: Sequence[float] | None = None
) -> ModuleT:
    """Return a copy with every channel rescaled to the statistics that the parents have there ([Jordan23], REPAIR).

    Use the result: ``merged = alignkit.repair(merged, parents, batches)``. It works on the outputs of every linear and
    convolutional module, transposed ones and the output projections of attention included, whatever stands between
    them. The mean and the deviation of a channel become the averages of those of the parents; the change is folded into
    weight and bias, so the network keeps its form. Each layer is measured with all layers before it repaired already,
    in one pass over the data.

    - A layer that feeds a norm with running statistics is left alone: these are recomputed, which does the same.
    - A layer without bias is rescaled and not shifted.
    - Weights that several modules share are left alone, as are modules that are never called.

    Args:
        merged: The merged network; it is left as it is.
        parents: The networks that it was merged from, with units in the same order: ``[a, solution.apply(b)]``.
        batches: The data, as for `reset_batchnorm`. A few thousand samples do, in batches of some hundred.
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
    check_hidden_state(dict(zip(labels, [merged, *parents], strict=True)), MergeError)
    data = _batches_of(batches, merged)
    fixed = _copied(merged)
    outputs: list[tuple[Tensor, str]] = []
    feeding: set[str] = set()  # paths of layers whose output is the input of a norm, as seen on two samples
    first = next(iter(data))
    _run(
        fixed,
        [first.rows(0, min(first.size, 2)) if first.splittable else first],
        after_layer=lambda layer, output: outputs.append((output, layer.path)),
        before_norm=lambda path, norm, values: feeding.update(at for tensor, at in outputs if tensor is values),
    )
    outputs.clear()
    sides = [_layer_moments(parent, data) for parent in parents]
    targets: dict[str, Target] = {}
    for path in sides[0]:
        if path not in feeding and all(path in side for side in sides):
            moments = [side[path] for side in sides]
            means = [share * each.mean.cpu() for share, each in zip(shares, moments, strict=True)]
            deviations = [share * each.variance.sqrt().cpu() for share, each in zip(shares, moments, strict=True)]
            targets[path] = Target(torch.stack(means).sum(0), torch.stack(deviations).sum(0))
    _repair_layers(fixed, data, targets)
    return fixed


@dataclass(frozen=True)
class Target:
    """Statistics that the channels of a layer are to have."""

    mean: Tensor
    deviation: Tensor

    def change(self, mean: Tensor, deviation: Tensor, shifts: bool) -> tuple[Tensor, Tensor]:
        """Return factor and shift, float64 ``[channels]``, that turn these statistics into the target's."""
        wanted, wanted_mean = self.deviation.to(mean), self.mean.to(mean)
        silent = (deviation <= SILENT * deviation.max()) | (wanted <= SILENT * wanted.max())
        factor = torch.where(silent, 1.0, wanted / torch.where(silent, 1.0, deviation))
        return factor, wanted_mean - factor * mean if shifts else torch.zeros_like(mean)


@dataclass(frozen=True)
class ChannelLayer:
    """A module that writes channels, and how a factor for each of them is put into the weights of its module ``owner``.

    Channels are counted by ``weight_axis`` of the weight; those of a transposed convolution with ``groups`` are spread
    over two axes. The output has ``spatial`` axes behind them.
    """

    path: str
    owner: Any
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
        """Return what the layer gives once factor and shift are in its weights."""
        shape = (-1, *(1,) * self.spatial)
        return output * factor.to(output).reshape(shape) + shift.to(output).reshape(shape)

    def change(self, factor: Tensor, shift: Tensor) -> None:
        """Put a factor and a shift for each channel into weight and bias."""
        weight: Tensor = self.owner.weight
        shape = [1] * weight.ndim
        shape[self.weight_axis] = -1
        if self.groups == 1:
            scaled = weight.double() * factor.to(weight.device).reshape(shape)
        else:
            parts = weight.double().unflatten(0, (self.groups, -1))  # type: ignore[no-untyped-call]
            scaled = (parts * factor.to(weight.device).reshape(self.groups, *shape)).flatten(0, 1)
        values = {"weight": scaled}
        if self.has_bias:
            bias: Tensor = self.owner.bias
            values["bias"] = bias.double() * factor.to(bias.device) + shift.to(bias.device)
        for name, new in values.items():
            tensor = getattr(self.owner, name)
            rounded = narrow(new, tensor.dtype, f"{self.path}.{name}", MergeError)
            if not parametrize.is_parametrized(self.owner, name):
                tensor.copy_(rounded)
                continue
            try:
                setattr(self.owner, name, rounded)
            except (NotImplementedError, RuntimeError, ValueError) as error:
                raise MergeError(
                    f"{name} of {self.path!r} is computed by a parametrisation that cannot be undone ({error}). Remove "
                    "it first: torch.nn.utils.parametrize.remove_parametrizations."
                ) from error


def channel_layers(model: nn.Module) -> dict[str, ChannelLayer]:
    """Return every module whose outputs have channels that its own, unshared weights can rescale, by path."""
    uses = Counter(id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False))
    layers: dict[str, ChannelLayer] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            layer = ChannelLayer(path, module.out_proj)
        elif isinstance(module, _ConvTransposeNd):
            layer = ChannelLayer(path, module, weight_axis=1, groups=module.groups, spatial=len(module.kernel_size))
        elif isinstance(module, _ConvNd):
            layer = ChannelLayer(path, module, spatial=len(module.kernel_size))
        elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers' linear, weight [in, out]
            layer = ChannelLayer(path, module, weight_axis=1)
        elif isinstance(module, nn.Linear):
            layer = ChannelLayer(path, module)
        else:
            continue
        if all(uses[id(parameter)] == 1 for parameter in layer.owner.parameters()):
            layers[path] = layer
    return layers


def _layer_moments(model: nn.Module, data: Batches) -> dict[str, Moments]:
    """Measure the outputs of every layer with channels, by its path."""
    moments: dict[str, Moments] = {}

    def measure(layer: ChannelLayer, output: Tensor) -> None:
        moments.setdefault(layer.path, Moments()).update(output, layer.axis)

    _run(model, data, after_layer=measure)
    return _checked_moments(moments)


def _repair_layers(model: nn.Module, data: Batches, targets: Mapping[str, Target]) -> None:
    """Bring each layer to its target behind repaired ones, and pool the batch statistics of all norms, in one pass."""
    layers = channel_layers(model)
    reached: dict[str, Moments] = {}
    norms: dict[str, RunningStatistics] = {}

    def change(layer: ChannelLayer, output: Tensor) -> Tensor | None:
        if layer.path not in targets:
            return None
        mean, deviation = reached.setdefault(layer.path, Moments()).update(output, layer.axis)
        return layer.changed(output, *targets[layer.path].change(mean, deviation, layer.has_bias))

    def measure(path: str, norm: nn.Module, values: Tensor) -> None:
        norms.setdefault(path, RunningStatistics(path, norm)).update(values)

    _run(model, data, after_layer=change, before_norm=measure)
    with torch.no_grad():
        for path, before in _checked_moments(reached).items():
            has_bias = layers[path].has_bias
            layers[path].change(*targets[path].change(before.mean, before.variance.sqrt(), has_bias))
        for statistics in norms.values():
            statistics.finish()


def _run(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    after_layer: Callable[[ChannelLayer, Tensor], Tensor | None],
    before_norm: Callable[[str, nn.Module, Tensor], None] = lambda path, norm, values: None,
) -> None:
    """Run a network over batches in eval mode, with hooks; those of layers may replace outputs.

    Hooks and modes are put back at the end.
    """
    layers = channel_layers(model)

    def enter(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        before_norm(path, module, tensors_in((args, kwargs))[0])

    def leave(path: str, module: nn.Module, args: Any, output: Any) -> Any:
        first = output if isinstance(output, Tensor) else tensors_in(output)[0]
        changed = after_layer(layers[path], first)
        return changed if changed is None or output is first else type(output)((changed, *output[1:]))

    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if device.type == "meta":
        raise MergeError("the model is on the meta device and has no values. Load its weights first.")
    with ExitStack() as stack, torch.no_grad(), NO_FUSED_ATTENTION.held():
        for path, module in model.named_modules():
            if module.training:
                stack.callback(setattr, module, "training", True)
                module.training = False
            if path in layers:
                stack.callback(module.register_forward_hook(partial(leave, path)).remove)
            if keeps_statistics(module):
                hook = module.register_forward_pre_hook(partial(enter, path), with_kwargs=True)
                stack.callback(hook.remove)
        for batch in data:
            with batch.named_in_errors():
                args, kwargs = call_arguments(batch.to(device).inputs)
                model(*args, **kwargs)


def _copied(model: ModuleT) -> ModuleT:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # deepcopy runs code of any class that the model holds
        raise MergeError(f"the model {type(model).__name__} cannot be copied: {describe_error(error)}") from error


def _checked_moments(moments: dict[str, Moments]) -> dict[str, Moments]:
    for path, measured in moments.items():
        if not measured.is_finite:
            raise MergeError(f"the statistics of {path!r} are NaN or infinite. Are the weights and the inputs finite?")
    return moments


def _batches_of(batches: Any, model: nn.Module) -> Batches:
    if isinstance(batches, Task):
        assert isinstance(batches.batches, Batches)
        return batches.batches
    return batches if isinstance(batches, Batches) else InputBatches(batches, model)
