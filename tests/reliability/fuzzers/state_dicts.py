"""State dicts: names, dtypes, values, storages and ties, given to every job and to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import alignkit
from alignkit import SymmetryGraph, read_weights, write_weights
from alignkit.checkpoints import open_checkpoint
from fuzzers.alignments import stored
from fuzzers.engine import Case, Dice, expect
from fuzzers.networks import NETS, State, close, moved, numbers, random_alignment, same, squared
from fuzzers.values import DTYPES, ODD, filled

GRAPHS = {**NETS, "no groups": SymmetryGraph.from_spec({"w": ". .", "s": ""}, {"w": (2, 3), "s": ()})}
GRAPHS["one unit"] = SymmetryGraph.from_spec({"w1": "h .", "w2": ". h"}, {"w1": (1, 3), "w2": (2, 1)})
GRAPHS["counters"] = SymmetryGraph.from_spec(
    {"fc.weight": "h .", "bn.running_mean": "h", "bn.num_batches_tracked": "", "out.weight": ". h"},
    {"fc.weight": (4, 3), "bn.running_mean": (4,), "bn.num_batches_tracked": (), "out.weight": (2, 4)},
)
MERGES = ("float32", "float64", "float16", "bfloat16")


def values(dice: Dice, graph: SymmetryGraph, dtypes: dict[str, torch.dtype], scale: float) -> State:
    """Weights of the given dtypes in random storages."""
    weights = {}
    for name, node in graph.tensors.items():
        kind = torch.int64 if name.endswith("num_batches_tracked") else dtypes[name]
        weights[name] = stored(dice, filled(dice, node.shape, kind, scale))
    return weights


def sides(dice: Dice, graph: SymmetryGraph, count: int) -> tuple[list[State], str, tuple[str, ...]]:
    """Some networks on one graph, what is odd about them, and the names that a refusal may give."""
    usual = dice.chance(0.5)
    each = {n: getattr(torch, dice.choice(MERGES)) if usual else dice.choice(DTYPES) for n in graph.tensors}
    dtypes = each if dice.chance(0.3) else dict.fromkeys(graph.tensors, next(iter(each.values())))
    scale = dice.pick(1.0, 1.0, 1.0, 1e-30, 1e-4, 1e4, 1e30, 1e-300, 1e160)
    networks = [values(dice, graph, dtypes, scale) for _ in range(count)]
    if dice.chance(0.2):  # a reordered copy
        networks[1] = moved(graph, random_alignment(dice, graph), networks[0])
    if dice.chance(0.1):
        networks[1] = dict(networks[0])
    what = f"{scale:g} times {', '.join(sorted({str(dtype) for dtype in dtypes.values()}))}"
    names = (*(f"{name}'" for name in graph.tensors), "'extra'", "the weights are so", "the key 5")
    if dice.chance(0.35):
        side, name = dice.choice(networks), dice.choice(sorted(graph.tensors))
        change = dice.choice((*sorted(ODD), "missing", "renamed", "extra", "number as a name", "tied", "cut"))
        what += f"; {name} {change}"
        spoil(dice, side, name, change)
    return networks, what, names


def spoil(dice: Dice, side: dict[Any, Any], name: str, change: str) -> None:
    """Change one tensor of a network in place."""
    if change == "missing":
        del side[name]
    elif change == "renamed":
        side[f"module.{name}"] = side.pop(name)
    elif change == "extra":
        side["extra"] = torch.zeros(3)
    elif change == "number as a name":
        side[5] = side.pop(name)
    elif change == "tied":
        side[name] = side[dice.choice(sorted(side))]
    elif change == "cut":
        side[name] = side[name][:-1] if side[name].ndim else side[name][None]
    else:
        side[name] = ODD[change](filled(dice, tuple(side[name].shape), torch.float32))


def size(networks: list[State]) -> float:
    """The size of the numbers whose squares are summed: rounding is relative to it."""
    return sum(float((np.abs(numbers(t).astype(complex)) ** 2).sum()) for side in networks for t in side.values())


def check_solution(graph: SymmetryGraph, a: State, b: State, solution: alignkit.Solution) -> None:
    """Check distances and the aligned network against numpy."""
    aligned = moved(graph, solution.alignment, b)
    trained = [n for n in graph.tensors if a[n].is_floating_point() or a[n].is_complex()]
    left, right, after = ({n: side[n] for n in trained} for side in (a, b, aligned))
    scale = size([left, right])
    before_all, after_all = squared(a, b), squared(a, aligned)
    expect(
        close(solution.objective_before, squared(left, right), scale=scale)
        or close(solution.objective_before, before_all),
        f"squared distance {solution.objective_before}, numpy says {squared(left, right)}",
    )
    expect(
        close(solution.objective_after, squared(left, after), scale=scale)
        or close(solution.objective_after, after_all),
        f"squared distance after alignment {solution.objective_after}, numpy says {squared(left, after)}",
    )
    expect(same(solution.apply(b), aligned), "apply moves units to other places")
    gain = solution.objective_before - solution.objective_after
    expect(close(sum(solution.gain.values()), gain, scale=scale), "the gains of the groups do not add up")


def solve(dice: Dice, graph: SymmetryGraph, networks: list[State]) -> object:
    solver = dice.pick("weight_matching", "weight_matching", "weight_matching", "identity", "frank_wolfe")
    steps = {"max_steps": 2} if solver == "frank_wolfe" else {}
    solution = alignkit.solve(graph, *networks[:2], solver=solver, **steps)
    check_solution(graph, networks[0], networks[1], solution)
    return solution.explain(), solution.facts(), repr(solution)


def distance(dice: Dice, graph: SymmetryGraph, networks: list[State]) -> object:
    measured = alignkit.distance(graph, *networks[:2])
    check_solution(graph, networks[0], networks[1], measured.solution)
    expect(close(measured.after, sum(t.after for t in measured.tensors.values())), "the sum is another")
    if measured.same:
        aligned = moved(graph, measured.alignment, networks[1])
        for name, tensor in networks[0].items():
            left, right = numbers(tensor).astype(complex), numbers(aligned[name]).astype(complex)
            bound = 2e-6 * max(np.abs(left).max(initial=0), np.abs(right).max(initial=0))
            expect((np.abs(left - right) <= bound).all(), f"called the same, but {name} differs")
    return measured.explain(), measured.facts()


def mean_of(networks: list[State], shares: list[float] | None) -> State:
    """The average by numpy: whole numbers that are equal stay, counters are the largest."""
    parts = shares or [1.0] * len(networks)
    total, result = sum(parts), {}
    for name, tensor in networks[0].items():
        stack = [numbers(side[name]) for side in networks]
        if tensor.is_floating_point() or tensor.is_complex():
            mean = sum(part / total * value for part, value in zip(parts, stack, strict=True))
            result[name] = torch.from_numpy(np.asarray(mean)).to(tensor.dtype)
        else:
            result[name] = torch.from_numpy(np.asarray(np.max(np.stack(stack), 0))).to(tensor.dtype)
    return result


def nearly(left: State, right: State) -> bool:
    """Return whether two averages agree up to a rounding of their dtypes."""
    if left.keys() != right.keys() or any(left[n].dtype != right[n].dtype for n in left):
        return False
    for name in left:
        a, b = numbers(left[name]).astype(complex), numbers(right[name]).astype(complex)
        with np.errstate(over="ignore"):
            unit = torch.finfo(left[name].dtype).eps if left[name].dtype.is_floating_point else 1e-6
            bound = 2 * unit * np.maximum(np.abs(a), np.abs(b)).max(initial=0) + 1e-300
        if not (np.isfinite(a).all() and (np.abs(a - b) <= bound).all()):
            return False
    return True


def merge(dice: Dice, graph: SymmetryGraph, networks: list[State]) -> object:
    shares = dice.pick(None, [1.0] * len(networks), [0.5, 0.25, 0.25][: len(networks)], [0, 1, 0][: len(networks)])
    merged = alignkit.merge(graph, *networks, weights=shares)
    orders = merged.alignment
    alignments = [None, orders.alignment] if len(networks) == 2 else orders.alignments
    aligned = [s if o is None else moved(graph, o, s) for s, o in zip(networks, alignments, strict=True)]
    expect(nearly(dict(merged.network), mean_of(aligned, shares)), "the merge is not numpy's average")
    return merged.explain(), merged.facts()


def average(dice: Dice, graph: SymmetryGraph, networks: list[State]) -> object:
    shares = dice.pick(None, [1.0] * len(networks), [0.5, 0.25, 0.25][: len(networks)])
    result = alignkit.average(networks, shares)
    expect(nearly(result, mean_of(networks, shares)), "the average is not numpy's")
    return result


def transport(dice: Dice, graph: SymmetryGraph, networks: list[State]) -> object:
    scale = dice.pick(1.0, 0.0, -1.0, 0.5, 1e39, 1e300)
    carried = alignkit.transport(graph, *networks[:2], tuned=networks[-1], scale=scale)
    expect(all(np.isfinite(numbers(t)).all() for t in dict(carried.network).values()), "a result is not finite")
    if scale == 0:
        expect(same(dict(carried.network), moved(graph, alignkit.Alignment.identity(graph), networks[1])), "B changed")
    return carried.explain(), carried.facts()


def align_many(dice: Dice, graph: SymmetryGraph, networks: list[State]) -> object:
    method = dice.pick("reference", "merge_many", "universe")
    many = alignkit.align_many(graph, *networks, method=method, max_sweeps=2)
    for own, got, alignment in zip(networks, many.apply(networks), many.alignments, strict=True):
        expect(same(got, moved(graph, alignment, own)), "a network is moved differently")
    if len(networks) == 2:  # for more, a start that the method makes counts, not the order that was given
        expect(many.spread_after <= many.spread_before * (1 + 1e-9), "the spread rose")
    return many.explain(), many.facts()


def canonicalize(dice: Dice, graph: SymmetryGraph, networks: list[State]) -> object:
    reference, *others = networks
    canonical = alignkit.canonicalize(graph, others, reference, max_steps=3)
    for i, own in enumerate(others):
        aligned = moved(graph, canonical.alignment(i), own)
        expect(same(canonical.network(i), aligned), f"network {i} is moved differently")
        trained = [n for n in graph.tensors if reference[n].is_floating_point() or reference[n].is_complex()]
        left, right = {n: reference[n] for n in trained}, {n: aligned[n] for n in trained}
        told, scale = float(canonical.after[i]), size([left, right])
        known = (squared(left, right), squared(reference, aligned))
        expect(
            any(close(told, value, scale=scale) for value in known), f"{told} after alignment, numpy says {known[0]}"
        )
    return canonical.explain()


def files(dice: Dice, graph: SymmetryGraph, networks: list[State]) -> object:
    weights = networks[0]
    write_weights("out.safetensors" if dice.chance(0.6) else "out.pt", weights)
    (path,) = Path().iterdir()
    expect(same(read_weights(path), plain(weights)), "other weights are read than were written")
    checkpoint = open_checkpoint(path)
    expect(checkpoint.shapes == {n: tuple(t.shape) for n, t in weights.items()}, "the header says other shapes")
    rows = {n: (dice.randrange(t.shape[0] + 1), t.shape[0]) for n, t in weights.items() if t.ndim and t.shape[0]}
    for name, (start, stop) in rows.items():
        part = {"part": checkpoint.rows(name, start, stop)}
        expect(same(part, {"part": plain(weights)[name][start:stop]}), f"other rows of {name} are read")
    return None


def plain(weights: State) -> State:
    return {n: t.detach().as_subclass(Tensor).resolve_conj().resolve_neg() for n, t in weights.items()}


JOBS: dict[str, Callable[[Dice, SymmetryGraph, list[State]], object]] = {
    function.__name__: function
    for function in (solve, distance, merge, average, transport, align_many, canonicalize, files)
}


def make(dice: Dice, folder: Path) -> Case:
    job, graph = dice.choice(sorted(JOBS)), dice.choice(sorted(GRAPHS))
    count = 2 if job in ("solve", "distance") else dice.randint(2, 3)
    networks, what, names = sides(dice, GRAPHS[graph], count)
    outputs = ("out.safetensors", "out.pt") if job == "files" else ()
    run = lambda: JOBS[job](dice, GRAPHS[graph], networks)  # noqa: E731  a case is one call
    return Case(f"{job} on {graph}: {what}", run, names, kept=(networks,), outputs=outputs)
