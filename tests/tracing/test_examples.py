"""The examples in the docstrings of the tracer are true: labels, constraints, closure and orbits of a few units."""

from __future__ import annotations

import numpy as np

from alignkit.tracing.labels import combine
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.parameters import ParameterUse, first_labels
from alignkit.tracing.labels.reshape import match_dims, reshape
from alignkit.tracing.labels.tensor_labels import IntArray, LabelBlock, Labels
from alignkit.tracing.reading.axes import read_axes, write_axis
from alignkit.tracing.solving.closure import close
from alignkit.tracing.solving.orbits import solve


def plain(c: Constraints, *shape: int) -> Labels:
    """Labels in which every dimension moves by itself."""
    return Labels.of(shape, (), [LabelBlock((d,), (), c.new_atoms([n])) for d, n in enumerate(shape) if n > 1])


def test_two_linear_layers_share_their_hidden_units() -> None:
    c = Constraints()
    fc1, bias, fc2 = plain(c, 3, 5), plain(c, 3, 1), plain(c, 2, 3)
    hidden = combine.unify(c, (3, 1), [combine.matmul(c, fc1, Labels.of((5, 1))), bias])
    (rows,) = combine.matmul(c, fc2, hidden).blocks
    assert rows.atoms.tolist() == [11, 12]
    c.fix_labels(Labels.of((2, 1), (), [rows]))
    closed = close(c)
    for others in ([8, 9, 10], [13, 14, 15]):
        assert closed.classes[others].tolist() == closed.classes[[0, 1, 2]].tolist()
    symmetry = solve(closed, np.zeros(closed.count, np.uint64))
    (group,) = symmetry.orbits.values()
    assert group.members.tolist() == closed.classes[[0, 1, 2]].tolist()
    assert group.size == 3


def test_a_view_of_units_in_heads_factors_into_heads_and_units() -> None:
    c = Constraints()
    heads, units = combine.factor(c, LabelBlock((0, 1), (), c.new_atoms([2, 2])), {0})
    assert heads.atoms.tolist() == [4, 5]
    assert (units.dims, units.context, units.atoms.tolist()) == ((1,), (0,), [[0, 1], [2, 3]])


def test_a_flattened_map_is_split_where_it_was_joined() -> None:
    c = Constraints()
    channels = Labels.of((3, 2), (), [LabelBlock((0,), (), c.new_atoms([3]))])
    columns = reshape(c, channels, (6,))
    assert columns.blocks[0].atoms.ravel().tolist() == [3, 4, 5, 6, 7, 8]
    assert reshape(c, columns, (3, 2)).same_as(channels)
    assert match_dims((3, 2, 5), (6, 1, 5)) == [((0, 1), (0,)), ((2,), (2,))]


def test_first_labels_of_experts_and_of_grouped_filters() -> None:
    c = Constraints()
    experts = first_labels(c, (4, 3, 5), ParameterUse(), [1, 2])
    assert [block.atoms.shape for block in experts.blocks] == [(4,), (4, 3), (4, 5)]
    filters = first_labels(c, (6, 2, 3, 3), ParameterUse(groups=2), [1])
    inputs = filters.owner[1].atoms
    assert inputs.shape == (6, 2)
    assert len(np.unique(inputs)) == 4
    assert np.array_equal(inputs[0], inputs[2])


def queries_and_keys(c: Constraints, query_heads: IntArray) -> tuple[IntArray, IntArray]:
    """Relate four query units to heads, four key units to two heads, and merge both; return heads of both."""
    units, key_units, key_heads = c.new_atoms([4]), c.new_atoms([2, 2]), c.new_atoms([2])
    query_heads = query_heads + c.count
    c.count = int(query_heads.max()) + 1
    c.relate(units.reshape(len(query_heads), -1), query_heads[:, None])
    c.relate(key_units, key_heads[:, None])
    c.merge(units, key_units.ravel())
    return query_heads, key_heads


def test_heads_of_merged_units_merge() -> None:
    c = Constraints()
    query_heads, key_heads = queries_and_keys(c, np.arange(2))
    closed = close(c)
    assert closed.classes[query_heads].tolist() == closed.classes[key_heads].tolist()


def test_query_heads_belong_to_their_key_head() -> None:
    c = Constraints()
    query_heads, key_heads = queries_and_keys(c, np.arange(4))
    closed = close(c)
    children, targets = closed.classes[query_heads].tolist(), closed.classes[np.repeat(key_heads, 2)].tolist()
    implied = [dict(zip(a.tolist(), b.tolist(), strict=True)) for a, b in closed.maps]
    assert dict(zip(children, targets, strict=True)) in implied


def test_orbits_and_notation_of_two_heads() -> None:
    c = Constraints()
    heads, units, columns = c.new_atoms([2]), c.new_atoms([2, 2]), c.new_atoms([2, 2])
    for atoms in (heads, units, columns):
        c.colour(atoms)
    c.relate(units, heads[:, None])
    c.relate(columns, heads[:, None])
    c.fix_axis(columns, 1)
    closed = close(c)
    symmetry = solve(closed, np.zeros(closed.count, np.uint64))
    by_first = {int(closed.first[orbit.members[0]]): (key, orbit) for key, orbit in symmetry.orbits.items()}
    key, head = by_first[0]
    family_key, family = by_first[2]
    assert (head.group, head.size, head.parent) == (True, 2, None)
    assert (family.group, family.size, family.parent, family.place.tolist()) == (True, 2, key, [0, 1, 0, 1])
    assert [orbit.group for first, (_, orbit) in by_first.items() if first > 5] == [False, False]
    axis = LabelBlock((0,), (), np.concatenate([units, columns], axis=1).ravel())
    (read,) = read_axes(Labels.of((8,), (), [axis]), closed.classes, symmetry)
    names = {key: "heads", family_key: "units[heads]"}
    assert write_axis(read, names) == "(heads (units[heads]+2))"
