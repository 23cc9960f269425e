"""Networks that jobs make have running statistics that fit them, or say that they have not, and how to mend it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from alignkit import SymmetryGraph
from alignkit.errors import MergeError, TaskError
from alignkit.graph.bind import weights_of
from alignkit.jobs.average import average
from alignkit.jobs.merge import merge
from alignkit.jobs.repair import repair, reset_batchnorm
from alignkit.jobs.transport import transport
from alignkit.reports import markdown
from alignkit.tasks.task import Task

INPUTS = torch.randn(200, 4, generator=torch.Generator().manual_seed(3)) * 2 + 1


class Counting(nn.Module):
    """A norm whose statistics are of a kind that nobody but it knows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_max", torch.rand(6) + 1)

    def forward(self, x):
        return x / self.running_max


NORMS = {
    "batch": lambda: nn.BatchNorm1d(6),
    "sync": lambda: nn.SyncBatchNorm(6),
    "none": nn.Identity,
    "own": Counting,
}
STATISTICS = {"batch": ["1.running_mean", "1.running_var"], "none": [], "own": ["1.running_max"]}
STATISTICS["sync"] = STATISTICS["batch"]


def network(norm: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), NORMS[norm](), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running" in name:
                tensor += 0.5 * torch.rand(6)
    return model.eval()


def problem(norm: str, count: int = 2):
    models = [network(norm, seed) for seed in range(count)]
    spec = {name: "h" for name in models[0].state_dict() if name.startswith("1.") and "num" not in name}
    spec |= {"0.weight": "h .", "0.bias": "h", "3.weight": ". h", "3.bias": "."}
    spec |= {"1.num_batches_tracked": ""} if norm in ("batch", "sync") else {}
    targets = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(4))
    task = Task(models[0], (INPUTS, targets), "cross_entropy", "accuracy")
    return SymmetryGraph.from_spec(spec, models[0]), models, task


def equal(one, other):
    one, other = weights_of(one), weights_of(other)
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


@pytest.fixture(params=NORMS)
def norm(request):
    return request.param


@pytest.fixture(params=["modules", "mappings"])
def form(request):
    """How networks are given to a job."""
    return (lambda model: model) if request.param == "modules" else (lambda model: dict(model.state_dict()))


@pytest.fixture(params=["weight_matching", "identity"])
def solver(request):
    return request.param


# ---------------------------------------------------------------------- merge


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_merge_with_data_is_the_reset_average_and_tells_its_losses(norm, form, solver, count):
    graph, models, task = problem(norm, count)
    shares = list(range(1, count + 1))
    merged = merge(graph, *map(form, models), weights=shares, task=task, solver=solver)
    mended = task.network(average(list(map(weights_of, merged.aligned)), shares))
    plain = average(models, shares)
    if norm in ("batch", "sync"):
        mended, plain = reset_batchnorm(mended, task), reset_batchnorm(plain, task)
    assert equal(merged.network, mended)
    assert type(merged.network) is type(form(models[0]))
    facts = merged.facts()["task"]
    for name in ("loss", "accuracy"):
        each = [getattr(task.evaluate(model), "metric" if name == "accuracy" else name) for model in models]
        assert list(facts[f"{name}_of"].values()) == pytest.approx(each)
    assert facts["loss_average_aligned"] == pytest.approx(task.evaluate(merged.network).loss)
    assert facts["loss_average_unaligned"] == pytest.approx(task.evaluate(plain).loss, rel=1e-4)
    said = merged.explain()
    assert f"their average {facts['loss_average_unaligned']:.4f} unaligned" in said
    assert ("Barrier" in said) == (count == 2)
    text = markdown(merged.report())
    assert (
        f"| loss of the average | {facts['loss_average_unaligned']:.5g} | {facts['loss_average_aligned']:.5g} |" in text
    )
    json.dumps(merged.facts(), allow_nan=False)


@pytest.mark.parametrize("count", [2, 3])
def test_a_merge_repairs_where_it_is_asked_to(norm, form, count):
    graph, models, task = problem(norm, count)
    shares = [1 / count] * count
    merged = merge(graph, *map(form, models), task=task, repair=True)
    parents = [task.network(side) for side in merged.aligned]
    assert equal(merged.network, repair(task.network(average(parents)), parents, task, shares))
    assert merged.facts()["running_statistics"] == "repaired"
    assert "was given the mean and deviation that its parents have" in merged.explain()


@pytest.mark.parametrize("arguments", [{}, {"reset_batchnorm": False}], ids=["no data", "left on purpose"])
@pytest.mark.parametrize("count", [2, 3])
def test_an_average_with_statistics_that_do_not_fit_says_so(norm, form, arguments, count):
    graph, models, task = problem(norm, count)
    if arguments:
        arguments = {**arguments, "task": task}
    merged = merge(graph, *map(form, models), **arguments)
    assert equal(merged.network, average(list(map(weights_of, merged.aligned))))
    assert merged.facts()["running_statistics_left"] == STATISTICS[norm]
    assert ("Not usable yet" in merged.explain()) == bool(STATISTICS[norm])
    if norm in ("batch", "sync"):
        assert "--task package.module:function --force" in merged.explain()
        assert "model = alignkit.reset_batchnorm(model, batches)" in merged.explain()


@pytest.mark.parametrize("arguments", [{}, {"repair": True}], ids=["reset", "repair"])
def test_statistics_that_cannot_be_recomputed_are_named(form, arguments):
    graph, models, task = problem("own")
    merged = merge(graph, *map(form, models), task=task, **arguments)
    assert "running statistics (1.running_max) do not fit the new weights. They are no mean" in merged.explain()
    assert "recomputed on" not in merged.explain()


def test_statistics_that_all_parents_share_are_left_as_they_are(form):
    """As frozen ones, which are those of a network before it was fine-tuned."""
    graph, models, task = problem("batch", 3)
    for model in models:
        model[1].running_mean.fill_(0.5)
        model[1].running_var.fill_(2.0)
    for count in (2, 3):
        merged = merge(graph, *map(form, models[:count]), task=task)
        assert merged.facts()["running_statistics"] == "none"
        assert torch.equal(weights_of(merged.network)["1.running_var"], torch.full((6,), 2.0))
    carried = transport(graph, *map(form, models[:2]), tuned=form(models[2]))
    assert "usable" not in carried.explain()


@pytest.mark.parametrize("weights", [[1, 0], [0, 1]])
def test_a_network_that_is_one_of_its_parents_needs_nothing(norm, form, weights):
    graph, models, task = problem(norm)
    for arguments in ({}, {"task": task}, {"task": task, "repair": True}):
        merged = merge(graph, *map(form, models), weights=weights, **arguments)
        assert merged.facts()["running_statistics"] == "none"
        assert equal(merged.network, merged.aligned[weights.index(1)])
        assert "usable" not in merged.explain()


@pytest.mark.parametrize("count", [2, 3])
def test_reports_have_the_losses_and_what_became_of_statistics(count):
    graph, models, task = problem("batch", count)
    merged = merge(graph, *models, task=task)
    facts, text = merged.facts()["task"], markdown(merged.report())
    assert (
        f"| loss of the average | {facts['loss_average_unaligned']:.5g} | {facts['loss_average_aligned']:.5g} |" in text
    )
    assert text.count("| loss of ") == count + 1
    assert "were recomputed on the inputs of the task" in text
    assert "Not usable yet" in markdown(merge(graph, *models).report())
    carried = transport(graph, *models[:2], tuned=models[-1], task=task)
    assert "## The task" in markdown(carried.report())


def test_losses_on_the_line_are_those_of_reset_networks(form):
    graph, models, task = problem("batch")
    line = merge(graph, *map(form, models), task=task, solver="identity").losses.lines.identity
    middle = reset_batchnorm(average(models), task)
    assert line.midpoint.loss == pytest.approx(task.evaluate(middle).loss, rel=1e-4)
    assert line.losses[0] == pytest.approx(task.evaluate(models[0]).loss)
    assert line.losses[-1] == pytest.approx(task.evaluate(models[1]).loss)


def test_the_losses_are_those_of_the_shares_and_the_method(form):
    graph, models, task = problem("none")
    merged = merge(graph, *map(form, models), task=task, weights=[0.9, 0.1], method="slerp")
    found = merged.losses.averages.measures["loss"]
    assert found["aligned"] == pytest.approx(task.evaluate(merged.network).loss)
    assert found["unaligned"] == pytest.approx(task.evaluate(average(models, [0.9, 0.1], "slerp")).loss)


# ---------------------------------------------------------------------- transport


def test_a_carried_fine_tune_is_reset_and_tells_its_losses(norm, form):
    graph, (a, b, tuned), task = problem(norm, 3)
    carried = transport(graph, form(a), form(b), tuned=form(tuned), task=task)
    left = transport(graph, form(a), form(b), tuned=form(tuned), task=task, reset_batchnorm=False)
    expected = left.network
    if norm in ("batch", "sync"):
        expected = reset_batchnorm(task.network(expected), task)
    assert equal(carried.network, expected)
    assert type(carried.network) is type(form(b))
    facts = carried.facts()["task"]
    networks = {"base A": a, "tuned A": tuned, "base B": b, "carried": carried.network}
    assert facts["loss"] == pytest.approx({name: task.evaluate(model).loss for name, model in networks.items()})
    assert f"base B {facts['loss']['base B']:.4f}, carried {facts['loss']['carried']:.4f}" in carried.explain()
    for silent in (left, transport(graph, form(a), form(b), tuned=form(tuned))):
        assert silent.facts()["running_statistics_left"] == STATISTICS[norm]
        assert ("Not usable yet" in silent.explain()) == bool(STATISTICS[norm])


def test_a_carried_fine_tune_is_repaired_where_it_is_asked_to(form):
    graph, (a, b, tuned), task = problem("none", 3)
    carried = transport(graph, form(a), form(b), tuned=form(tuned), task=task, repair=True)
    left = transport(graph, form(a), form(b), tuned=form(tuned), alignment=carried.alignment)
    assert equal(carried.network, repair(task.network(left.network), [b], task))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_fine_tune_that_changes_nothing_needs_nothing(norm, form, scale):
    graph, (a, b, tuned), task = problem(norm, 3)
    carried = transport(graph, form(a), form(b), tuned=form(a if scale else tuned), task=task, scale=scale)
    assert carried.facts()["running_statistics"] == "none"
    assert equal(carried.network, b)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("job", ["merge", "transport"])
def test_wrong_data_is_refused_before_anything_is_solved(job, form):
    graph, models, _ = problem("batch", 3)
    a, b, tuned = map(form, models)
    call = {
        "merge": lambda **arguments: merge(graph, a, b, solver="no such solver", **arguments),
        "transport": lambda **arguments: transport(graph, a, b, tuned=tuned, solver="no such solver", **arguments),
    }[job]
    with pytest.raises(MergeError, match="repair=True runs the networks on data: pass task="):
        call(repair=True)
    with pytest.raises(TaskError, match="do not fit the task's model"):
        call(task=Task(nn.Linear(4, 3), (INPUTS, torch.zeros(200).long()), "cross_entropy"))


@pytest.mark.parametrize("job", ["merge", "transport"])
def test_batches_that_fail_are_named(job, form):
    graph, models, _ = problem("batch", 3)
    a, b, tuned = map(form, models)
    whole = torch.randn(4, 4), torch.zeros(4).long()
    task = Task(models[0], [whole, (torch.randn(4, 5), torch.zeros(4).long())], "cross_entropy")
    with pytest.raises(TaskError, match="the model fails on batch 1"):
        merge(graph, a, b, task=task) if job == "merge" else transport(graph, a, b, tuned=tuned, task=task)
    single = Task(models[0], [whole, (torch.randn(1, 4), torch.zeros(1).long())], "cross_entropy")
    with pytest.raises(MergeError, match="'1' cannot take statistics of a batch"):
        merge(graph, a, b, task=single) if job == "merge" else transport(graph, a, b, tuned=tuned, task=single)
