"""Kinds of tensors at the door: everything that takes weights takes dense tensors, and says what others are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import alignkit
from alignkit import Alignment, SymmetryGraph, write_weights
from alignkit.checkpoints.dense import DTYPES, why_no_values
from alignkit.checkpoints.safetensors_file import DTYPES as SAFETENSORS_DTYPES
from alignkit.errors import AlignkitError, BindError, WeightsError

GRAPH = SymmetryGraph.from_spec({"w": "h .", "v": ". h"}, {"w": (3, 2), "v": (2, 3)})


class Plain(Tensor):
    """A class of tensors that changes nothing."""


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(3, 2)


def masked() -> Tensor:
    masked_tensor: Tensor = torch.masked.masked_tensor(torch.ones(3, 2), torch.ones(3, 2).bool())
    return masked_tensor


ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (lambda: torch.ones(3, 2).to_sparse(), "layout sparse_coo"),
    "sparse rows": (lambda: torch.ones(3, 2).to_sparse_csr(), "layout sparse_csr"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8), "quantised"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2)] * 3), "a nested tensor"),
    "fake": (fake, "a FakeTensor"),
    "masked": (masked, "a MaskedTensor"),
    "lazy": (nn.UninitializedParameter, "not initialised yet"),
    "half complex": (lambda: torch.zeros(3, 2, dtype=torch.complex32), "of dtype complex32"),
    "four bits": (lambda: torch.zeros(3, 2, dtype=torch.uint8).view(torch.uint4), "of dtype uint4"),
    "meta": (lambda: torch.ones(3, 2, device="meta"), "on the meta device"),
}
GROUP = SymmetryGraph.from_spec({"t": "w"}, {"t": (3,)})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.v @ self.w


TAKERS: dict[str, Callable[[Mapping[str, Any], Path], object]] = {
    "bind": lambda w, _: GRAPH.bind(w, w),
    "solve": lambda w, _: alignkit.solve(GRAPH, w, w),
    "merge": lambda w, _: alignkit.merge(GRAPH, w, w),
    "average": lambda w, _: alignkit.average([w, w]),
    "apply": lambda w, _: Alignment.identity(GRAPH).apply(w),
    "distance": lambda w, _: alignkit.distance(GRAPH, w, w),
    "write a pickle": lambda w, folder: write_weights(folder / "w.pt", w),
    "write safetensors": lambda w, folder: write_weights(folder / "w.safetensors", w),
    "a task": lambda w, _: alignkit.Task(Net(), [(torch.ones(4, 2), torch.ones(4, 2))], "mse").evaluate(w),
    "indices": lambda w, _: Alignment(GROUP, {"w": w["w"]}),
    "matrices": lambda w, _: alignkit.SoftAlignment(GROUP, {"w": w["w"]}),
    "a graph": lambda w, _: SymmetryGraph.from_spec({"w": "h .", "v": ". h"}, w),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", ODD)
def test_everything_that_takes_weights_says_what_others_are(kind: str, taker: str, tmp_path: Path) -> None:
    make, message = ODD[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = {"w": make(), "v": torch.ones(2, 3)}
    if (kind, taker) == ("meta", "a graph"):
        assert SymmetryGraph.from_spec({"w": "h .", "v": ". h"}, weights) == GRAPH
        return
    with pytest.raises(AlignkitError, match=message) as caught:
        TAKERS[taker](weights, tmp_path)
    assert "'w'" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_dtype_of_weights_is_written_and_read(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    weights = {"w": torch.ones(3, 2).to(dtype), "scalar": torch.ones(()).to(dtype), "none": torch.ones(0, 2).to(dtype)}
    if suffix == ".safetensors" and dtype not in SAFETENSORS_DTYPES.values():
        with pytest.raises(WeightsError, match="which a safetensors file cannot hold"):
            write_weights(tmp_path / f"w{suffix}", weights)
        return
    write_weights(tmp_path / f"w{suffix}", weights)
    read = alignkit.read_weights(tmp_path / f"w{suffix}")
    for name, tensor in weights.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].to(torch.complex128), tensor.to(torch.complex128))


def test_classes_that_change_nothing_are_weights() -> None:
    weights = {"w": torch.ones(3, 2).as_subclass(Plain), "v": nn.Parameter(torch.ones(2, 3))}
    assert all(why_no_values(tensor) is None for tensor in weights.values())
    assert alignkit.solve(GRAPH, weights, weights).objective_after == 0


def test_modules_that_never_ran_are_refused() -> None:
    with pytest.raises(BindError, match=r"weights\['weight'\] .* run the model once"):
        GRAPH.bind(nn.LazyLinear(3), nn.LazyLinear(3))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", [5, None, b"w", ("w",), "\ud800"], ids=repr)
def test_names_that_are_no_text_are_refused(name: Any, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot write"):
        write_weights(tmp_path / f"w{suffix}", {name: torch.ones(2)})
    assert not list(tmp_path.iterdir())
    with pytest.raises(BindError, match=r"strings|not Unicode"):
        GRAPH.bind({"w": torch.ones(3, 2), "v": torch.ones(2, 3)}, {"w": torch.ones(3, 2), name: torch.ones(2, 3)})


@pytest.mark.parametrize("stride", [0, 5])
def test_the_stride_of_one_element_does_not_matter(stride: int, tmp_path: Path) -> None:
    one = torch.arange(9.0).as_strided((1,), (stride,))
    for suffix in (".pt", ".safetensors"):
        write_weights(tmp_path / f"w{suffix}", {"w": torch.zeros(1)})
        like = alignkit.checkpoints.open_checkpoint(tmp_path / f"w{suffix}")
        alignkit.checkpoints.write_checkpoint(tmp_path / f"o{suffix}", like, lambda _: one)
        assert torch.equal(alignkit.read_weights(tmp_path / f"o{suffix}")["w"], one)
