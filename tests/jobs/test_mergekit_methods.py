"""Merges with the functions of mergekit and without them: the same networks, and a record that says whose they were."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import alignkit
from alignkit.cli import app
from alignkit.jobs.mergekit_methods import Mergekit, find_mergekit
from helpers.small_pairs import pair_of

METHODS = ("slerp", "task_arithmetic", "ties", "dare")

STAND_IN = '''
"""What the documentation of mergekit says that its methods do, for one tensor."""
import torch

CALLS = []

def merge_tensors(tensors, method, *, parameters, base_index):
    CALLS.append(method)
    base, *tuned = tensors
    if method == "slerp":
        (other,), t = tuned, parameters["t"]
        cosine = torch.nn.functional.cosine_similarity(base.flatten(), other.flatten(), 0)
        if cosine.abs() > 0.9995:
            return (1 - t) * base + t * other
        angle = cosine.acos()
        return (((1 - t) * angle).sin() * base + (t * angle).sin() * other) / angle.sin()
    weights, density = parameters["weight"], parameters.get("density", 1.0)
    vectors = [each - base for each in tuned]
    if method == "ties":
        kept = max(1, int(density * base.numel()))
        for vector in vectors:
            if density < 1:
                vector.view(-1)[vector.view(-1).abs().float().argsort(descending=True)[kept:]] = 0
    if method == "dare_linear" and density < 1:
        vectors = [vector * torch.bernoulli(torch.full(base.shape, density)) for vector in vectors]
    terms = torch.stack([weight * vector for weight, vector in zip(weights, vectors)])
    total = terms.sum(0)
    if method == "ties":
        agrees = terms.sign() == torch.where(total >= 0, 1, -1)
        divisor = sum(weight * agreed.double() for weight, agreed in zip(weights, agrees))
        total = (terms * agrees).sum(0) / torch.where(divisor == 0, 1.0, divisor)
    return base + parameters.get("lambda", 1.0) * total
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a package called mergekit before all others, with the text of its functions."""

    def put(text: str, version: str = "9.8.7") -> None:
        (tmp_path / "mergekit").mkdir()
        (tmp_path / "mergekit/__init__.py").touch()
        (tmp_path / "mergekit/merge_methods.py").write_text(text)
        (tmp_path / f"mergekit-{version}.dist-info").mkdir()
        described = f"Metadata-Version: 2.1\nName: mergekit\nVersion: {version}\n"
        (tmp_path / f"mergekit-{version}.dist-info/METADATA").write_text(described)
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.partition(".")[0] == "mergekit"]:
            monkeypatch.delitem(sys.modules, name)
        find_mergekit.cache_clear()

    yield put
    for name in [name for name in sys.modules if name.partition(".")[0] == "mergekit"]:
        del sys.modules[name]
    find_mergekit.cache_clear()


entries = st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e30]))


@st.composite
def merges(draw: st.DrawFn) -> tuple[list[torch.Tensor], dict[str, object]]:
    """Draw tensors, and how they are merged."""
    method = draw(st.sampled_from(METHODS))
    count = 2 if method == "slerp" else draw(st.integers(2, 4))
    shape = draw(st.sampled_from([(), (1,), (5,), (3, 4)]))
    size = int(torch.Size(shape).numel())
    tensors = [
        torch.tensor(draw(st.lists(entries, min_size=size, max_size=size)), dtype=torch.float64).reshape(shape)
        for _ in range(count)
    ]
    share = st.floats(0.01, 2) if method == "slerp" else st.floats(-2, 2).map(lambda weight: round(weight, 9))
    weights = draw(st.lists(share, min_size=count, max_size=count)) if method == "slerp" else None
    if method != "slerp":
        weights = draw(st.lists(share, min_size=count - 1, max_size=count - 1))
    return tensors, {"weights": weights, "method": method, "density": draw(st.floats(0.01, 1)), "seed": 3}


def both_ways(tensors, how):
    """Merge without mergekit, and with the one that is installed."""
    assert isinstance(find_mergekit(), Mergekit)
    theirs = alignkit.average([{"w": tensor} for tensor in tensors], **how)["w"]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("task_vectors", "average"):
            patch.setattr(f"alignkit.jobs.{module}.find_mergekit", lambda: None)
        ours = alignkit.average([{"w": tensor} for tensor in tensors], **how)["w"]
    return ours, theirs


def check_the_same(tensors, how, tolerance):
    drawn = torch.get_rng_state()
    ours, theirs = both_ways(tensors, how)
    largest = max(float(tensor.abs().max()) for tensor in tensors) / how["density"]
    assert float((ours - theirs).abs().max()) <= tolerance * largest
    assert torch.equal(torch.get_rng_state(), drawn)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(merges())
@example(([torch.zeros(2), torch.ones(2), -torch.ones(2)], {"weights": [1.0, 1.0], "method": "ties", "density": 1.0}))
@example(([torch.zeros(2), torch.ones(2), torch.zeros(2)], {"weights": [2e-311, 1.0], "method": "ties", "density": 1}))
def test_a_merge_does_not_depend_on_whether_mergekit_is_installed(install, case):
    if find_mergekit() is None or find_mergekit().version != "9.8.7":
        install(STAND_IN)
    check_the_same(*case, tolerance=1e-12)


@pytest.mark.models("mergekit")
@settings(max_examples=60)
@given(merges())
@example(([torch.zeros(2), torch.ones(2), -torch.ones(2)], {"weights": [1.0, 1.0], "method": "ties", "density": 1.0}))
def test_the_mergekit_that_is_installed_means_the_same(case):
    check_the_same(*case, tolerance=1e-6)  # its DARE rounds task vectors to float32


@pytest.mark.parametrize("method", METHODS)
def test_the_functions_of_an_installed_mergekit_are_called_and_named(install, method, tmp_path):
    install(STAND_IN)
    pair = pair_of("two layers")
    merged = alignkit.merge(pair, method=method)
    assert merged.arithmetic == merged.facts()["arithmetic"] == "mergekit 9.8.7"
    assert "Arithmetic of the merge: mergekit 9.8.7." in merged.explain()
    assert set(sys.modules["mergekit.merge_methods"].CALLS) == {"dare_linear" if method == "dare" else method}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import a_library_that_it_needs", "ModuleNotFoundError: No module named 'a_library_that_it_needs'"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "RuntimeError: operator torchvision::nms"),
        ("def another_function(): ...", "ImportError: cannot import name 'merge_tensors'"),
    ],
)
def test_a_mergekit_that_cannot_be_used_is_told_and_alignkit_does_the_arithmetic(install, text, reason):
    install(text)
    merged = alignkit.merge(pair_of("two layers"), method="ties")
    assert merged.arithmetic.startswith("alignkit, because the mergekit that is installed cannot be used")
    assert reason in merged.arithmetic


def test_the_record_of_a_merge_says_whose_arithmetic_it_was(install, tmp_path):
    install(STAND_IN)
    pair = pair_of("two layers")
    for name, side in (("a", pair.a), ("b", pair.b)):
        alignkit.checkpoints.write_weights(tmp_path / f"{name}.safetensors", dict(side))
    (tmp_path / "spec.json").write_text(json.dumps(pair.graph.spec()))
    models = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    for method, expected in (("ties", "mergekit 9.8.7"), ("linear", None)):
        output = tmp_path / f"{method}.safetensors"
        arguments = ["merge", *models, "-o", str(output), "--spec", str(tmp_path / "spec.json"), "--method", method]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        assert alignkit.jobs.read_record(output).results.get("arithmetic") == expected


def test_without_mergekit_the_arithmetic_is_that_of_alignkit(monkeypatch):
    monkeypatch.setattr("alignkit.jobs.mergekit_methods.find_mergekit", lambda: None)
    assert alignkit.merge(pair_of("two layers"), method="dare").arithmetic == "alignkit"
