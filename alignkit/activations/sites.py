"""Activation sites: the table of modules and of their inputs and outputs where units can be seen while a model runs.

A parameter whose axis belongs to a group tells which axis of its module's input or output the group indexes:

============================  ==================================================================================
Module                        Sites
============================  ==================================================================================
``Linear``                    weight axis 0, bias: last axis of the output. Weight axis 1: last axis of the input.
``Conv1d/2d/3d``              weight axis 0, bias: channels of the output. Weight axis 1 (one group of channels):
                              channels of the input.
``ConvTranspose1d/2d/3d``     weight axis 0: channels of the input. Bias, and weight axis 1 (one group of channels):
                              channels of the output.
``BatchNorm``, ``GroupNorm``  weight, bias, running statistics: channels (axis 1) of the output; also
                              ``InstanceNorm`` and ``PReLU``.
``LayerNorm``, ``RMSNorm``    weight, bias: the same axis, from the right, of the output.
``Embedding(Bag)``            weight axis 1: last axis of the output.
``RNN``, ``LSTM``, ``GRU``    ``weight_hh`` axis 1: the states, for the last layer at all times, for layers below at
                              the last time. ``weight_hr`` axis 1: the last cells. ``weight_ih_l0`` axis 1: the input.
Their cells                   ``weight_hh`` axis 1: the state. ``weight_ih`` axis 1: the input.
``MultiheadAttention``        rows of the input projections: queries, keys and values, computed from the inputs.
                              ``out_proj.weight`` axis 1: the values. Axis 0 and its bias: the output.
any other                     each axis of its inputs and outputs that is as long as the parameter's.
============================  ==================================================================================

Inputs of a module are ``"post"`` (after the activation function), outputs are ``"pre"``, states and embeddings both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from alignkit.graph.layout import Block
from alignkit.graph.nodes import TensorNode
from alignkit.tasks.batches import tensors_in

When = Literal["pre", "post", "both"]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module, as a forward hook sees it."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def inputs(self) -> list[Tensor]:
        """Tensors among the arguments."""
        return tensors_in((self.args, dict(self.kwargs)))

    @property
    def outputs(self) -> list[Tensor]:
        """Tensors in what the module returns."""
        return tensors_in(self.output)


@dataclass(frozen=True)
class ActivationSite:
    """One axis of one tensor that a module takes or gives.

    Attributes:
        label: Name of the tensor, for messages.
        when: Before or after the activation function.
        axis: Which axis of the tensor, counted from the right (negative).
        read: Takes the tensor from a call.
        start: Position, on the axis of the parameter, of the first element of the tensor's axis.
        computed: The tensor is computed here and is not one of the model's own.
    """

    label: str
    when: When
    axis: int
    read: Callable[[ModuleCall], Tensor]
    start: int = 0
    computed: bool = False


def find_sites(module: nn.Module, attribute: str, axis: int) -> list[ActivationSite] | None:
    """Find what one axis of a parameter or buffer of a module indexes: one site or none.

    Returns:
        None for a module that is not in the table; `find_sites_by_size` searches those.
    """
    site: ActivationSite | None
    match module:
        case nn.Linear():
            site = _INPUT if attribute == "weight" and axis == 1 else _OUTPUT
        case _ConvNd():
            site = _convolution(module, attribute, axis)
        case _NormBase() | nn.GroupNorm():
            site = ActivationSite("output", "pre", -1, _channels_last)
        case nn.LayerNorm() | nn.RMSNorm():
            site = replace(_OUTPUT, axis=axis - len(module.normalized_shape))
        case nn.PReLU():
            site = ActivationSite("output", "post", -1, _channels_last)
        case nn.Embedding() | nn.EmbeddingBag():
            site = replace(_OUTPUT, when="both") if axis == 1 else None
        case nn.RNNBase():
            site = _recurrent(module, attribute) if axis == 1 else None
        case nn.RNNCellBase():
            state = ActivationSite("state", "both", -1, _output(0))
            site = {"weight_hh": state, "weight_ih": _INPUT}.get(attribute) if axis == 1 else None
        case nn.MultiheadAttention():
            site = _attention(attribute, axis)
        case _:
            return None
    return [] if site is None else [site]


def find_sites_by_size(call: ModuleCall, size: int) -> list[ActivationSite]:
    """Find every axis of a call's inputs and outputs that has ``size`` positions."""
    sites: list[ActivationSite] = []
    for site, tensors, reader in ((_INPUT, call.inputs, _input), (_OUTPUT, call.outputs, _output)):
        for at, tensor in enumerate(tensors):
            if tensor.is_floating_point():
                axes = [axis for axis in range(-1, -tensor.ndim - 1, -1) if tensor.shape[axis] == size]
                sites += [replace(site, label=f"{site.label} {at}", axis=axis, read=reader(at)) for axis in axes]
    return sites


# ---------------------------------------------------------------------- one rule for each kind of module


def _convolution(module: _ConvNd, attribute: str, axis: int) -> ActivationSite | None:
    if axis > 1 or (axis == 1 and module.groups > 1):
        return None
    channels = -1 - len(module.kernel_size)
    # Axis 0 of a weight, and the bias, are the channels of the output; a transposed weight has them on axis 1.
    if attribute == "bias" or (axis == 0) != isinstance(module, _ConvTransposeNd):
        return replace(_OUTPUT, axis=channels)
    return replace(_INPUT, axis=channels)


def _recurrent(module: nn.RNNBase, attribute: str) -> ActivationSite | None:
    if attribute.startswith("weight_ih_l0"):
        return _INPUT
    kind, reverse = attribute.removesuffix("_reverse"), attribute.endswith("_reverse")
    if not kind.startswith(("weight_hh_l", "weight_hr_l")):
        return None
    layer = int(kind.rpartition("_l")[2])
    at = layer * (2 if module.bidirectional else 1) + reverse
    if kind.startswith("weight_hr"):
        return ActivationSite("cell", "both", -1, lambda call: call.outputs[2][at])
    if layer < module.num_layers - 1:
        return ActivationSite("state", "both", -1, lambda call: call.outputs[1][at])
    width = module.proj_size or module.hidden_size
    return replace(_OUTPUT, when="both", start=-width if reverse else 0)


def _attention(attribute: str, axis: int) -> ActivationSite | None:
    if attribute in ("out_proj.weight", "out_proj.bias"):
        values = ActivationSite("values", "both", -1, lambda call: _projected(call, 2), computed=True)
        return values if axis == 1 else _OUTPUT
    if attribute in ("in_proj_weight", "in_proj_bias"):
        projections = ActivationSite("projections", "pre", -1, _projections, computed=True)
        return ActivationSite("input", "post", -1, _attention_input(0)) if axis == 1 else projections
    separate = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    if attribute not in separate:
        return None
    at = separate.index(attribute)
    if axis == 1:
        return ActivationSite(f"{'qkv'[at]} input", "post", -1, _attention_input(at))
    return ActivationSite(f"{'qkv'[at]} projection", "pre", -1, lambda call: _projected(call, at), computed=True)


def _projections(call: ModuleCall) -> Tensor:
    """Put queries, keys and values side by side, as far as they have the same positions; the others are cut off."""
    parts = [_projected(call, at) for at in range(3)]
    length = min(part.numel() // part.shape[-1] for part in parts)
    return torch.cat([part.reshape(-1, part.shape[-1])[:length] for part in parts], -1)


def _projected(call: ModuleCall, at: int) -> Tensor:
    """Compute the queries (0), keys (1) or values (2) of an attention module."""
    module = call.module
    assert isinstance(module, nn.MultiheadAttention)
    rows, packed = slice(at * module.embed_dim, (at + 1) * module.embed_dim), module.in_proj_weight
    separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    weight = packed[rows] if packed is not None else separate[at]
    bias = None if module.in_proj_bias is None else module.in_proj_bias[rows]
    return nn.functional.linear(_attention_input(at)(call), weight, bias)


def _attention_input(at: int) -> Callable[[ModuleCall], Tensor]:
    name = ("query", "key", "value")[at]
    return lambda call: call.args[at] if len(call.args) > at else call.kwargs[name]


def _input(at: int) -> Callable[[ModuleCall], Tensor]:
    return lambda call: call.inputs[at]


def _output(at: int) -> Callable[[ModuleCall], Tensor]:
    return lambda call: call.outputs[at]


def _channels_last(call: ModuleCall) -> Tensor:
    """Move axis 1 of the output to the end: how many axes there are is only known when the tensor is there."""
    output = call.outputs[0]
    return output.movedim(1, -1) if output.ndim > 1 else output


_INPUT = ActivationSite("input", "post", -1, _input(0))
_OUTPUT = ActivationSite("output", "pre", -1, _output(0))


# ---------------------------------------------------------------------- owners and positions


def owner_of(model: nn.Module, name: str) -> tuple[str, str]:
    """Split the name of a tensor into the path of the module that owns it and its attribute: ``"conv1", "weight"``.

    The output projection of an attention module belongs to the attention module, which never calls it, and the parts
    of a parametrised weight belong to the module that uses the weight.
    """
    path, _, attribute = name.rpartition(".")
    if "parametrizations" in path.split("."):
        parts = path.split(".")
        at = parts.index("parametrizations")
        path, attribute = ".".join(parts[:at]), parts[at + 1]
    outer, _, leaf = path.rpartition(".")
    if leaf == "out_proj" and isinstance(model.get_submodule(outer), nn.MultiheadAttention):
        return outer, f"out_proj.{attribute}"
    return path, attribute


@dataclass(frozen=True, eq=False)
class Positions:
    """Which positions of an axis hold the units of a group.

    Attributes:
        group: The group.
        index: int64 ``[fixed, others, units]``: units over all parents, row-major; ``fixed`` counts positions that no
            group moves, ``others`` those that further groups move.
    """

    group: str
    index: Tensor

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two that say the same."""
        return (self.group, tuple(self.index.shape), tuple(self.index.reshape(-1).tolist()))


def positions_on_axis(node: TensorNode, axis: int) -> list[Positions]:
    """Find the units that one axis of a tensor indexes, of the innermost groups only: their parents move with them.

    A group whose parent acts on another axis of the tensor is left out. Example: axis 1 of ``". (c 4)"``, with 3 units
    of ``c`` that each own 4 columns, gives ``c`` with ``index`` of shape ``[4, 1, 3]``: ``index[f, 0, u] = f + 4 u``.
    """
    by_key: dict[tuple[object, ...], Positions] = {}
    for block in node.blocks:
        here = [at for at, dim in enumerate(block.dims) if dim.axis == axis]
        parents = {up for at in here for up in block.dims[at].ancestors}
        for at in here:
            dim = block.dims[at]
            if dim.group is None or at in parents or not set(dim.ancestors) <= set(here):
                continue
            chain = [*dim.ancestors, at]
            rest = [other for other in here if other not in chain]
            fixed = _offsets(block, [other for other in rest if block.dims[other].group is None])
            others = _offsets(block, [other for other in rest if block.dims[other].group is not None])
            index = block.offsets[axis] + fixed[:, None, None] + others[None, :, None] + _offsets(block, chain)
            positions = Positions(dim.group, index)
            by_key.setdefault(positions.key, positions)
    return list(by_key.values())


def _offsets(block: Block, dims: list[int]) -> Tensor:
    """List the offsets of all positions of some dims, row-major: sizes 2 and 3, strides 3 and 1 give 0 to 5."""
    total = torch.zeros(1, dtype=torch.int64)
    for at in dims:
        steps = torch.arange(block.dims[at].size) * block.dims[at].stride
        total = (total[:, None] + steps).reshape(-1)
    return total
