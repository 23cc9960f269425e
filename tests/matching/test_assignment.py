"""Linear assignment against trying every permutation, for every backend."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit.errors import AssignmentError
from alignkit.matching import assignment
from alignkit.matching.assignment import assignment_value, linear_assignment

BACKENDS = ["auto", "scipy", pytest.param("lapx", marks=pytest.mark.skipif(
    "lapx" not in assignment.available_backends(), reason="lapx is not installed"))]  # fmt: skip
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def best_by_trying(similarity: Tensor) -> float:
    rows = range(len(similarity))
    return max(sum(float(similarity[i, p[i]]) for i in rows) for p in itertools.permutations(rows))


@every_backend
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_the_best_permutation_is_found(backend: str, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for scale in (1e-12, 1.0, 1e12):
        for _ in range(5):
            similarity = torch.randn(size, size, generator=generator, dtype=torch.float64) * scale
            permutation = linear_assignment(similarity, backend)
            assert sorted(permutation.tolist()) == list(range(size))
            assert float(assignment_value(similarity, permutation)) == pytest.approx(
                best_by_trying(similarity), rel=1e-9, abs=0
            )


@every_backend
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whole_numbers_with_many_ties(backend: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 5))
    values = data.draw(st.lists(st.integers(-2, 2), min_size=size * size, max_size=size * size))
    similarity = torch.tensor(values, dtype=torch.float64).reshape(size, size)
    permutation = linear_assignment(similarity, backend)
    assert float(assignment_value(similarity, permutation)) == best_by_trying(similarity)
    assert torch.equal(permutation, linear_assignment(similarity.clone(), backend))


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_ties_are_broken_the_same_way_every_time(backend: str, dtype: torch.dtype) -> None:
    similarity = torch.zeros(7, 7, dtype=dtype)
    first = linear_assignment(similarity, backend)
    assert all(torch.equal(linear_assignment(similarity, backend), first) for _ in range(5))
    batch = linear_assignment(similarity.expand(3, 7, 7), backend)
    assert all(torch.equal(permutation, first) for permutation in batch)


@every_backend
def test_batches_are_solved_one_by_one(backend: str) -> None:
    similarity = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    elements = linear_assignment(similarity, backend)
    assert (elements.shape, elements.dtype) == ((2, 3, 5), torch.int64)
    for i, j in itertools.product(range(2), range(3)):
        assert torch.equal(elements[i, j], linear_assignment(similarity[i, j], backend))
    assert assignment_value(similarity, elements).shape == (2, 3)


@every_backend
def test_backends_agree_on_a_larger_problem(backend: str) -> None:
    similarity = torch.randn(200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = linear_assignment(similarity, "scipy")
    assert torch.equal(linear_assignment(similarity, backend), reference)


@every_backend
def test_a_planted_permutation_is_found_through_views_and_gradients(backend: str) -> None:
    permutation = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    similarity = torch.eye(9)[permutation].T.contiguous().T.requires_grad_()
    assert torch.equal(linear_assignment(similarity, backend), permutation)


@every_backend
@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 0)])
def test_nothing_to_assign(backend: str, shape: tuple[int, ...]) -> None:
    assert linear_assignment(torch.zeros(shape), backend).shape == shape[:-1]


@every_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_similarities_that_are_no_numbers_raise(backend: str, bad: float) -> None:
    similarity = torch.zeros(2, 3, 3)
    similarity[1, 2, 0] = bad
    with pytest.raises(AssignmentError, match="NaN or infinity"):
        linear_assignment(similarity, backend)
    similarity[0, 0, 0] = -bad
    with pytest.raises(AssignmentError, match="NaN or infinity"):
        linear_assignment(similarity, backend)


@every_backend
def test_huge_finite_similarities_are_no_error(backend: str) -> None:
    similarity = torch.eye(4, dtype=torch.float64)[[2, 0, 3, 1]] * 1e308
    assert linear_assignment(similarity, backend).tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize("shape", [(3,), (), (2, 3), (4, 3, 2)])
def test_matrices_have_to_be_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssignmentError, match=r"square matrices, found shape"):
        linear_assignment(torch.zeros(shape))


def test_an_unknown_backend_names_those_that_there_are() -> None:
    with pytest.raises(AssignmentError, match=r"'gurobi' is not available; there are .*scipy"):
        linear_assignment(torch.zeros(2, 2), "gurobi")


def test_a_backend_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "available_backends", lambda: ("scipy",))
    with pytest.raises(AssignmentError, match=r'pip install "alignkit\[fast\]"'):
        linear_assignment(torch.zeros(2, 2), "lapx")
    assert linear_assignment(torch.eye(2), "auto").tolist() == [0, 1]
