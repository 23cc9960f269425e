"""Checkpoints on disk are matched, aligned and averaged as they are in memory, a few pieces at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import alignkit
from alignkit import Alignment, SymmetryGraph, solve, write_weights
from alignkit.checkpoints import ByteProgress, open_checkpoint
from alignkit.checkpoints.shard import as_whole
from alignkit.errors import AlignmentError, BindError, MergeError, SolverError, UsageError
from alignkit.graph.kinds import KINDS
from alignkit.graph.stored import Budget, parse_memory
from alignkit.graph.stored.opening import open_stored
from alignkit.graph.symmetry_graph import Pair
from alignkit.jobs.from_disk import align_checkpoint, match_checkpoints, merge_checkpoints
from alignkit.matching.objective import Objective
from alignkit.matching.tree_objective import TreeObjective
from helpers.graph_strategies import graphs
from helpers.stored_networks import InPieces, saved

SPECS: dict[str, tuple[dict[str, str], dict[str, tuple[int, ...]]]] = {
    "mlp": (
        {"fc1.weight": "h1 .", "fc1.bias": "h1", "fc2.weight": "h2 h1", "fc2.bias": "h2", "fc3.weight": ". h2"},
        {"fc1.weight": (12, 7), "fc1.bias": (12,), "fc2.weight": (9, 12), "fc2.bias": (9,), "fc3.weight": (5, 9)},
    ),
    "transformer": (
        {
            "embed": ". model",
            "qkv": "(heads:4 (qk[heads]:3+qk[heads]+v[heads])) model",
            "qkv.bias": "(heads (qk[heads]+qk[heads]+v[heads]))",
            "out": "model (heads v[heads])",
            "up": "mlp model",
            "down": "model mlp",
            "norm": "model",
            "head": ". model",
        },
        {
            "embed": (31, 12),
            "qkv": (4 * (3 + 3 + 2), 12),
            "qkv.bias": (32,),
            "out": (12, 8),
            "up": (10, 12),
            "down": (12, 10),
            "norm": (12,),
            "head": (31, 12),
        },
    ),
    "convolutions and a gate": (
        {
            "conv1": "c1 . . .",
            "conv2": "c2 c1+c1 . .",
            "depthwise": "c2 . . .",
            "lstm_ih": "h+h+h h2",
            "lstm_hh": "h+h+h h",
            "fc": "h2 (c2 4)",
            "out": ". h",
            "steps": "",
        },
        {
            "conv1": (6, 3, 3, 3),
            "conv2": (8, 12, 2, 2),
            "depthwise": (8, 1, 3, 3),
            "lstm_ih": (15, 7),
            "lstm_hh": (15, 5),
            "fc": (7, 32),
            "out": (4, 5),
            "steps": (),
        },
    ),
    "grouped": (
        {"a": "(g i[g]) .", "conv": "(g o[g]) i[g] .", "b": ". (g o[g])"},
        {"a": (12, 5), "conv": (8, 3, 2), "b": (6, 8)},
    ),
    "experts": (
        {"router": "experts model", "up": "experts units[experts] model", "down": "experts model units[experts]"},
        {"router": (4, 9), "up": (4, 6, 9), "down": (4, 9, 6)},
    ),
}
PIECES = [1, 64, 1 << 20]
"""Bytes of a piece: one row, some rows, everything."""


def pair(name: str, noise: float, seed: int = 0) -> tuple[SymmetryGraph, dict[str, Tensor], dict[str, Tensor]]:
    """A, and a reordered copy of A with noise."""
    spec, shapes = SPECS[name]
    generator = torch.Generator().manual_seed(seed)
    a = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    graph = SymmetryGraph.from_spec(spec, a)
    b = Alignment.random(graph, seed + 1).apply(a)
    return graph, a, {key: t + noise * torch.randn(t.shape, generator=generator) for key, t in b.items()}


def objectives(tmp_path: Path, name: str, piece: int) -> tuple[Objective, Objective]:
    graph, a, b = pair(name, 0.3)
    on_disk = [InPieces(graph, side, piece) for side in saved(tmp_path, a=a, b=b)]
    return Objective(graph.bind(a, b)), Objective(Pair(graph, *on_disk))


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", SPECS)
def test_sums_from_disk_are_those_in_memory(tmp_path: Path, name: str, piece: int) -> None:
    memory, disk = objectives(tmp_path, name, piece)
    alignment = Alignment.random(memory.graph, 5)
    assert disk.squares == pytest.approx(memory.squares)
    assert disk.fixed_value == pytest.approx(memory.fixed_value)
    assert disk.unaligned == pytest.approx(memory.unaligned)
    assert disk.distances2(alignment) == pytest.approx(memory.distances2(alignment))
    assert disk.value(alignment) == pytest.approx(memory.value(alignment))


@pytest.mark.parametrize("known", ["all", "none", "some"])
@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", SPECS)
def test_similarities_from_disk_are_those_in_memory(tmp_path: Path, name: str, piece: int, known: str) -> None:
    memory, disk = objectives(tmp_path, name, piece)
    graph = memory.graph
    elements: dict[str, Tensor | None] = dict(Alignment.random(graph, 5).elements)
    for at, root in enumerate(graph.roots):
        if known == "none" or (known == "some" and at % 2):
            elements.update(dict.fromkeys(graph.tree(root)))
    for group in graph.groups:
        parent = graph.groups[group].parent
        if parent is None or elements[parent] is not None:
            torch.testing.assert_close(disk.similarity(group, elements), memory.similarity(group, elements))
    for root in graph.roots:
        own = {**elements, **dict.fromkeys(graph.tree(root))}
        trees = TreeObjective(memory, root), TreeObjective(disk, root)
        for uses in trees[0].plain.values():
            for use in uses:
                torch.testing.assert_close(*(tree.objective.pair_similarity(use, own) for tree in trees))


@settings(max_examples=60)
@given(graph=graphs(), data=st.data())
def test_any_graph_is_worked_in_pieces(graph: SymmetryGraph, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    a, b = (
        {
            name: torch.randn(node.shape, generator=generator, dtype=torch.float64)
            for name, node in graph.tensors.items()
        }
        for _ in range(2)
    )
    piece = data.draw(st.sampled_from([1, 40, 100, 1 << 20]))
    alignment = Alignment.random(graph, 1)
    elements: dict[str, Tensor | None] = dict(alignment.elements)
    for root in graph.roots:
        if data.draw(st.booleans()):
            elements.update(dict.fromkeys(graph.tree(root)))
    with tempfile.TemporaryDirectory() as folder:
        on_disk = [InPieces(graph, side, piece) for side in saved(Path(folder), a=a, b=b)]
        memory, disk = Objective(graph.bind(a, b)), Objective(Pair(graph, *on_disk))
        assert disk.distances2(alignment) == pytest.approx(memory.distances2(alignment))
        for group in graph.groups:
            parent = graph.groups[group].parent
            if graph.children(group) or (parent is not None and elements[parent] is None):
                continue
            torch.testing.assert_close(disk.similarity(group, elements), memory.similarity(group, elements))
        for root in graph.roots:
            own = {**elements, **dict.fromkeys(graph.tree(root))}
            trees = TreeObjective(memory, root), TreeObjective(disk, root)
            for uses in (*trees[0].plain.values(), *trees[0].coupled.values()):
                for use in uses:
                    torch.testing.assert_close(*(tree.objective.pair_similarity(use, own) for tree in trees))


@pytest.mark.parametrize("products", ["float64", "float32"])
@pytest.mark.parametrize("noise", [0.0, 0.6])
@pytest.mark.parametrize("name", SPECS)
def test_the_solution_is_that_of_the_solver_in_memory(tmp_path: Path, name: str, noise: float, products: str) -> None:
    graph, a, b = pair(name, noise)
    expected = solve(graph, a, b, solver="weight_matching", products=products)
    solution = match_checkpoints(graph, *saved(tmp_path, a=a, b=b), "2MB", products=products)
    assert solution.alignment == expected.alignment
    assert solution.objective_before == pytest.approx(expected.objective_before)
    assert solution.objective_after == pytest.approx(expected.objective_after, abs=1e-9)
    assert solution.gain == pytest.approx(expected.gain)
    assert [step.objective for step in solution.history] == pytest.approx(
        [s.objective for s in expected.history], abs=1e-9
    )
    assert solution.solver == "weight_matching"


def test_start_restarts_and_steps_are_those_of_weight_matching(tmp_path: Path) -> None:
    graph, a, b = pair("transformer", 1.5)
    sides = saved(tmp_path, a=a, b=b)
    init = Alignment.random(graph, 9)
    for options in ({"restarts": 3}, {"init": init}, {"start": "random", "seed": 4}, {"max_steps": 1}):
        expected = solve(graph, a, b, **options)
        assert match_checkpoints(graph, *sides, 1 << 24, **options).alignment == expected.alignment  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["identity", "frank_wolfe", "deepalign", "deepalign > weight_matching"])
@pytest.mark.parametrize("name", SPECS)
def test_solvers_that_ask_for_sums_alone_find_the_same_on_disk(tmp_path: Path, name: str, solver: str) -> None:
    graph, a, b = pair(name, 0.6)
    expected = solve(graph, a, b, solver=solver)
    solution = solve(graph.bind(*saved(tmp_path, a=a, b=b), memory="500kB"), solver=solver)
    assert solution.objective_after == pytest.approx(expected.objective_after)
    assert solution.alignment == expected.alignment


def test_the_solution_is_a_fixed_point_of_the_algorithm_written_plainly(tmp_path: Path) -> None:
    graph, a, b = pair("mlp", 1.0)
    solution = match_checkpoints(graph, *saved(tmp_path, a=a, b=b), "1MB")
    (a1, a1b, a2, a2b, a3), (b1, b1b, b2, b2b, b3) = ([t.double().numpy() for t in side.values()] for side in (a, b))
    p, q = (solution.alignment.elements[name].numpy() for name in ("h1", "h2"))
    parts = [a1 - b1[p], a1b - b1b[p], a2 - b2[q][:, p], a2b - b2b[q], a3 - b3[:, q]]
    assert solution.objective_after == pytest.approx(sum((part**2).sum() for part in parts))
    first = a1 @ b1.T + np.outer(a1b, b1b) + a2.T @ b2[q]
    second = a2 @ b2[:, p].T + np.outer(a2b, b2b) + a3.T @ b3
    for similarity, order in ((first, p), (second, q)):
        best = similarity[linear_sum_assignment(similarity, maximize=True)].sum()
        assert similarity[np.arange(len(order)), order].sum() == pytest.approx(best)


@pytest.mark.parametrize("memory", ["100kB", "2MB"])
@pytest.mark.parametrize("name", SPECS)
def test_every_job_on_networks_on_disk_gives_what_it_gives_in_memory(tmp_path: Path, name: str, memory: str) -> None:
    graph, a, b = pair(name, 0.6)
    c = pair(name, 0.9, seed=3)[2]
    networks, sides = (a, b, c), saved(tmp_path, a=a, b=b, c=c)
    apart, expected = alignkit.distance(graph.bind(*sides[:2], memory=memory)), alignkit.distance(graph, a, b)
    for tensor, measured in apart.tensors.items():
        assert vars(measured) == pytest.approx(vars(expected.tensors[tensor]))
    for method in ("reference", "merge_many"):
        many = alignkit.align_many(graph, *sides, method=method, memory=memory)
        whole = alignkit.align_many(graph, *networks, method=method)
        assert many.alignments == whole.alignments
        assert many.spread_after == pytest.approx(whole.spread_after)
        assert equal(
            many.apply(open_stored(graph, dict(zip("abc", sides, strict=True)), Budget(1 << 14))), whole.apply(networks)
        )
    for count in (2, 3):
        merged = alignkit.merge(graph, *sides[:count], weights=range(1, count + 1), memory=memory)
        whole = alignkit.merge(graph, *networks[:count], weights=range(1, count + 1))
        assert equal([merged.network, *merged.aligned], [whole.network, *whole.aligned])
        for way in ("slerp", "task_arithmetic", "ties", "dare") if memory == "2MB" else ("task_arithmetic",):
            if way != "slerp" or count == 2:
                merged = alignkit.merge(graph, *sides[:count], method=way, memory=memory)
                whole = alignkit.merge(graph, *networks[:count], method=way)
                assert equal([merged.network, *merged.aligned], [whole.network, *whole.aligned])
                assert merged.arithmetic == whole.arithmetic
    canonical = alignkit.canonicalize(graph, sides[1:], sides[0], memory=memory)
    whole = alignkit.canonicalize(graph, networks[1:], a)
    assert equal([canonical.weights], [whole.weights]) and equal([canonical.network(1)], [whole.network(1)])
    torch.testing.assert_close(canonical.after, whole.after)
    assert canonical.alignment(0) == whole.alignment(0)


def equal(networks: Sequence[Mapping[str, Tensor]], others: Sequence[Mapping[str, Tensor]]) -> bool:
    pairs = list(zip(networks, others, strict=True))
    return all(one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in two) for one, two in pairs)


@settings(max_examples=30)
@given(graph=graphs(kinds=tuple(KINDS)), data=st.data())
def test_reordered_networks_on_disk_are_those_in_memory(graph: SymmetryGraph, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    weights = {name: torch.randn(node.shape, generator=generator) for name, node in graph.tensors.items()}
    orders = [Alignment.random(graph, seed) for seed in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        network = InPieces(graph, *saved(Path(folder), a=weights), data.draw(st.sampled_from([1, 100, 1 << 20])))
        expected = (orders[1] @ orders[0]).apply(weights)
        twice = orders[1].apply(orders[0].apply(network))
        for name, tensor in expected.items():
            torch.testing.assert_close(twice[name], tensor)
            torch.testing.assert_close(as_whole(twice.pieces(name)), tensor)
            for block in graph.tensors[name].blocks:
                part = twice.part(name, block, 0, slice(0, 1) if block.dims else slice(None))
                torch.testing.assert_close(part, block.view(tensor)[:1] if block.dims else tensor)


@pytest.mark.parametrize("solver", ["sinkhorn", "straight_through", "activation_matching"])
def test_solvers_that_hold_whole_networks_say_so(tmp_path: Path, solver: str) -> None:
    graph, a, b = pair("mlp", 0.1)
    with pytest.raises(SolverError, match=f"{solver!r} holds both networks in memory"):
        solve(graph.bind(*saved(tmp_path, a=a, b=b), memory="1MB"), solver=solver)
    with pytest.raises(BindError, match="B is dict: give the path"):
        graph.bind(tmp_path / "a.safetensors", b, memory="1MB")


def test_half_precision_is_matched(tmp_path: Path) -> None:
    graph, a, b = pair("transformer", 0.1)
    halves = [{key: t.bfloat16() for key, t in side.items()} for side in (a, b)]
    sides = saved(tmp_path, a=halves[0], b=halves[1])
    solution = match_checkpoints(graph, *sides, "1MiB", products="float32")
    assert solution.alignment == solve(graph, *halves).alignment
    align_checkpoint(tmp_path / "aligned.safetensors", sides[1], solution, memory="1MiB")
    aligned = open_checkpoint(tmp_path / "aligned.safetensors")
    expected = solution.apply(halves[1])
    assert all(torch.equal(aligned[key], t) and aligned[key].dtype == torch.bfloat16 for key, t in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", SPECS)
def test_aligned_and_merged_checkpoints_are_those_in_memory(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    graph, a, b = pair(name, 0.3)
    a, b = ({key: t.to(dtype) for key, t in side.items()} for side in (a, b))
    sides = saved(tmp_path, a=a, b=b)
    alignment = Alignment.random(graph, 3)
    align_checkpoint(tmp_path / "aligned.safetensors", sides[1], alignment, memory=1)
    wide = alignment.apply({key: t.float() for key, t in b.items()})
    aligned = open_checkpoint(tmp_path / "aligned.safetensors")
    assert aligned.dtypes == dict.fromkeys(b, dtype)
    assert all(torch.equal(aligned[key].float(), t) for key, t in wide.items())
    merge_checkpoints(tmp_path / "merged.safetensors", sides, [None, alignment], [1, 3], memory=1)
    merged = open_checkpoint(tmp_path / "merged.safetensors")
    expected = alignkit.average([a, {key: t.to(dtype) for key, t in wide.items()}], [1, 3])
    assert all(torch.equal(merged[key].float(), t.float()) for key, t in expected.items())


def test_tied_names_are_written_under_each(tmp_path: Path) -> None:
    embed = torch.randn(9, 6)
    weights = {"embed": embed, "head": embed, "fc": torch.randn(6, 6), "fc2": torch.randn(6, 6)}
    graph = SymmetryGraph.from_spec({"embed": ". h", "fc": "m h", "fc2": "h m"}, weights)
    shuffled = Alignment.random(graph, 1).apply(weights)
    (a, b) = saved(tmp_path, a=weights, b=shuffled)
    solution = match_checkpoints(graph, a, b, "1MB")
    assert solution.objective_after == 0
    align_checkpoint(tmp_path / "c.safetensors", b, solution)
    c = open_checkpoint(tmp_path / "c.safetensors")
    assert all(torch.equal(c[name], tensor) for name, tensor in weights.items())
    del weights["head"]  # as transformers leaves it out
    write_weights(tmp_path / "one.safetensors", weights)
    assert match_checkpoints(graph, tmp_path / "one.safetensors", b, "1MB").objective_after == 0
    (broken,) = saved(tmp_path, d={**shuffled, "head": shuffled["head"] + 1})
    with pytest.raises(BindError, match="'head' and 'embed' are tied in the graph but differ in B"):
        match_checkpoints(graph, a, broken, "1MB")


def test_progress_ends_at_the_whole_sweep(tmp_path: Path) -> None:
    graph, a, b = pair("transformer", 0.2)
    seen: list[ByteProgress] = []
    solution = match_checkpoints(graph, *saved(tmp_path, a=a, b=b), "2MB", on_progress=seen.append)
    sweeps = list(dict.fromkeys(report.stage for report in seen))
    assert sweeps == [f"sweep {i + 1}" for i in range(len(solution.history))]
    for sweep in sweeps:
        reports = [report for report in seen if report.stage == sweep]
        assert all(0 <= report.done <= report.total for report in reports)
        assert [r.done for r in reports] == sorted(r.done for r in reports)
    first = [report for report in seen if report.stage == "sweep 1"]
    assert first[0].fraction < 0.2 and first[-1].fraction > 0.9
    assert 0.5 < first[-1].done / first[0].total < 2


# ---------------------------------------------------------------------- what is refused


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    graph, a, b = pair("mlp", 0.1)
    bad = {key: t for key, t in b.items() if key != "fc1.bias"} | {
        "extra": torch.zeros(2),
        "fc3.weight": torch.zeros(9),
    }
    sides = saved(tmp_path, a=a, bad=bad, whole={key: t.long() for key, t in b.items()})
    with pytest.raises(
        BindError, match=r"(?s)3 problems.*'extra' of B is not.*'fc1.bias' is missing.*'fc3.weight' has"
    ):
        match_checkpoints(graph, sides[0], sides[1], "1MB")
    with pytest.raises(BindError, match=r"'fc1.bias' is float32 in A but int64 in B"):
        match_checkpoints(graph, sides[0], sides[2], "1MB")
    nan = {**b, "fc2.weight": b["fc2.weight"].clone().fill_(torch.nan)}
    with pytest.raises(BindError, match=r"'fc2.weight' of B holds NaN or infinity"):
        match_checkpoints(graph, sides[0], *saved(tmp_path, nan=nan), "1MB")
    with pytest.raises(AlignmentError, match="another graph"):
        match_checkpoints(graph, *sides[:1] * 2, "1MB", init=Alignment.identity(pair("experts", 0)[0]))
    with pytest.raises(SolverError, match="restart"):
        match_checkpoints(graph, *sides[:1] * 2, "1MB", restart=3)
    with pytest.raises(MergeError, match="one alignment"):
        merge_checkpoints(tmp_path / "m.safetensors", sides[:1] * 2, [None, None])


def test_too_little_memory_is_said_at_once(tmp_path: Path) -> None:
    graph = SymmetryGraph.from_spec({"up": "units .", "down": ". units"}, {"up": (4000, 2), "down": (2, 4000)})
    with pytest.raises(SolverError, match=r"the units of 'units' and their assignment take 256000000 bytes.*257 MB"):
        match_checkpoints(graph, tmp_path / "a", tmp_path / "b", "100MB")


@pytest.mark.parametrize("method", ["slerp", "ties", "dare"])
def test_a_tensor_that_is_merged_as_a_whole_has_to_fit(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = SymmetryGraph.from_spec({"w": "h .", "v": ". h"}, {"w": (4, 30_000), "v": (3, 4)})
    sides = saved(tmp_path, **{n: {"w": torch.randn(4, 30_000), "v": torch.randn(3, 4)} for n in "ab"})
    with monkeypatch.context() as never:
        never.setattr("alignkit.jobs.merge.solve_kept", None)  # it is refused before anything is solved
        with pytest.raises(MergeError, match=r"looks at all of 'w' at once.*Give \d+ MB more"):
            alignkit.merge(graph, *sides, method=method, memory="2MB")
    assert alignkit.merge(graph, *sides, method="task_arithmetic", memory="2MB").network["w"].shape == (4, 30_000)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mb", 512 * 10**6), ("4194304", 1 << 22), (" 7 B ", 7)],
)
def test_amounts_of_memory(text: str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "two GB", "2 GX", "0", "0.1B", "nan", "1e9"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="not an amount of memory"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["2", "16", "800", "1.5", "999999"])
def test_amounts_that_lack_their_unit_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"write the unit, such as {text}GB"):
        parse_memory(text)
