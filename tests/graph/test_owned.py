"""Alignments and pairs are what they were made of: nothing that is written later changes them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit import Alignment, SymmetryGraph
from alignkit.errors import AlignmentError
from alignkit.graph import Pair
from alignkit.graph.owned import Owned, ReadOnly
from helpers.graph_strategies import distinct_weights, graphs

quick = settings(max_examples=40, suppress_health_check=list(HealthCheck))
GRAPH = SymmetryGraph.from_spec({"w": "h .", "v": ". h"}, {"w": (4, 2), "v": (3, 4)})
FORMS = {
    "tensors": lambda indices: indices,
    "tensors of 16 bits": lambda indices: {n: index.to(torch.int16) for n, index in indices.items()},
    "arrays": lambda indices: {n: index.numpy() for n, index in indices.items()},
    "views of arrays": lambda indices: {n: torch.from_numpy(index.numpy()) for n, index in indices.items()},
    "views": lambda indices: {n: torch.stack([index, index], -1)[..., 0] for n, index in indices.items()},
}


def overwrite(value):
    """Write to a tensor, an array or a mapping by every way that there is."""
    if isinstance(value, np.ndarray):
        value[...] = 0
    elif isinstance(value, torch.Tensor):
        value.zero_()
        value.data.fill_(0)
        value.numpy()[...] = 0


class TestAlignment:
    @quick
    @given(graphs(), st.integers(0, 2**31), st.sampled_from(sorted(FORMS)))
    def test_nothing_that_is_written_later_changes_it(self, graph, seed, form):
        plain = Alignment.random(graph, seed)
        given_indices = FORMS[form](dict(plain.elements))
        alignment, weights = Alignment(graph, given_indices), distinct_weights(graph)
        expected, before = plain.apply(weights), hash(alignment)
        for index in given_indices.values():
            overwrite(index)
        given_indices.clear()
        for mapping in (alignment.elements, {n: alignment.flat(n) for n in graph.groups}, alignment.as_matrices()):
            for index in mapping.values():
                overwrite(index)
        assert alignment == plain and hash(alignment) == before
        assert all(torch.equal(moved, expected[name]) for name, moved in alignment.apply(weights).items())

    @pytest.mark.parametrize("name", ["elements", "graph"])
    def test_its_parts_cannot_be_exchanged(self, name):
        alignment = Alignment.identity(GRAPH)
        with pytest.raises(AttributeError):
            setattr(alignment, name, {})
        with pytest.raises(TypeError, match="item assignment"):
            alignment.elements["h"] = torch.zeros(4, dtype=torch.int64)

    def test_what_it_moves_shares_no_memory_with_the_input(self):
        weights = {"w": torch.randn(4, 2), "v": torch.randn(3, 4)}
        moved, kept = Alignment.identity(GRAPH).apply(weights), {n: t.clone() for n, t in weights.items()}
        for tensor in moved.values():
            tensor.zero_()
        assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())

    @pytest.mark.parametrize(
        "indices",
        [
            None,
            "0123",
            {0, 1, 2, 3},
            [0, 1, 2, 10**30],
            [0, 1, 2, 2**64 - 1],
            torch.tensor([0j, 1, 2, 3]),
            torch.tensor([True, False, True, False]),
            torch.tensor([0.0, 1, 2, 3]),
            torch.arange(4, device="meta"),
            torch.arange(4).to_sparse(),
            np.array(["a", "b", "c", "d"]),
            np.array([0, 1, 2, 3], dtype="datetime64[s]"),
        ],
        ids=repr,
    )
    def test_what_is_not_whole_numbers_is_refused_by_group(self, indices):
        with pytest.raises(AlignmentError, match="group 'h'"):
            Alignment(GRAPH, {"h": indices})


@pytest.mark.parametrize("name", ["tensors", "groups", "provenance"])
def test_the_parts_of_a_graph_cannot_be_exchanged(name):
    with pytest.raises(AttributeError):
        setattr(GRAPH, name, {})
    with pytest.raises(AttributeError):
        getattr(GRAPH, name).clear()


class TestPair:
    def pair(self) -> tuple[Pair, dict, dict]:
        a, b = ({"w": torch.randn(4, 2), "v": torch.randn(3, 4)} for _ in range(2))
        return GRAPH.bind(a, b), a, b

    def test_what_is_bound_stays_bound(self):
        pair, a, b = self.pair()
        kept = dict(b)
        a.clear()
        b["w"] = torch.zeros(4, 2)
        assert list(pair.a) == ["w", "v"] and pair.b["w"] is not b["w"]
        assert all(torch.equal(pair.b[name], tensor) for name, tensor in kept.items())

    @pytest.mark.parametrize("made", [lambda pair: pair, lambda pair: pair.swapped(), copy.deepcopy])
    def test_its_mappings_cannot_be_written_to(self, made):
        pair = made(self.pair()[0])
        for side in (pair.a, pair.b):
            with pytest.raises(AttributeError):
                side.clear()
            with pytest.raises(TypeError, match="item"):
                side["w"] = torch.zeros(4, 2)
            with pytest.raises(TypeError, match="item"):
                del side["w"]

    def test_large_tensors_are_not_copied(self):
        a, b = ({"w": torch.randn(4, 2), "v": torch.randn(3, 4)} for _ in range(2))
        assert GRAPH.bind(a, b).a["w"].data_ptr() == a["w"].data_ptr()


@pytest.mark.parametrize("kind", [ReadOnly, Owned])
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_mapping_is_equal_to_its_copies_and_to_a_plain_one(kind, way):
    plain = {"a": 1.0, "b": {"c": [2]}}
    assert way(kind(plain)) == plain == kind(plain) and repr(kind(plain)) == repr(plain)


def test_nested_values_are_copied_too():
    plain = {"b": {"c": [2]}}
    owned = Owned(plain)
    plain["b"]["c"].append(3)
    owned["b"]["c"].append(4)
    assert owned == {"b": {"c": [2]}}
