"""Graphs of common families, written with the notation from the names and shapes of the tensors.

Every builder takes a module, a state dict or a mapping of shapes, and reads its layers in the order in which they are
listed. Shapes do not tell everything (a transposed convolution looks like a plain one): `SymmetryGraph.verify`
proves a graph on a real model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from alignkit.arguments import check_arguments
from alignkit.errors import GraphError
from alignkit.graph.notation import is_group_name
from alignkit.graph.spec import Like, read_tensor_nodes
from alignkit.graph.symmetry_graph import SymmetryGraph

_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
"""Last parts of the names of the buffers that norms keep."""
_WAY_OUT = "Write its spec by hand, or trace the model."
_KINDS = {1: "norm", 2: "linear", 3: "convolution", 4: "convolution", 5: "convolution"}
"""Kind of a layer by the number of axes of its weight."""


@check_arguments
def mlp(like: Like) -> SymmetryGraph:
    """Build the graph of a multilayer perceptron: one group for each hidden layer.

    Linear layers follow each other as they are listed; a one-dimensional tensor between them (BatchNorm, LayerNorm,
    PReLU) moves with the layer before it. Inputs and outputs are fixed.

    Args:
        like: Module, state dict or shapes, layers in the order in which they run.

    Raises:
        GraphError: A tensor does not fit; the message names it.
    """
    hint = "is not a linear layer; a network with convolutions is alignkit.graph.builders.cnn"
    return _chain_graph(like, "an MLP", {"convolution": hint})


@check_arguments
def siren(like: Like) -> SymmetryGraph:
    """Build the graph of a SIREN: a chain of linear layers with sine activations.

    Its permutations are those of an MLP. The sine is odd, so the sign of each unit is a further symmetry
    (``sin(-x) = -sin(x)``), which a group of kind ``"permutation"`` does not hold. Source: Sitzmann et al., "Implicit
    Neural Representations with Periodic Activation Functions", 2020. ``like`` and errors are those of `mlp`.
    """
    refused = {kind: f"is a {kind}; a SIREN has linear layers only" for kind in ("convolution", "norm")}
    return _chain_graph(like, "a SIREN", refused)


@check_arguments
def cnn(like: Like) -> SymmetryGraph:
    """Build the graph of a plain CNN: convolutions, each with a BatchNorm or without, a flatten, linear layers.

    One group for the channels of each convolution and for each hidden linear layer. How many columns of the first
    linear layer a channel owns is read from the shapes; after a global pooling it is one. ``like`` and errors are those
    of `mlp`.
    """
    return _chain_graph(like, "a plain CNN", {})


@check_arguments
def resnet(like: Like) -> SymmetryGraph:
    """Build the graph of a ResNet as torchvision writes it, with BasicBlock or Bottleneck.

    Blocks are named ``<stage>.<number>`` and hold their convolutions and BatchNorms, and the projection of their
    shortcut in a child of its own (``downsample.0``, ``shortcut.0``). Blocks without a projection share one group for
    the residual stream; a projection starts a new one. Inside a block each convolution but the last owns a group.
    ``like`` and errors are those of `mlp`.
    """
    layers = _layers(like, "a ResNet")
    parents = {layer.parent for layer in layers if layer.kind == "convolution"}
    paths = {parent for parent in parents if parent.rpartition(".")[2].isdigit()}
    blocks: dict[str, list[_Layer]] = {}
    for layer in layers:
        path = next((p for p in paths if layer.path.startswith(p + ".")), layer.path)
        blocks.setdefault(path, []).append(layer)
    if not paths:
        problem = "no block such as 'layer1.0' with convolutions of its own was found"
        raise GraphError(f"this does not look like a ResNet: {problem}. {_WAY_OUT}")
    chain = _Chain("a ResNet")
    for path, members in blocks.items():
        if path in paths:
            _add_block(chain, path, members)
        else:
            chain.add(members[0])
    return SymmetryGraph.from_spec(chain.finish(), like)


def _chain_graph(like: Like, family: str, refused: Mapping[str, str]) -> SymmetryGraph:
    """Chain all layers; ``refused`` says what is wrong with layers of a kind that the family does not have."""
    chain = _Chain(family)
    for layer in _layers(like, family):
        if layer.kind in refused:
            raise chain.error(layer, refused[layer.kind])
        chain.add(layer)
    return SymmetryGraph.from_spec(chain.finish(), like)


def _add_block(chain: _Chain, path: str, members: list[_Layer]) -> None:
    """Add a residual block: its branch starts and ends on the stream, which a projection replaces."""
    shortcuts = (f"{path}.downsample", f"{path}.shortcut")
    branch = [layer for layer in members if layer.parent == path and layer.path not in shortcuts]
    shortcut = [layer for layer in members if layer not in branch]
    stream, width = chain.units, chain.width
    if stream is None:
        raise chain.error(branch[0], "is in the first block, before any stem convolution")
    last = [layer for layer in branch if layer.kind == "convolution"][-1]
    projected = any(layer.kind == "convolution" for layer in shortcut)
    if not projected and last.weight[0] != width:
        step = f"from {width} to {last.weight[0]} channels"
        raise chain.error(last, f"takes the stream {step}, but block {path!r} has no projection")
    for layer in branch:
        chain.add(layer, units=stream if layer is last and not projected else None)
    end, end_width = chain.units, chain.width
    chain.units, chain.width = stream, width
    for layer in shortcut:
        chain.add(layer, units=end)
        if chain.width != end_width:
            raise chain.error(layer, f"gives {chain.width} channels to a residual stream of {end_width}")
    chain.units, chain.width = end, end_width


@dataclass
class _Layer:
    """The tensors of one module that hold its weights, by the last part of their names."""

    path: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kind: str = ""

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def weight(self) -> tuple[int, ...]:
        return self.shapes.get("weight", self.shapes.get("running_mean", ()))

    def name(self, tensor: str) -> str:
        return f"{self.path}.{tensor}" if self.path else tensor


def _layers(like: Like, family: str) -> list[_Layer]:
    """List the layers of a network in order, each a linear layer, a convolution or a norm."""
    layers: dict[str, _Layer] = {}
    for facts in read_tensor_nodes(like).values():
        if len(facts.names) > 1:
            both = f"{facts.names[0]!r} and {facts.names[1]!r}"
            raise GraphError(f"tensors {both} are tied, which {family} does not have. {_WAY_OUT}")
        path, _, tensor = facts.names[0].rpartition(".")
        layers.setdefault(path, _Layer(path)).shapes[tensor] = facts.shape
    for layer in layers.values():
        unknown = sorted(set(layer.shapes) - {"weight", "bias"} - _STATISTICS)
        layer.kind = _KINDS.get(len(layer.weight), "")
        if unknown or not layer.kind:
            odd = unknown[0] if unknown else next(iter(layer.shapes))
            problem = "is not the weight or bias of a linear layer, a convolution or a norm, so this is not"
            tensor = f"tensor {layer.name(odd)!r} of shape {layer.shapes[odd]}"
            raise GraphError(f"{tensor} {problem} {family}. {_WAY_OUT}")
        for tensor, shape in layer.shapes.items():
            if tensor != "weight" and shape not in ((), layer.weight[:1]):
                outputs = f"{layer.weight[0]} outputs"
                raise GraphError(f"tensor {layer.name(tensor)!r} has shape {shape}, but its layer has {outputs}.")
    if all(layer.kind == "norm" for layer in layers.values()):
        raise GraphError(f"there is no linear layer and no convolution, so this is not {family}.")
    return list(layers.values())


@dataclass
class _Chain:
    """Layers that follow each other: writes the spec of each and keeps the group of the units that it hands on."""

    family: str
    spec: dict[str, str] = field(default_factory=dict)
    units: str | None = None
    width: int = 0
    spatial: bool = False
    last: str = ""

    def error(self, layer: _Layer, what: str) -> GraphError:
        tensor, shape = next(iter(layer.shapes.items()))
        family = f"{self.family} that the builder knows"
        return GraphError(f"tensor {layer.name(tensor)!r} of shape {shape} {what}, so this is not {family}. {_WAY_OUT}")

    def add(self, layer: _Layer, units: str | None = None) -> None:
        """Append a layer; its outputs are the group ``units``, or a new one named after the layer."""
        if layer.kind == "norm":
            if self.spatial and "bias" in layer.shapes and "running_mean" not in layer.shapes:
                hint = "it may be a GroupNorm, which ties channels together"
                raise self.error(layer, f"has no running statistics, so {hint}")
            if self.units is not None and layer.weight not in ((self.width,), (1,)):
                raise self.error(layer, f"does not fit the {self.width} units before it")
            text = self.units if self.units is not None and layer.weight == (self.width,) else "."
            self.spec.update({layer.name(tensor): text for tensor, shape in layer.shapes.items() if shape})
            return
        inputs = layer.weight[1]
        if self.units is None:
            columns = "."
        elif inputs == self.width:
            columns = self.units
        elif layer.kind == "linear" and self.spatial and inputs % self.width == 0:
            columns = f"({self.units} {inputs // self.width})"
        else:
            raise self.error(layer, f"takes {inputs} inputs where the layer before it has {self.width} units")
        # "0" is not a name in the notation, so a layer of that path owns the group "layer.0".
        units = units or (layer.path if is_group_name(layer.path) else f"layer.{layer.path or 'weight'}")
        self.spec[layer.name("weight")] = f"{units} {columns}" + " ." * (len(layer.weight) - 2)
        if "bias" in layer.shapes:
            self.spec[layer.name("bias")] = units
        self.units, self.width, self.last = units, layer.weight[0], units
        self.spatial = layer.kind == "convolution"

    def finish(self) -> dict[str, str]:
        """Return the spec, with the outputs of the last layer fixed."""
        return {n: " ".join("." if a == self.last else a for a in text.split()) for n, text in self.spec.items()}
