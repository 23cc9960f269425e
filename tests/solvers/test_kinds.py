"""Weight matching of groups of every kind: planted elements, any start, restarts, families, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import alignkit
from alignkit import Alignment, SymmetryGraph
from alignkit.errors import SolverError
from alignkit.graph.kinds import KINDS
from alignkit.matching.objective import Objective
from alignkit.plugins.plugin_registry import Registry
from alignkit.solvers.coordinate_ascent import Ascent, roots_by_knowledge
from alignkit.testing import KIND_ARCHITECTURES, decoder, independent_pair, planted_pair
from alignkit.testing.contract import reproduction
from helpers.stored_networks import saved

kinds = pytest.mark.parametrize("kind", KIND_ARCHITECTURES)
MARKED = [kind for kind, facts in KINDS.items() if facts.mark]


def small(kind: str) -> tuple[SymmetryGraph, dict[str, Tensor]]:
    mark = KINDS[kind].mark
    graph = SymmetryGraph.from_spec({"w": f"{mark}h .", "v": f". {mark}h"}, {"w": (4, 3), "v": (2, 4)})
    generator = torch.Generator().manual_seed(0)
    return graph, {n: torch.randn(node.shape, generator=generator) for n, node in graph.tensors.items()}


@kinds
@pytest.mark.parametrize("seed", range(5))
def test_planted_elements_are_found_to_the_last_digits(kind: str, seed: int) -> None:
    pair = planted_pair(KIND_ARCHITECTURES[kind](), seed=seed)
    solution = alignkit.solve(pair.bind())
    assert solution.alignment == pair.answer
    assert solution.objective_after < 1e-24 * solution.objective_before


@pytest.mark.parametrize("seed", [0, 8, 10])
def test_rotations_that_settle_slowly_are_found_to_the_last_digits(seed: int) -> None:
    # Each rotation between two others brings the networks nearer by a small part of what is left.
    generator = torch.Generator().manual_seed(seed)
    spec = {"first": "~x .", "second": "~y ~x", "third": "~z ~y", "last": ". ~z"}
    sizes = {"first": (6, 3), "second": (6, 6), "third": (6, 6), "last": (2, 6)}
    graph = SymmetryGraph.from_spec(spec, sizes)
    a = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    solution = alignkit.solve(graph, a, Alignment.random(graph, seed).apply(a))
    assert solution.objective_after < 1e-23 * solution.objective_before
    assert solution.history == tuple(sorted(solution.history, key=lambda step: -step.objective))


@kinds
@pytest.mark.parametrize("noise", [1e-3, 0.1])
def test_noise_is_not_taken_for_a_symmetry(kind: str, noise: float) -> None:
    pair = planted_pair(KIND_ARCHITECTURES[kind](), seed=1, noise=noise)
    solution = alignkit.solve(pair.bind())
    assert solution.objective_after <= Objective(pair.bind()).distance2(pair.answer) * (1 + 1e-9)


@kinds
@pytest.mark.parametrize("start", ["identity", "random", "centre"])
def test_every_sweep_lowers_the_distance(kind: str, start: str) -> None:
    pair = independent_pair(KIND_ARCHITECTURES[kind](), seed=2)
    solution = alignkit.solve(pair.bind(), start=start, restarts=2)
    assert all(after.objective <= before.objective for before, after in pairwise(solution.history))
    assert solution.objective_after < 0.8 * solution.objective_before
    moved = solution.alignment.apply(pair.b)
    distance = sum(
        float((a - b).square().sum())
        for a, b in zip(pair.a.state_dict().values(), moved.state_dict().values(), strict=True)
    )
    assert distance == pytest.approx(solution.objective_after, rel=1e-9)


@kinds
def test_no_rotation_beside_the_end_is_better(kind: str) -> None:
    """What coordinate ascent returns is a local optimum of the whole group."""
    pair = independent_pair(KIND_ARCHITECTURES[kind](), seed=3)
    solution = alignkit.solve(pair.bind(), rtol=1e-12)
    objective = Objective(pair.bind())
    for seed in range(20):
        drawn = Alignment.random(pair.graph, seed)
        near = {}
        for name, element in solution.alignment.elements.items():
            if pair.graph.rotates(name):
                turn = drawn.elements[name] - drawn.elements[name].mT  # a generator, of the kind's own planes
                element = torch.linalg.matrix_exp(1e-3 * turn) @ element
            near[name] = element
        assert objective.distance2(Alignment(pair.graph, near)) >= solution.objective_after * (1 - 1e-9)


@kinds
def test_the_value_is_linear_in_each_group(kind: str) -> None:
    pair = independent_pair(KIND_ARCHITECTURES[kind]()).bind()
    objective, base, other = Objective(pair), Alignment.random(pair.graph, 1), Alignment.random(pair.graph, 2)
    for name in pair.graph.groups:
        if pair.graph.children(name):
            continue
        similarity = objective.similarity(name, dict(base.elements))
        changed = Alignment(pair.graph, {**base.elements, name: other.elements[name]})
        inner = [(similarity * x.as_matrices()[name].double().reshape(similarity.shape)).sum() for x in (base, changed)]
        gain = objective.gain(dict(base.elements), {**base.elements, name: other.elements[name]})
        assert float(inner[1] - inner[0]) == pytest.approx(gain, abs=1e-9)
        assert objective.value(changed) - objective.value(base) == pytest.approx(gain, abs=1e-9)


def test_a_stream_that_rotates_is_matched_by_what_both_share_by_name() -> None:
    """With 40 tokens and a head, embeddings alone determine a stream of 8; layers say nothing while heads are open."""
    spec = {"embed": ". ~model", "up": "-h ~model", "down": "~model -h", "head": ". ~model"}
    graph = SymmetryGraph.from_spec(spec, {"embed": (40, 8), "up": (16, 8), "down": (8, 16), "head": (40, 8)})
    generator = torch.Generator().manual_seed(0)
    sides = [
        {name: torch.randn(node.shape, generator=generator).double() for name, node in graph.tensors.items()}
        for _ in "ab"
    ]
    objective, unknown = Objective(graph.bind(*sides)), dict.fromkeys(graph.groups)
    a, b = sides
    torch.testing.assert_close(
        objective.similarity("model", unknown)[0], a["embed"].T @ b["embed"] + a["head"].T @ b["head"]
    )
    assert not objective.similarity("h", unknown).any()
    assert roots_by_knowledge(objective, unknown) == [["model"], ["h"]]


def test_unknown_units_that_keep_the_ones_are_averaged() -> None:
    graph = SymmetryGraph.from_spec({"w": "^h k"}, {"w": (4, 5)})
    weights = {"w": torch.arange(20.0).reshape(4, 5).double()}
    similarity = Objective(graph.bind(weights, weights)).similarity("k", {"h": None, "k": None})[0]
    torch.testing.assert_close(similarity, torch.outer(weights["w"].sum(0), weights["w"].mean(0)))


class TestRefused:
    @pytest.mark.parametrize("kind", MARKED)
    @pytest.mark.parametrize("solver", Registry([]).solvers())
    def test_solvers_take_their_kinds_and_no_others(self, kind: str, solver: str) -> None:
        graph, weights = small(kind)
        takes = kind in Registry([]).solvers()[solver].solver.kinds
        if takes:
            return
        with pytest.raises(SolverError, match=rf"solver '{solver}' cannot take group 'h', which .* Take .*weight_matc"):
            alignkit.solve(graph.bind(weights, weights), solver=solver)
        with pytest.raises(SolverError, match="cannot take group 'h'"):
            alignkit.solve_many(graph, [(weights, weights)], solver=solver)


@pytest.mark.parametrize("solver", ["weight_matching", "frank_wolfe"])
@pytest.mark.parametrize("kind", KIND_ARCHITECTURES)
class TestOnDisk:
    def test_networks_on_disk_give_what_they_give_in_memory(self, kind: str, solver: str, tmp_path) -> None:
        problem = planted_pair(KIND_ARCHITECTURES[kind](), noise=0.05)
        graph, networks = problem.graph, [dict(model.state_dict()) for model in (problem.a, problem.b)]
        sides = saved(tmp_path, a=networks[0], b=networks[1])
        expected = alignkit.solve(graph, *networks, solver=solver)
        bound = graph.bind(*sides, memory="2MB")
        assert alignkit.solve(bound, solver=solver).alignment == expected.alignment
        assert alignkit.distance(bound, solver=solver).after == pytest.approx(alignkit.distance(graph, *networks).after)
        merged, whole = alignkit.merge(graph, *sides, memory="2MB"), alignkit.merge(graph, *networks)
        aligned, wanted = expected.apply(bound.b), expected.apply(networks[1])
        for name, tensor in whole.network.items():
            torch.testing.assert_close(merged.network[name], tensor)
            torch.testing.assert_close(aligned[name], wanted[name])

    def test_memory_holds_what_rotates_whole(self, kind: str, solver: str, tmp_path) -> None:
        architecture = KIND_ARCHITECTURES[kind]()
        graph, weights = architecture.graph(), dict(architecture.model.state_dict())
        sides = saved(tmp_path, a=weights, b=weights)
        if any(map(graph.rotates, graph.groups)):
            with pytest.raises(SolverError, match="are rotated, so that all of it is held"):
                graph.bind(*sides, memory=68_000)


@kinds
class TestJobs:
    def test_distance_says_what_it_undid(self, kind: str) -> None:
        pair = planted_pair(KIND_ARCHITECTURES[kind]())
        result = alignkit.distance(pair.bind())
        assert result.same
        expected = {"signed": "signs"}.get(kind, "rotation")
        assert result.undone[-1] == expected and expected in result.verdict
        apart = alignkit.distance(independent_pair(KIND_ARCHITECTURES[kind](), seed=5).bind())
        assert not apart.same

    def test_merge_of_moved_copies_is_the_network(self, kind: str) -> None:
        pair = planted_pair(KIND_ARCHITECTURES[kind]())
        merged = alignkit.merge(pair.bind()).network
        for name, tensor in pair.a.state_dict().items():
            torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=0, atol=1e-12)

    def test_a_fine_tune_is_carried_back_and_forth(self, kind: str) -> None:
        pair = planted_pair(KIND_ARCHITECTURES[kind]())
        tuned = independent_pair(pair.architecture, seed=9).a
        carried = alignkit.transport(pair.bind(), tuned=tuned).network
        inputs = pair.architecture.inputs()
        with torch.no_grad():
            torch.testing.assert_close(carried(inputs), tuned(inputs))

    def test_copies_are_brought_to_a_reference(self, kind: str) -> None:
        pair = planted_pair(KIND_ARCHITECTURES[kind]())
        graph, reference = pair.graph, pair.a.state_dict()
        copies = [Alignment.random(graph, seed).apply(reference) for seed in (2, 3)]
        ordered = alignkit.canonicalize(graph, copies, reference)
        assert not ordered.batched
        for i in range(2):
            assert ordered.alignment(i) @ Alignment.random(graph, i + 2) == Alignment.identity(graph)
            for name, tensor in ordered.network(i).items():
                torch.testing.assert_close(tensor, reference[name], rtol=0, atol=1e-12)

    def test_many_pairs_are_solved_as_each_alone(self, kind: str) -> None:
        pairs = [independent_pair(KIND_ARCHITECTURES[kind](), seed=seed) for seed in (1, 2)]
        solved = alignkit.solve_many(pairs[0].graph, [(pair.a, pair.b) for pair in pairs])
        for pair, row in zip(pairs, solved, strict=True):
            assert row.alignment == alignkit.solve(pair.bind()).alignment

    def test_pictures_and_reports_are_drawn(self, kind: str, tmp_path) -> None:
        pair = planted_pair(KIND_ARCHITECTURES[kind]())
        solution = alignkit.solve(pair.bind())
        solution.plot(pair.bind())
        solution.plot(pair.bind(), groups=list(pair.graph.groups)[:2])
        assert "moved" in solution.explain()
        solution.save(tmp_path / "solution.safetensors")
        assert alignkit.Solution.load(tmp_path / "solution.safetensors", pair.graph).alignment == solution.alignment


class TestTogether:
    """Frank-Wolfe, and several networks."""

    @kinds
    def test_frank_wolfe_finds_planted_elements_and_is_no_worse_than_weight_matching(self, kind: str) -> None:
        pair = planted_pair(KIND_ARCHITECTURES[kind]())
        assert alignkit.solve(pair.bind(), solver="frank_wolfe").alignment == pair.answer
        bound = independent_pair(KIND_ARCHITECTURES[kind](), seed=6).bind()
        matched, moved = alignkit.solve(bound), alignkit.solve(bound, solver="frank_wolfe", restarts=1)
        assert moved.objective_after <= matched.objective_after * (1 + 1e-9)
        assert all(after.objective <= before.objective for before, after in pairwise(moved.history))

    @kinds
    def test_frank_wolfe_alone_comes_near_planted_elements(self, kind: str) -> None:
        pair = planted_pair(KIND_ARCHITECTURES[kind]())
        solution = alignkit.solve(pair.bind(), solver="frank_wolfe", polish=False)
        assert solution.objective_after < 0.5 * solution.objective_before

    @kinds
    @pytest.mark.parametrize("method", ["reference", "merge_many", pytest.param("universe", marks=pytest.mark.slow)])
    def test_copies_meet_in_one_place_and_others_come_closer(self, kind: str, method: str) -> None:
        architecture = KIND_ARCHITECTURES[kind]()
        graph, a = architecture.graph(), planted_pair(architecture).a
        copies = [Alignment.random(graph, seed).apply(a) for seed in range(3)]
        met = alignkit.align_many(graph, *copies, method=method)
        assert met.spread_after < 1e-20 * met.spread_before
        assert met.cycle_error == 0
        others = [independent_pair(architecture, seed=seed).a for seed in range(3)]
        assert (spread := alignkit.align_many(graph, *others, method=method, max_sweeps=3)).spread_after < (
            0.9 * spread.spread_before
        )


class TestActivations:
    @kinds
    @pytest.mark.parametrize("statistic", ["correlation", "covariance"])
    def test_planted_elements_are_found_from_activations(self, kind: str, statistic: str) -> None:
        pair = planted_pair(KIND_ARCHITECTURES[kind](), seed=4)
        solver = alignkit.solve(pair.bind(), solver="activation_matching", task=reproduction(pair), statistic=statistic)
        assert solver.alignment == pair.answer
        assert solver.objective_after < 1e-24 * solver.objective_before

    def test_a_chain_goes_on_where_activations_ended(self) -> None:
        pair = independent_pair(decoder(), seed=1)
        chain = alignkit.solve(pair.bind(), solver="activation_matching > weight_matching", task=reproduction(pair))
        assert chain.objective_after <= chain.stages[0].objective_after < chain.objective_before


@kinds
def test_trees_that_are_left_out_of_an_ascent_stay(kind: str) -> None:
    """Also where nothing else is known, and a first sweep chooses its own order."""
    pair = independent_pair(KIND_ARCHITECTURES[kind](), seed=1)
    start = Alignment.random(pair.graph, 1)
    for left_out in pair.graph.roots:
        kept = pair.graph.tree(left_out)
        elements = {name: start.elements[name] if name in kept else None for name in pair.graph.groups}
        others = [[root] for root in pair.graph.roots if root != left_out]
        run = Ascent(Objective(pair.bind())).run(elements, others)
        assert run.converged
        assert all(torch.equal(run.elements[name], start.elements[name]) for name in kept)
