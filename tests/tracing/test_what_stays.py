"""Positions that cannot move are followed no further: they are no units, and those of pictures are many."""

from __future__ import annotations

import pytest
import torch

from alignkit.tracing.labels.combine import unify
from alignkit.tracing.labels.constraints import Constraints
from alignkit.tracing.labels.tensor_labels import LabelBlock, Labels
from alignkit.tracing.reading import traced_layouts
from alignkit.tracing.solving.closure import Closed, close

SHAPE = (2, 3, 4)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("dims", "context", "fixed", "stays"),
    [
        ((1,), (), (1,), True),
        ((1,), (), (2,), False),
        ((1, 2), (), (1, 2), True),
        ((1, 2), (), (2,), False),
        ((2,), (1,), (2,), False),  # the rows may still be exchanged, with what stands in them
        ((2,), (1,), (1, 2), True),
        ((0,), (1, 2), (0, 2), False),
        ((0,), (1, 2), (0, 1, 2), True),
    ],
)
def test_a_block_ends_where_all_of_its_positions_stay(
    dims: tuple[int, ...], context: tuple[int, ...], fixed: tuple[int, ...], stays: bool, order: int
) -> None:
    constraints = Constraints()
    span = sorted(dims + context)
    block = LabelBlock(dims, context, constraints.new_atoms([SHAPE[d] for d in span]))
    labelled = Labels.of(SHAPE, [d not in dims for d in range(3)], [block])
    staying = Labels.of([n if d in fixed else 1 for d, n in enumerate(SHAPE)])
    result = unify(constraints, SHAPE, [labelled, staying][::order])
    assert (result.owner.keys().isdisjoint(dims)) == stays
    assert all(result.is_fixed(d) for d in fixed if d not in result.owner)
    kept = {int(atom) for colour in constraints.colours if colour.keys is not None for atom in colour.atoms}
    assert kept == {int(atom) for atom in block.atoms.ravel()} or not set(dims) & set(fixed)


@pytest.mark.slow
@pytest.mark.models("timm")
def test_windows_of_pictures_need_no_atom_for_each_unit_at_each_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    import alignkit

    atoms: list[int] = []

    def count_atoms(constraints: Constraints) -> Closed:
        atoms.append(constraints.count)
        return close(constraints) if constraints.count < 10**6 else pytest.fail(f"{constraints.count} atoms")

    monkeypatch.setattr(traced_layouts, "close", count_atoms)
    torch.manual_seed(0)
    graph = alignkit.trace(timm.create_model("halonet_h1").eval(), torch.randn(1, 3, 256, 256))
    assert atoms
    assert graph.groups
    assert graph.provenance.unknown_ops == ()
