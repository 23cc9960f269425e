"""Linear assignment against trying every permutation and against prices that prove the best, for every backend."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from types import ModuleType

import numpy as np
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
@settings(max_examples=60)
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


# ---------------------------------------------------------------------- proofs of the optimum


def prices(similarity: np.ndarray, permutation: np.ndarray, slack: float | Fraction) -> np.ndarray | None:
    """Prices of the columns at which each row has its best column, less ``slack`` at most; None if there are none.

    ``s[i, p[i]] - price[p[i]] >= s[i, j] - price[j] - slack`` for all rows and columns is complementary slackness, so
    no permutation is better by more than ``n * slack``. Found by Bellman-Ford in the arithmetic of the entries.
    """
    rows = np.arange(len(similarity))
    asked = similarity - similarity[rows, permutation][:, None] - slack
    price = np.zeros_like(asked[0])
    for _ in range(len(rows) + 1):
        raised = np.maximum(price, (asked + price[permutation][:, None]).max(0))
        if (raised == price).all():
            return price
        price = raised
    return None


def permuted(draw: st.DrawFn, matrix: np.ndarray) -> np.ndarray:
    orders = (draw(st.permutations(range(len(matrix)))) for _ in range(2))
    return matrix[np.ix_(*orders)]


@st.composite
def hostile_matrices(draw: st.DrawFn) -> np.ndarray:
    """Matrices on which assignment is hard: ties, near ties, few clusters, low rank, entries of all sizes."""
    size, seed = draw(st.integers(1, 9)), draw(st.integers(0, 2**32 - 1))
    rng, size_of = np.random.default_rng(seed), st.integers(-300, 300)
    normal = rng.standard_normal((size, size))
    kind = draw(st.sampled_from(["constant", "whole", "huge", "tiny", "rank one", "clusters", "near", "wide", "block"]))
    if kind == "constant":
        return np.full((size, size), normal[0, 0]) * 10.0 ** draw(size_of)
    if kind == "whole":
        return rng.integers(-2, 3, (size, size)) * 10.0 ** draw(st.integers(0, 15))
    if kind == "huge":
        return np.clip(normal, -3, 3) * 5e307
    if kind == "tiny":
        return rng.integers(-9, 9, (size, size)) * 5e-324
    if kind == "rank one":
        return np.outer(normal[0], normal[:, 0])
    if kind == "clusters":  # such as copies of units with a little noise
        rows, columns = rng.integers(0, 3, (2, size))
        means = rng.integers(0, 4, (3, 3)).astype(float)
        return means[np.ix_(rows, columns)] + normal * 10.0 ** -draw(st.integers(3, 17))
    if kind == "near":
        return 1 + normal * 10.0 ** -draw(st.integers(9, 17))
    if kind == "wide":
        return normal * 10.0 ** rng.integers(-150, 150, (size, 1))
    size = 2 * size + 1  # more nearly equal rows than columns that they want
    block = 1 - rng.random((size, size))
    block[: size // 2 + 1, : size // 2] += 5
    block[: size // 2 + 1, : size // 2] *= 1 - rng.random() * 1e-9
    return permuted(draw, block)


@every_backend
@settings(max_examples=150)
@given(matrix=hostile_matrices(), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_prices_prove_that_no_permutation_is_better(backend: str, matrix: np.ndarray, dtype: torch.dtype) -> None:
    similarity = torch.from_numpy(matrix).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    permutation = linear_assignment(similarity, backend).numpy()
    assert sorted(permutation) == list(range(len(matrix)))
    exact = np.vectorize(Fraction, otypes=[object])(similarity.double().numpy())
    rounding = abs(exact).max() * Fraction(8 * np.finfo(float).eps)
    assert prices(exact, permutation, rounding) is not None


@every_backend
@settings(max_examples=60)
@given(matrix=hostile_matrices(), power=st.integers(-40, 40))
def test_whole_numbers_are_solved_exactly(backend: str, matrix: np.ndarray, power: int) -> None:
    size = abs(matrix).max() or 1.0
    whole = np.round(matrix / size * 2**20)
    permutation = linear_assignment(torch.from_numpy(whole * 2.0**power), backend).numpy()
    assert prices(whole, permutation, 0.0) is not None


@every_backend
@pytest.mark.parametrize("size", [50, 300])
@pytest.mark.parametrize("kind", ["unrelated", "related", "tied", "dead"])
def test_prices_prove_the_best_of_layers(backend: str, size: int, kind: str) -> None:
    rng = np.random.default_rng(size)
    a, b = rng.standard_normal((2, size, 40))
    b = {"unrelated": b, "related": a + 0.5 * b, "tied": b, "dead": b * (rng.random(size) < 0.5)[:, None]}[kind]
    similarity = a @ b[rng.permutation(size)].T
    similarity = similarity.round() if kind == "tied" else similarity
    permutation = linear_assignment(torch.from_numpy(similarity), backend).numpy()
    assert prices(similarity, permutation, 1e-14 * abs(similarity).max()) is not None


def test_prices_refuse_what_is_not_best() -> None:
    similarity = np.array([[1.0, 3.0], [2.0, 5.0]])
    assert prices(similarity, np.array([0, 1]), 0.0) is not None
    assert prices(similarity, np.array([1, 0]), 0.0) is None
    assert prices(similarity, np.array([1, 0]), 0.4) is None  # it is worse by 1, and 2 * 0.4 is less
    assert prices(similarity, np.array([1, 0]), 0.6) is not None


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


@pytest.mark.parametrize("module", [None, ModuleType("lap")])
def test_other_packages_called_lap_are_not_used(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None) -> None:
    assignment.available_backends.cache_clear()
    monkeypatch.setitem(sys.modules, "lap", module)
    try:
        assert assignment.available_backends() == ("scipy",)
        assert linear_assignment(torch.eye(3)).tolist() == [0, 1, 2]
    finally:
        assignment.available_backends.cache_clear()


def test_an_unknown_backend_names_those_that_there_are() -> None:
    with pytest.raises(AssignmentError, match=r"'gurobi' is not available; there are .*scipy"):
        linear_assignment(torch.zeros(2, 2), "gurobi")


def test_a_backend_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "available_backends", lambda: ("scipy",))
    with pytest.raises(AssignmentError, match=r'pip install "alignkit\[fast\]"'):
        linear_assignment(torch.zeros(2, 2), "lapx")
    assert linear_assignment(torch.eye(2), "auto").tolist() == [0, 1]
