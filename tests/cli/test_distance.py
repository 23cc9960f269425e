"""`alignkit distance`."""

from __future__ import annotations

import json

import pytest

from alignkit import Alignment, SymmetryGraph, read_weights
from helpers.command_line import run
from helpers.weight_files import GIVEN, SPEC, equal, solved


def test_distance_says_whether_networks_are_the_same_and_saves_the_proof(folder):
    said = run("distance", "a.safetensors", "same.safetensors", *GIVEN, "--save-alignment", "p.safetensors", "--same")
    assert "the same up to permutation" in said
    a, b = read_weights("a.safetensors"), read_weights("same.safetensors")
    proof = Alignment.load("p.safetensors", SymmetryGraph.from_spec(SPEC, like=a))
    assert equal(proof.apply(b), a)


def test_distance_of_different_networks(folder):
    facts = json.loads(run("distance", "a.safetensors", "b.safetensors", *GIVEN, "--json"))
    assert not facts["same"]
    assert facts["squared_distance_after"] == pytest.approx(solved(folder).objective_after)
    assert set(facts["tensors"]) == set(SPEC)
    said = run("distance", "a.safetensors", "b.safetensors", *GIVEN, "--same", code=1)
    assert "not the same" in said
    run("distance", "a.safetensors", "b.safetensors", *GIVEN, "--same", "--tolerance", 0.5)
