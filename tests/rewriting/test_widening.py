"""How units of every kind become more units."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.errors import WidenError
from alignkit.graph.elements.element import random_element
from alignkit.graph.kinds import KINDS, PLANES
from alignkit.rewriting.widening import unit_map

counts = st.tuples(st.integers(1, 12), st.integers(0, 20)).map(lambda n: (n[0], n[0] + n[1]))


@given(kind=st.sampled_from([kind for kind in KINDS if kind not in PLANES]), counts=counts)
def test_columns_have_length_one_and_ones_stay_ones(kind, counts) -> None:
    narrow, wider = counts
    units = unit_map(kind, narrow, wider)
    eye = torch.eye(narrow, dtype=torch.float64)
    torch.testing.assert_close(units.matrix.mT @ units.matrix, eye)
    torch.testing.assert_close(units.scaled(0.5).sum(1), torch.ones(wider, dtype=torch.float64))
    torch.testing.assert_close(units.scaled(-0.5).mT @ units.scaled(0.5), eye)
    assert float(units.copies.sum()) == pytest.approx(wider)
    if KINDS[kind].rotates:  # then what a norm divides by stays
        torch.testing.assert_close(units.scaled(0.5).mT @ units.scaled(0.5), eye * wider / narrow)
    else:
        assert set(units.scaled(0.5).flatten().round(decimals=12).tolist()) <= {0.0, 1.0}


@given(kind=st.sampled_from([kind for kind in KINDS if kind not in PLANES]), narrow=st.integers(1, 9))
def test_where_widths_divide_units_are_copied(kind, narrow) -> None:
    copied = torch.eye(narrow, dtype=torch.float64).repeat_interleave(3, 0)
    torch.testing.assert_close(unit_map(kind, narrow, 3 * narrow).scaled(0.5), copied)


@pytest.mark.parametrize("kind", sorted(PLANES))
@pytest.mark.parametrize("times", [1, 2, 3])
def test_planes_go_to_those_of_their_frequency(kind, times) -> None:
    """A phase of a plane of six units is that of the plane with the same power of the base."""
    narrow, wider = 6, 6 * times
    matrix = unit_map(kind, narrow, wider).matrix

    def turning(units: int) -> torch.Tensor:
        angles = 0.3 ** (torch.arange(units // 2, dtype=torch.float64) * 2 / units)
        turn = torch.zeros(units, units, dtype=torch.float64)
        for plane, angle in enumerate(angles):
            i, j = (plane, plane + units // 2) if kind == "planes" else (2 * plane, 2 * plane + 1)
            turn[i, i] = turn[j, j] = angle.cos()
            turn[j, i] = angle.sin()
            turn[i, j] = -turn[j, i]
        return turn

    torch.testing.assert_close(turning(wider) @ matrix, matrix @ turning(narrow))
    phases = random_element(kind, (narrow,), torch.Generator().manual_seed(0))
    torch.testing.assert_close((matrix @ phases).mT @ (matrix @ phases), torch.eye(narrow, dtype=torch.float64))


@pytest.mark.parametrize("kind", sorted(PLANES))
@pytest.mark.parametrize(("narrow", "wider"), [(4, 6), (4, 10), (2, 5)])
def test_planes_without_their_frequency_are_refused(kind, narrow, wider) -> None:
    with pytest.raises(WidenError, match=f"only a multiple of {narrow} units has those of {narrow}"):
        unit_map(kind, narrow, wider)
