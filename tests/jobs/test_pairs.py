"""One rule for all jobs: ``(pair)`` or ``(graph, a, b)`` in, a result that explains itself out."""

from __future__ import annotations

import json

import pytest

import alignkit
from alignkit.errors import ArgumentError, BindError
from alignkit.testing.problems import mlp, planted_pair

PAIR = planted_pair(mlp(5, 8, 6, 3), seed=3, noise=0.05)
JOBS = {
    "solve": (alignkit.solve, {}),
    "compare": (alignkit.compare, {"solvers": ["weight_matching"]}),
    "distance": (alignkit.distance, {}),
    "align_many": (alignkit.align_many, {}),
    "merge": (alignkit.merge, {}),
    "transport": (alignkit.transport, {"tuned": PAIR.a}),
}


def timeless(facts):
    """Return facts without what depends on the machine."""
    if isinstance(facts, dict):
        machine = ("seconds", "peak_memory", "measured", "networks_per_second")
        return {key: timeless(value) for key, value in facts.items() if key not in machine}
    return [timeless(value) for value in facts] if isinstance(facts, list) else facts


@pytest.mark.parametrize("name", JOBS)
def test_a_pair_and_a_graph_with_two_networks_are_the_same(name):
    job, arguments = JOBS[name]
    bound, beside = job(PAIR.bind(), **arguments), job(PAIR.graph, PAIR.a, PAIR.b, **arguments)
    assert timeless(bound.facts()) == timeless(beside.facts())


@pytest.mark.parametrize("name", JOBS)
def test_a_job_says_how_it_is_called(name):
    job, arguments = JOBS[name]
    with pytest.raises(BindError, match=f"call {name}"):
        job(PAIR.graph, **arguments)
    with pytest.raises(BindError, match="bound to its networks already"):
        job(PAIR.bind(), PAIR.a, PAIR.b, **arguments)
    with pytest.raises(ArgumentError, match=r"pair= has to be a Pair or a SymmetryGraph.* alignkit\.trace"):
        job(PAIR.a, PAIR.a, PAIR.b, **arguments)


@pytest.mark.parametrize("name", [*JOBS, "canonicalize", "check", "check_same"])
def test_a_result_explains_itself(name):
    inputs = PAIR.architecture.inputs(2)
    others = {
        "canonicalize": lambda: alignkit.canonicalize(PAIR.graph, [PAIR.b], PAIR.a),
        "check": lambda: alignkit.check(PAIR.a, inputs, graph=PAIR.graph),
        "check_same": lambda: alignkit.jobs.check_same(PAIR.graph, PAIR.a, PAIR.b, inputs),
    }
    result = JOBS[name][0](PAIR.bind(), **JOBS[name][1]) if name in JOBS else others[name]()
    assert result.explain()
    assert json.loads(json.dumps(result.facts(), allow_nan=False))
    assert result.report("What came out").title == "What came out"
    assert len(repr(result)) < 250
    assert "\n" not in repr(result)
