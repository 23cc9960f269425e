"""Steering vectors, probes and sparse autoencoders do for B what they did for A."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, SymmetryGraph, fold, transport_tensors
from alignkit.errors import AlignkitError, AlignmentError, BindError, MergeError, ShapeMismatchError, SpecError
from alignkit.graph import Gain, OutputScale, Phase, Shift, Through, Zero
from alignkit.reports import write_report
from helpers.folding_nets import NETS, Net
from helpers.gauge_cases import CASES


def copied(model: nn.Module, graph: SymmetryGraph, seed: int) -> tuple[nn.Module, Alignment]:
    """A network that computes the same: folded, balanced, under a random symmetry; and the way back."""
    symmetry = Alignment.random(graph, seed)
    return symmetry.apply(fold(model, graph).network), symmetry.inverse()


def rewritten(net: Net) -> set[str]:
    """Tensors that folds take out, or add to, which is no linear change."""
    names: set[str] = set()
    for step in (*net.graph.folds, *net.graph.balances):
        match step:
            case Phase(_, bias):
                names.add(bias.tensor)
            case Gain(gain, _, _, shift):
                names |= {gain, shift or gain}
            case OutputScale(scale):
                names.add(scale)
            case Shift(shift, readers):
                names |= {shift, *(bias for _, bias in readers)}
            case Zero(bias):
                names.add(bias.tensor)
            case Through(bias, _, into):
                names |= {bias.tensor, into}
    return names


@pytest.mark.parametrize("name", NETS)
def test_what_is_like_a_weight_is_rewritten_and_moved_as_it_is(name: str) -> None:
    """A copy of a weight of A, each axis like its own, becomes that weight of B, and comes back from B to A."""
    net = NETS[name]()
    other, alignment = copied(net.model, net.graph, 3)
    own, wanted = net.model.state_dict(), other.state_dict()
    for tensor in sorted(net.graph.tensors.keys() - rewritten(net)):
        node = net.graph.tensors[tensor]
        if not node.groups:
            continue
        layouts = {"copy": " ".join(f"@{tensor}:{axis}" for axis in range(len(node.shape)))}

        def carry(a: nn.Module, b: nn.Module, copy: Tensor, way: Alignment, layouts: Any = layouts) -> Tensor:
            done = transport_tensors(net.graph, a, b, tensors={"copy": copy}, layouts=layouts, alignment=way)
            return done.tensors["copy"]

        there = carry(net.model, other, own[tensor], alignment)
        size = wanted[tensor].norm()
        assert (there - wanted[tensor]).norm() < 1e-9 * size, tensor
        back = carry(other, net.model, wanted[tensor], alignment.inverse())
        again = carry(net.model, other, back, alignment)
        assert (again - wanted[tensor]).norm() < 1e-9 * size, tensor


@contextmanager
def changed_output(model: nn.Module, path: str, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, output: change(output))
    yield
    handle.remove()


def output_at(model: nn.Module, path: str, inputs: Tensor) -> Tensor:
    kept: list[Tensor] = []
    with changed_output(model, path, kept.append), torch.no_grad():
        model(inputs)
    return kept[0]


PLACES = {
    "tanh": "up",
    "gelu": "up",
    "llama": "blocks",
    "grouped queries": "blocks.attention",
    "gpt": "blocks",
    "gpt with a bias": "tokens",
    "offset gain": "blocks.mlp",
    "rnn": "layer",
    "norms behind": "blocks",
}


@pytest.mark.parametrize("name", PLACES)
def test_a_probe_reads_the_same_and_a_steering_vector_does_the_same_at_the_output_of_a_module(name: str) -> None:
    torch.manual_seed(0)
    case, path = CASES[name], PLACES[name]
    model, inputs = case.build().double(), case.batch()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    graph = alignkit.trace(model, inputs, symmetries="all")
    other, alignment = copied(model, graph, 1)
    first = (lambda value: value[0]) if name == "rnn" else (lambda value: value)
    width = first(output_at(model, path, inputs)).shape[-1]
    things = {"probe": torch.randn(3, width).double(), "steer": torch.randn(width).double()}
    if any(graph.groups[group].kind == "centred" for group in graph.roots):
        things["probe"] -= things["probe"].mean(-1, keepdim=True)  # a mean is not to be read
    carried = transport_tensors(graph, model, other, tensors=things, layouts=f"@{path}", alignment=alignment)
    probes = things["probe"], carried.tensors["probe"]
    reads = [first(output_at(m, path, inputs)) @ p.T for m, p in zip((model, other), probes, strict=True)]
    torch.testing.assert_close(reads[1], reads[0], rtol=1e-9, atol=1e-9)
    if name == "rnn":  # what comes out is not what the next step reads
        return
    steered = []
    for network, vector in ((model, things["steer"]), (other, carried.tensors["steer"])):
        with changed_output(network, path, lambda output, vector=vector: output + vector), torch.no_grad():
            steered.append(network(inputs))
    torch.testing.assert_close(steered[1], steered[0], rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        assert not torch.allclose(steered[0], model(inputs), atol=1e-3)


def test_a_probe_behind_a_norm_gets_the_constant_that_the_shifts_make() -> None:
    net = NETS["vit"]()
    other, alignment = copied(net.model, net.graph, 2)
    probe = torch.randn(3, 8, dtype=torch.float64)
    probe -= probe.mean(-1, keepdim=True)
    carried = transport_tensors(
        net.graph, net.model, other, tensors={"p": probe}, layouts={"p": ". @head.weight:1"}, alignment=alignment
    )
    before, after = (output_at(model, "norm", *net.inputs) for model in (net.model, other))
    read = after @ carried.tensors["p"].T
    torch.testing.assert_close(read + carried.constants["p"], before @ probe.T, rtol=1e-9, atol=1e-9)
    assert "Add its constant" in carried.explain()
    assert carried.facts()["constants"] == ["p"]


def test_an_autoencoder_takes_one_word_and_what_nothing_reads_is_told() -> None:
    torch.manual_seed(0)
    case = CASES["gpt"]
    model, inputs = case.build().double(), case.batch()
    graph = alignkit.trace(model, inputs, symmetries="all")
    other, alignment = copied(model, graph, 1)
    shapes = {"encoder": (10, 6), "encoder_bias": (10,), "decoder": (6, 10), "decoder_bias": (6,)}
    things = {name: torch.randn(shape).double() + 0.5 for name, shape in shapes.items()}
    carried = transport_tensors(graph, model, other, tensors=things, layouts="@blocks", alignment=alignment)
    assert carried.layouts == {
        "encoder": ". ^tokens", "encoder_bias": ".", "decoder": "^tokens .", "decoder_bias": "^tokens"
    }  # fmt: skip
    assert torch.equal(carried.tensors["encoder_bias"], things["encoder_bias"])
    assert set(carried.unread) == {"encoder", "decoder", "decoder_bias"}
    assert "decoder_bias: " in carried.explain() and "norms subtract" in carried.explain()

    def code(parts: dict[str, Tensor], values: Tensor) -> Tensor:
        return (values - parts["decoder_bias"]) @ parts["encoder"].T + parts["encoder_bias"]

    things["encoder"] -= things["encoder"].mean(-1, keepdim=True)
    carried = transport_tensors(graph, model, other, tensors=things, layouts="@blocks", alignment=alignment)
    codes = [code(parts, output_at(m, "blocks", inputs)) for m, parts in ((model, things), (other, carried.tensors))]
    torch.testing.assert_close(codes[1], codes[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt", "llama", "tanh"])
def test_modules_are_found_whatever_the_dtype_of_the_network(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[name].build(), CASES[name].batch()
    graph = alignkit.trace(model, inputs, symmetries="all")
    width = output_at(model, PLACES[name], inputs).shape[-1]
    for dtype in (torch.float32, torch.bfloat16):
        other = model.to(dtype)
        carried = transport_tensors(graph, other, other, tensors={"v": torch.randn(width)}, layouts=f"@{PLACES[name]}")
        assert carried.layouts["v"] not in ("", ".")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_stay_and_orders_are_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, inputs = CASES["tanh"].build(), CASES["tanh"].batch()
    graph = alignkit.trace(model, inputs, symmetries="all")
    symmetry = Alignment.random(graph, 1)
    vector = torch.randn(5).to(dtype)
    carried = transport_tensors(
        graph, model, symmetry.apply(model), tensors={"v": vector}, layouts={"v": "-up"}, alignment=symmetry.inverse()
    )
    assert torch.equal(carried.tensors["v"], symmetry.move_units("up", vector))
    solved = transport_tensors(graph, model, symmetry.apply(model), tensors={"v": vector}, layouts="-up")
    assert torch.equal(solved.tensors["v"], carried.tensors["v"])
    assert solved.solution is not None and carried.solution is None


@pytest.mark.parametrize(
    ("layouts", "error", "says"),
    [
        ({"p": ". @norm1.weight:0", "v": "."}, MergeError, "folding moves it into other weights. Say '@"),
        ({"p": ". @norm", "v": "."}, MergeError, "changes what comes out there. Name an axis that reads it: '@head"),
        ({"p": ". @nowhere", "v": "."}, MergeError, "no module and no tensor of this name"),
        ({"p": ". @nowhere.weight:1", "v": "."}, MergeError, "no tensor 'nowhere.weight'"),
        ({"p": ". @head.weight:2", "v": "."}, MergeError, "say which axis of shape"),
        ({"p": ". @head", "v": "."}, MergeError, "not the units of one axis"),
        ({"p": ". tokens", "v": "."}, MergeError, r"is written '\^tokens'"),
        ({"p": ". ^token", "v": "."}, MergeError, "has no group 'token'"),
        ({"p": ". ^tokens"}, MergeError, "says nothing about 'v'"),
        ({"p": ". ^tokens", "v": ".", "w": "."}, MergeError, "names 'w', which is not there"),
        ({"p": "^tokens .", "v": "."}, ShapeMismatchError, "'p'"),
        ({"p": ". (^tokens", "v": "."}, SpecError, "cannot read"),
        ({"p": ".", "v": "."}, AlignkitError, "'p'"),
        ({"p": ". ~blocks.attention.qkv.v[blocks.attention.qkv.heads]", "v": "."}, ShapeMismatchError, "makes 4"),
        ("@blocks.attention.qkv.weight:1", MergeError, "3 axes"),
        ("@head.weight:0", MergeError, "say for each tensor which axis it is"),
        ("@blocks.mlp.up.weight:0", MergeError, "which no axis of the tensors has"),
    ],
)  # fmt: skip
def test_a_layout_that_says_nothing_clear_is_refused(layouts: Any, error: type[Exception], says: str) -> None:
    torch.manual_seed(0)
    model, inputs = CASES["gpt"].build().double(), CASES["gpt"].batch()
    graph = alignkit.trace(model, inputs, symmetries="all")
    shapes = {"p": (6, 6) if says == "3 axes" else (4, 6), "v": (6,) if says == "3 axes" else (2,)}
    things = {name: torch.randn(shape) for name, shape in shapes.items()}
    if says == "3 axes":
        says = "2 axes of 6 positions"
    way = Alignment.identity(graph)
    layouts = json.loads(json.dumps(layouts).replace("@norm1", "@blocks.norm1"))
    with pytest.raises(error, match=says):
        transport_tensors(graph, model, model, tensors=things, layouts=layouts, alignment=way)


def test_units_that_are_scaled_need_a_side_and_a_module_has_to_run() -> None:
    torch.manual_seed(0)
    model, inputs = CASES["relu"].build(), CASES["relu"].batch()
    graph = alignkit.trace(model, inputs, symmetries="all")
    things, way = {"v": torch.randn(5)}, Alignment.identity(graph)
    for layout in ("up", "@up"):
        with pytest.raises(MergeError, match=r"scaled in two ways. Say '@up.weight:0' .*'@down.weight:1' for a reader"):
            transport_tensors(graph, model, model, tensors=things, layouts={"v": layout}, alignment=way)
    with pytest.raises(MergeError, match="Give a model"):
        transport_tensors(graph, model.state_dict(), model, tensors=things, layouts="@up", alignment=way)
    other = Alignment.identity(alignkit.trace(CASES["tanh"].build(), inputs))
    with pytest.raises(AlignmentError, match="another graph"):
        transport_tensors(graph, model, model, tensors=things, layouts="@up.bias:0", alignment=other)


def test_networks_may_be_folded_before() -> None:
    torch.manual_seed(0)
    model, inputs = CASES["relu"].build().double(), CASES["relu"].batch()
    graph = alignkit.trace(model, inputs.double(), symmetries="all")
    other, way = CASES["relu"].build().double(), Alignment.random(graph, 2)
    things, layouts = {"v": torch.randn(5).double(), "w": torch.randn(5)}, {"v": "@down.weight:1", "w": "@up.bias:0"}
    plain = transport_tensors(graph, model, other, tensors=things, layouts=layouts, alignment=way)
    before = fold(model.state_dict(), graph), fold(other, graph)
    again = transport_tensors(graph, *before, tensors=things, layouts=layouts, alignment=way, model=model)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in plain.tensors.items())


def test_whole_numbers_are_put_into_order_and_never_computed_with() -> None:
    torch.manual_seed(0)
    model, inputs = CASES["relu"].build(), CASES["relu"].batch()
    permuted = alignkit.trace(model, inputs)
    symmetry = Alignment.random(permuted, 1)
    mask = torch.tensor([True, False, False, True, False])
    for word in ("up", "@up.bias:0"):
        carried = transport_tensors(
            permuted,
            model,
            symmetry.apply(model),
            tensors={"m": mask},
            layouts={"m": word},
            alignment=symmetry.inverse(),
        )
        assert torch.equal(carried.tensors["m"], mask[symmetry.elements["up"]])
    scaled = alignkit.trace(model, inputs, symmetries="all")
    with pytest.raises(MergeError, match="holds whole numbers"):
        transport_tensors(scaled, model, model, tensors={"m": mask}, layouts={"m": "@up.bias:0"})


def test_what_was_folded_for_another_graph_is_refused() -> None:
    net, other = NETS["gpt"](), NETS["llama"]()
    folded = fold(other.model, other.graph)
    with pytest.raises(BindError, match="folded for another graph"):
        transport_tensors(net.graph, net.model, folded, tensors={"v": torch.randn(8)}, layouts="^model")


def test_the_result_tells_what_was_carried(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, inputs = CASES["gelu"].build(), CASES["gelu"].batch()
    graph = alignkit.trace(model, inputs)
    carried = transport_tensors(graph, model, model, tensors={"v": torch.randn(5)}, layouts="up")
    assert "v: up" in carried.explain()
    assert carried.facts()["layouts"] == {"v": "up"}
    pytest.importorskip("matplotlib")
    write_report(carried.report(), tmp_path / "report.md")
    assert "share that nothing reads" in (tmp_path / "report.md").read_text()
