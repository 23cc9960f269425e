"""`alignkit transport`."""

from __future__ import annotations

import json

from alignkit import SymmetryGraph, read_weights
from alignkit.jobs.transport import transport
from helpers.command_line import run
from helpers.weight_files import GIVEN, SPEC, equal


def test_transport_moves_the_task_vector(folder):
    names = ["a.safetensors", "tuned.safetensors", "b.safetensors"]
    said = run("transport", *names, "-o", "t.safetensors", *GIVEN, "--save-alignment", "p.safetensors")
    assert "Task vector of length" in said
    a, tuned, b = map(read_weights, names)
    graph = SymmetryGraph.from_spec(SPEC, like=a)
    expected = transport(graph, a, b, tuned=tuned).network
    assert equal(read_weights("t.safetensors"), expected)
    run("transport", *names, "-o", "again.safetensors", *GIVEN, "--alignment", "p.safetensors")
    assert equal(read_weights("again.safetensors"), expected)
    facts = json.loads(run("transport", *names, "-o", "half.safetensors", *GIVEN, "--scale", "-0.5", "--json"))
    assert facts["scale"] == -0.5
    assert equal(read_weights("half.safetensors"), transport(graph, a, b, tuned=tuned, scale=-0.5).network)
    run("transport", *names, "-o", "x.pt", *GIVEN, "--alignment", "p.safetensors", "--option", "restarts=2", code=2)
