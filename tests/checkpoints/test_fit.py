"""Whether tensors fit: each kind of mismatch, all of them told at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alignkit.checkpoints.fit import MAX_LISTED, Fit, all_finite, first_names
from alignkit.errors import MergeError

SHAPES = {"fc1.weight": (2, 3), "head": (3,)}
NAMES = {"fc1.weight": "fc1.weight", "head": "head", "tail": "head"}


def good() -> dict[str, Tensor]:
    shared = torch.ones(3)
    return {"fc1.weight": torch.ones(2, 3), "head": shared, "tail": shared}


def problems(tensors: dict[str, Tensor], **options: bool) -> list[str]:
    fit = Fit(SHAPES, NAMES)
    fit.check_tensors(tensors, "A", **options)
    return fit.problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"fc1.weight": None}, "'fc1.weight' is missing in A"),
        ({"head": None, "tail": None}, "'head' is missing in A"),
        ({"extra": torch.ones(1)}, "'extra' of A is not in the graph"),
        ({"fc1.weight": torch.ones(3, 2)}, "'fc1.weight' has shape (3, 2) in A, the graph says (2, 3)"),
        ({"tail": torch.ones(4)}, "'tail' has shape (4,) in A, the graph says (3,)"),
        ({"fc1.weight": torch.ones(2, 3).to_sparse()}, "'fc1.weight' of A is a tensor of layout sparse_coo"),
        ({"fc1.weight": torch.ones(2, 3, device="meta")}, "'fc1.weight' of A is on the meta device and has no"),
        ({"fc1.weight": torch.full((2, 3), float("nan"))}, "'fc1.weight' of A holds NaN or infinity"),
        ({"tail": torch.zeros(3)}, "'tail' and 'head' are tied in the graph but differ in A"),
    ],
)
def test_each_mismatch_is_a_sentence(change: dict[str, Tensor | None], problem: str) -> None:
    tensors = {name: tensor for name, tensor in {**good(), **change}.items() if tensor is not None}
    (found,) = problems(tensors)
    assert found.startswith(problem)


def test_what_fits_comes_back_by_first_name() -> None:
    tensors = good()
    del tensors["head"]  # one name of tied tensors is enough
    fit = Fit(SHAPES, NAMES)
    assert list(fit.check_tensors(dict(reversed(tensors.items())), "A")) == ["fc1.weight", "head"]
    assert not fit.problems
    fit.raise_if_any(MergeError, "nothing")
    assert not problems({**good(), "tail": torch.ones(3)})
    assert not problems({**good(), "fc1.weight": torch.full((2, 3), float("inf"))}, values=False)


def test_a_name_that_was_mistyped_gets_a_hint() -> None:
    tensors = good()
    tensors["fc1.wieght"] = tensors.pop("fc1.weight")
    assert problems(tensors)[1] == "'fc1.wieght' of A is not in the graph; did you mean 'fc1.weight'?"


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
WHOLE = (torch.int64, torch.int8, torch.bool)


@pytest.mark.parametrize("own", [*FLOATS, *WHOLE])
@pytest.mark.parametrize("expected", [*FLOATS, *WHOLE])
def test_floating_point_dtypes_may_differ_and_others_are_those_of_the_first_side(expected, own) -> None:
    fit = Fit(SHAPES, NAMES, "the model")
    fit.check_dtypes({"A": {"head": expected}, "B": {"head": own, "more": torch.int8}, "C": {}})
    names = [str(dtype).removeprefix("torch.") for dtype in (expected, own)]
    refused = expected != own and not (expected in FLOATS and own in FLOATS)
    assert fit.problems == [f"'head' is {names[0]} in A but {names[1]} in B"] * refused


def test_one_error_lists_the_first_mismatches_and_counts_the_rest() -> None:
    fit = Fit({f"t{i:02}": (1,) for i in range(MAX_LISTED + 7)}, {}, "the model")
    fit.check_shapes({}, "B")
    with pytest.raises(MergeError) as caught:
        fit.raise_if_any(MergeError, "the models do not fit", "models count from 0")
    lines = str(caught.value).splitlines()
    assert lines[0] == "the models do not fit: B has no tensors."
    assert lines[1] == f"{MAX_LISTED + 7} problems (models count from 0):"
    assert lines[2] == "  - 't00' is missing in B"
    assert lines[-1] == "  and 7 more"
    assert len(lines) == MAX_LISTED + 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64, torch.float8_e4m3fn])
def test_finite_values_of_every_width(dtype: torch.dtype) -> None:
    assert all_finite(torch.ones(3).to(dtype))
    assert not all_finite(torch.tensor([1.0, float("nan")]).to(dtype))
    assert all_finite(torch.ones(3, dtype=torch.int8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_finite_numbers_whose_sum_overflows_are_finite_and_infinities_that_cancel_are_not(dtype):
    largest, infinite = torch.finfo(dtype).max, float("inf")
    assert all_finite(torch.full((9,), largest, dtype=dtype))
    assert all_finite(torch.tensor([largest, largest, -largest, -largest], dtype=dtype))
    assert all_finite(torch.zeros(0, dtype=dtype))
    for values in ([infinite, -infinite], [largest, largest, -infinite], [1.0, infinite], [float("nan"), -infinite]):
        assert not all_finite(torch.tensor(values, dtype=dtype))


def test_tied_names_share_their_first() -> None:
    shared = torch.ones(4)
    tensors = {"a": shared, "b": shared.view(2, 2), "c": shared.detach(), "e": torch.ones(0), "f": torch.ones(0)}
    assert first_names(tensors) == {"a": "a", "b": "b", "c": "a", "e": "e", "f": "f"}
