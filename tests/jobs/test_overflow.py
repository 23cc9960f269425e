"""No job returns or writes infinity: a sum that a dtype cannot hold is refused by the name of the tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import alignkit
from alignkit import Alignment
from alignkit.checkpoints import open_checkpoint
from alignkit.errors import MergeError, TaskError
from alignkit.jobs.average import average, slerp
from alignkit.jobs.from_disk import merge_checkpoints
from helpers.small_pairs import pair_of

NARROW = ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64")
GRAPH = pair_of("two layers").graph


def filled(dtype, value):
    kind = getattr(torch, dtype)
    return {name: torch.full(node.shape, value, dtype=torch.float64).to(kind) for name, node in GRAPH.tensors.items()}


def largest(dtype):
    return torch.finfo(getattr(torch, dtype)).max


@pytest.mark.parametrize("dtype", NARROW[:-1])
def test_an_average_with_a_wider_network(dtype):
    wide = filled("float64", 8 * largest(dtype))
    with pytest.raises(MergeError, match=f"'w1' overflows.*{dtype} holds up to"):
        average([filled(dtype, 1.0), wide])
    assert all(bool(torch.isfinite(t).all()) for t in average([wide, filled(dtype, 1.0)]).values())


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shares", [None, [1, 2, 4], [0.1, 0.2, 0.3]])
def test_the_average_of_the_largest_numbers_is_the_largest_number(dtype, shares):
    top = filled(dtype, largest(dtype))
    for name, tensor in average([top, top, top], shares).items():
        assert torch.allclose(tensor.double(), top[name].double(), rtol=1e-15)


@pytest.mark.parametrize("dtype", NARROW)
def test_an_arc_that_leaves_the_dtype(dtype):
    a, b = filled(dtype, largest(dtype)), filled(dtype, largest(dtype))
    for name, tensor in b.items():
        flat = tensor.view(-1)
        flat[: len(flat) // 2] = torch.zeros(()).to(flat.dtype)
        a[name].view(-1)[len(flat) // 2 + 1 :] = torch.zeros(()).to(flat.dtype)
    with pytest.raises(MergeError, match="overflows"):
        average([a, b], method="slerp")


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-3, 1e200, 1e300])
def test_an_arc_has_the_same_shape_at_every_scale(size):
    torch.manual_seed(0)
    a, b = torch.randn(2, 7, dtype=torch.float64)
    assert torch.allclose(slerp(size * a, size * b, 0.3) / size, slerp(a, b, 0.3), rtol=1e-12)
    assert torch.allclose(slerp(size * a, b / size, 0.0) / size, a, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e39, -1e39, 1e300])
@pytest.mark.parametrize("dtype", NARROW[:-1])
def test_a_task_vector_that_is_too_long(dtype, scale):
    base, tuned, order = filled(dtype, 1.0), filled(dtype, 2.0), Alignment.identity(GRAPH)
    with pytest.raises(MergeError, match=f"'w1' overflows.*{dtype} holds up to"):
        alignkit.transport(GRAPH, base, base, tuned=tuned, alignment=order, scale=scale)
    base, tuned = filled("float64", 1.0), filled("float64", 2.0)
    carried = alignkit.transport(GRAPH, base, base, tuned=tuned, alignment=order, scale=scale)
    assert all(torch.equal(tensor, torch.full_like(tensor, 1 + scale)) for tensor in carried.network.values())


def test_a_task_vector_that_is_too_long_for_float64():
    base, tuned = filled("float64", 1.0), filled("float64", 3.0)
    with pytest.raises(MergeError, match="'w1' overflows"):
        alignkit.transport(GRAPH, base, base, tuned=tuned, alignment=Alignment.identity(GRAPH), scale=1e308)


def test_the_length_of_a_task_vector_whose_squares_overflow():
    base, tuned = filled("float64", 0.0), filled("float64", 1e200)
    carried = alignkit.transport(GRAPH, base, base, tuned=tuned, alignment=Alignment.identity(GRAPH))
    count = sum(tensor.numel() for tensor in base.values())
    assert carried.length == pytest.approx(1e200 * count**0.5)


def test_an_average_on_disk_of_the_largest_numbers_is_finite(tmp_path):
    sides = [filled("float16", 1.0), filled("float16", 65504.0)]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, side in zip(paths, sides, strict=True):
        alignkit.write_weights(path, side)
    order = [None, Alignment.identity(GRAPH)]
    merge_checkpoints(tmp_path / "m.safetensors", [open_checkpoint(path) for path in paths], order)
    merged = alignkit.read_weights(tmp_path / "m.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_line_to_a_wider_network(dtype):
    kind = getattr(torch, dtype)
    model = nn.Linear(3, 2, dtype=kind)
    task = alignkit.Task(model, (torch.randn(4, 3, dtype=kind), torch.randn(4, 2, dtype=kind)), "mse")
    near = model.state_dict()
    far = {name: torch.full_like(tensor, 8.0).double() * largest(dtype) for name, tensor in near.items()}
    with pytest.raises(TaskError, match="'weight' overflows"):
        alignkit.interpolate(task, near, far, points=3)


def linear(first, second):
    """A layer in float16 with two weights and no bias."""
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float16)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[first, second]]))
    return nn.Sequential(layer)


def test_a_layer_that_repair_scales_too_far():
    """Parents whose outputs are 200 times as wide as those of the merged layer, whose weights nearly cancel."""
    inputs = torch.linspace(-1, 1, 16, dtype=torch.float16)[:, None].expand(-1, 2).contiguous()
    merged, parents = linear(32.0 * 1024, -32.0 * 1024 + 32), [linear(6400.0, 0.0), linear(6400.0, 0.0)]
    with pytest.raises(MergeError, match=r"'0.weight' overflows.*float16 holds up to"):
        alignkit.repair(merged, parents, inputs)


def test_statistics_that_a_norm_cannot_hold():
    norm = nn.Sequential(nn.BatchNorm1d(2, dtype=torch.float16))
    with pytest.raises(MergeError, match=r"'0.running_var' overflows.*float16 holds up to"):
        alignkit.reset_batchnorm(norm, 1000 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).half())
