"""Products under matrices: those of one einsum over whole blocks, in memory and in pieces from disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit import SymmetryGraph
from alignkit.graph import Use
from alignkit.graph.parts import TensorsInMemory
from alignkit.matching.products import Product
from alignkit.matching.soft_alignment import matrix_shape
from helpers.graph_strategies import graphs
from helpers.stored_networks import InPieces, saved


def plain_product(use: Use, a: Tensor, b: Tensor, matrices: dict[str, Tensor]) -> np.ndarray:
    """``sum_rs A[p, i, r] share[r, s] B[q, j, s]`` with a letter for each place and each source."""
    dims, count = use.block.dims, len(use.block.dims)
    moves = [dim.group is not None for dim in dims]
    place = [k + count if moved else k for k, moved in enumerate(moves)]
    operands: list[object] = [use.block.view(a).numpy(), place, use.block.view(b).numpy(), list(range(count))]
    for k, dim in enumerate(dims):
        if dim.group is not None and k not in use.chain:
            sizes = [dims[i].size for i in dim.ancestors]
            matrix = matrices[dim.group].reshape(*sizes, *sizes, dim.size, dim.size).numpy()
            operands += [matrix, [*(place[i] for i in dim.ancestors), *dim.ancestors, place[k], k]]
    product = np.einsum(*operands, [*(place[k] for k in use.chain), *use.chain], optimize=True)
    return product.reshape(use.unit_count, use.unit_count)


@settings(max_examples=40)
@given(graph=graphs(), seed=st.integers(0, 1000), piece=st.sampled_from([1, 64, 1 << 20]))
def test_parts_add_up_to_the_plain_sum(graph: SymmetryGraph, seed: int, piece: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    a, b = ({name: drawn(node.shape) for name, node in graph.tensors.items()} for _ in range(2))
    matrices = {name: drawn(matrix_shape(graph, name)) for name in graph.groups}
    with tempfile.TemporaryDirectory() as folder:
        stored = [InPieces(graph, side, piece) for side in saved(Path(folder), a=a, b=b)]
        in_memory = [TensorsInMemory(side, torch.device("cpu"), piece) for side in (a, b)]
        for sides in (in_memory, stored):
            for use in (use for uses in graph.uses.values() for use in uses):
                total = torch.zeros(1, use.unit_count, use.unit_count, dtype=torch.float64)
                product = Product(use, matrices, within_parents=False)
                found = product.add_to(total, tuple(sides), lambda part, _: part.double(), 2.0)[0]
                expected = 2 * plain_product(use, a[use.tensor], b[use.tensor], matrices)
                np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
