"""`alignkit canonicalize`."""

from __future__ import annotations

import json

from alignkit import read_weights, write_weights
from helpers.command_line import run
from helpers.weight_files import GIVEN, equal, solved, weights


def test_canonicalize_brings_every_network_to_the_reference(folder):
    said = run("canonicalize", "a.safetensors", "b.safetensors", "same.safetensors", "-o", "canonical", *GIVEN)
    assert "Aligned in batches." in said
    assert equal(read_weights("canonical/same.safetensors"), read_weights("a.safetensors"))
    assert equal(read_weights("canonical/b.safetensors"), solved(folder).apply(read_weights("b.safetensors")))
    facts = json.loads(run("canonicalize", "a.safetensors", "c.safetensors", "-o", "canonical", *GIVEN, "--json"))
    assert facts["networks"][0]["after"] < facts["networks"][0]["before"]


def test_canonicalize_replaces_nothing_and_mixes_up_nothing(folder):
    (folder / "other").mkdir()
    write_weights(folder / "other" / "b.safetensors", weights(3))
    said = run("canonicalize", "a.safetensors", "b.safetensors", "other/b.safetensors", "-o", "out", *GIVEN, code=2)
    assert "several networks are called b.safetensors" in said
    assert not (folder / "out").exists()
    kept = (folder / "b.safetensors").read_bytes()
    assert "--force" in run("canonicalize", "a.safetensors", "b.safetensors", "-o", ".", *GIVEN, code=2)
    assert (folder / "b.safetensors").read_bytes() == kept
    run("canonicalize", "a.safetensors", "b.safetensors", "-o", ".", *GIVEN, "--force")
    assert (folder / "b.safetensors").read_bytes() != kept
