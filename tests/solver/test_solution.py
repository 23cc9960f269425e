"""A solution is a value: it prints in a line, shows a table in a notebook, and is copied and pickled whole."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

from alignkit.errors import AlignkitError, WeightsError
from alignkit.graph import PinnedAxis, Provenance, SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.jobs.solve import solve
from alignkit.matching.soft_alignment import SoftAlignment
from alignkit.solver import Outcome, Status
from alignkit.solver.solution import Solution
from alignkit.testing import attention, convnet, independent_pair, mlp, planted_pair
from helpers.answering_solvers import Answers
from helpers.documents import rewritten


def chain() -> Solution:
    """A chain whose second stage keeps a soft alignment."""
    pair = planted_pair(mlp(4, 8, 7, 3), noise=0.3)
    return solve(pair.bind(), solver=["identity", "sinkhorn"], max_steps=4)


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copies_hold_everything(again: Callable[[Solution], Solution]) -> None:
    solution = chain()
    other = again(solution)
    assert other.alignment == solution.alignment
    assert (other.options, other.history, other.status) == (solution.options, solution.history, solution.status)
    assert (dict(other.gain), dict(other.moved)) == (dict(solution.gain), dict(solution.moved))
    assert [stage.solver for stage in other.stages] == ["identity", "sinkhorn"]
    assert other.soft is not None
    assert solution.soft is not None
    assert all(torch.equal(matrix, solution.soft.matrices[name]) for name, matrix in other.soft.matrices.items())
    assert other.explain() == solution.explain()


def test_it_prints_in_one_line() -> None:
    pair = planted_pair(mlp(4, 8, 7, 3))
    solution = solve(pair.bind())
    moved = sum(solution.moved.values())
    before = f"{solution.objective_before:.6g}"
    assert repr(solution) == f"Solution(weight_matching: OK, squared distance {before} -> 0, {moved} units moved)"


def test_a_notebook_shows_groups_units_and_gains() -> None:
    solution = solve(planted_pair(attention(), noise=0.1).bind())
    page = solution._repr_html_()
    assert page.startswith("<table><caption>Solution(weight_matching: OK")
    assert "-&gt;" in page  # the caption is escaped
    for group, gain in solution.gain.items():
        row = next(line for line in page.splitlines() if f">{group}<" in line or f" {group}<" in line)
        assert f">{solution.moved[group]}<" in row
        assert f">{gain:.6g}<" in row


@pytest.mark.parametrize("architecture", [mlp(4, 8, 7, 3), convnet(), attention()], ids=lambda a: a.name)
def test_gains_of_all_groups_add_up_to_the_whole(architecture):
    pair = planted_pair(architecture, noise=0.2)
    solution = solve(pair.bind(), init=Alignment.random(pair.graph, 5), solver="weight_matching")
    assert sum(solution.gain.values()) == pytest.approx(solution.objective_before - solution.objective_after)
    assert set(solution.gain) == set(solution.moved) == set(pair.graph.groups)


def test_the_explanation_counts_units_and_names_what_is_fixed(pair):
    text = solve(pair.bind()).explain()
    solution = solve(pair.bind())
    assert f"{solution.moved['h1']} of 8" in text
    assert f"{solution.moved['h2']} of 7" in text
    assert f"squared distance {solution.objective_before:.6g} -> 0 " in text
    assert "4.bias: the spec fixes all its axes" in text
    assert "Nothing moved" not in text


def test_units_of_families_are_counted_over_all_parents():
    pair = planted_pair(attention(heads=3, head_dim=4))
    solution = solve(pair.bind())
    assert solution.moved["qk"] > 4
    assert f"{solution.moved['qk']:>6} of 12" in solution.explain()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: independent_pair(mlp(3, 2)), "the graph has no groups"),
        (lambda: planted_pair(mlp(3, 1, 2), noise=0.1), "every group has one unit only"),
        (lambda: planted_pair(mlp(3, 5, 2)), "the identity leaves every unit at its place"),
    ],
    ids=["no groups", "single units", "identity"],
)
def test_nothing_moved_is_a_sentence(make, said):
    solution = solve(make().bind(), solver="identity")
    assert f"Nothing moved: {said}" in solution.explain()


def test_nothing_moved_where_no_order_is_better():
    pair = planted_pair(mlp(3, 5, 2), noise=0.01)
    aligned = pair.answer.apply(pair.b)
    assert "the solver found no order of B's units better" in solve(pair.graph, pair.a, aligned).explain()


def test_nothing_moved_between_equal_models(pair):
    assert "Nothing moved: B equals A." in solve(pair.graph, pair.a, pair.a).explain()


def test_tensors_that_a_trace_pinned_carry_the_operation():
    architecture = mlp(3, 4, 2)
    spec = {**architecture.spec, "0.weight": ". .", "0.bias": ".", "2.weight": "out ."}
    provenance = Provenance(
        "traced", "fake", pinned=(PinnedAxis("0.weight", 0, "aten.index", "layers.0"),), unused=("0.bias",)
    )
    graph = SymmetryGraph.from_spec(spec | {"2.bias": "."}, like=architecture.model, provenance=provenance)
    uncovered = solve(graph, architecture.model, architecture.model, solver="identity").uncovered
    assert uncovered["0.weight"] == "pinned on axis 0 by aten.index in layers.0"
    assert uncovered["0.bias"] == "the traced run never used it"
    assert "inputs or outputs" in uncovered["2.bias"]


def test_inverse_takes_a_to_b(pair):
    x = pair.architecture.inputs()
    a_as_b = solve(pair.bind()).inverse().apply(pair.a.state_dict())
    for name, tensor in pair.b.state_dict().items():
        assert torch.equal(a_as_b[name], tensor)
    torch.testing.assert_close(solve(pair.bind()).inverse().apply(pair.a)(x), pair.b(x))


def test_a_solution_prints_short(pair):
    assert len(repr(solve(pair.bind()))) < 120


def test_everything_survives_a_file(pair, registry, tmp_path):
    solution = solve(pair.bind(), solver="swaps > weight_matching", swaps=2, registry=registry)
    solution.save(tmp_path / "found.safetensors")
    read = Solution.load(tmp_path / "found.safetensors", pair.graph)
    for mine, theirs in zip((solution, *solution.stages), (read, *read.stages), strict=True):
        assert mine.alignment == theirs.alignment
        assert mine.explain() == theirs.explain()
        for name in ("options", "history", "stats", "seconds", "gain", "moved", "status", "objective_init"):
            assert getattr(mine, name) == getattr(theirs, name), name


@pytest.mark.parametrize("architecture", [mlp(3, 4, 2), mlp(3, 2), attention()], ids=lambda a: a.name)
def test_soft_alignments_are_kept(architecture, tmp_path):
    def answer(problem):
        soft = SoftAlignment.from_alignment(problem.start)
        matrices = {name: matrix.requires_grad_() for name, matrix in soft.matrices.items()}
        return Outcome(problem.start, soft=SoftAlignment(problem.graph, matrices))

    pair = planted_pair(architecture)
    solution = solve(pair.bind(), solver=Answers(answer), init=Alignment.random(pair.graph, 2))
    solution.save(tmp_path / "soft.safetensors")
    read = Solution.load(tmp_path / "soft.safetensors", pair.graph)
    assert read.soft.round() == solution.alignment
    assert all(torch.equal(matrix, read.soft.matrices[name]) for name, matrix in solution.soft.matrices.items())


def test_a_failed_solution_can_be_kept_too(pair, registry, tmp_path):
    solve(pair.bind(), solver="fails", throw=False, registry=registry).save(tmp_path / "failed.safetensors")
    read = Solution.load(tmp_path / "failed.safetensors", pair.graph)
    assert read.status is Status.FAILED
    assert "singular" in read.detail


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda header, tensors: header.update(format="other"), "is not a solution, it is 'other'"),
        (
            lambda header, tensors: header.update(version=99),
            "has version 99 of alignkit.solution",
        ),
        (lambda header, tensors: header.update(graph="00"), "belongs to another graph"),
        (lambda header, tensors: header["solution"].pop("history"), "is damaged: solution.history: Field required"),
        (lambda header, tensors: header["solution"].update(status="GREAT"), "is damaged"),
        (lambda header, tensors: tensors.pop("elements/h1"), "group 'h1' has no indices"),
        (lambda header, tensors: tensors["elements/h1"].zero_(), "not a permutation"),
    ],
    ids=["format", "version", "graph", "missing fact", "unknown status", "missing group", "not a permutation"],
)
def test_a_damaged_file_says_what_is_wrong(pair, tmp_path, change, said):
    path = tmp_path / "found.safetensors"
    solve(pair.bind()).save(path)
    with pytest.raises(AlignkitError) as caught:
        Solution.load(rewritten(path, change), pair.graph)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not a file of tensors"], ids=["missing", "empty", "text"])
def test_something_else_than_a_solution_is_refused(pair, tmp_path, content):
    path = tmp_path / "odd.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as a solution"):
        Solution.load(path, pair.graph)


def test_an_alignment_file_is_no_solution_file(pair, tmp_path):
    Alignment.identity(pair.graph).save(tmp_path / "alignment.safetensors")
    with pytest.raises(WeightsError, match=r"is not a solution, it is 'alignkit[.]alignment'"):
        Solution.load(tmp_path / "alignment.safetensors", pair.graph)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(pair, tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        solve(pair.bind()).save(tmp_path / "no" / "found.safetensors")
    assert not list(tmp_path.iterdir())
