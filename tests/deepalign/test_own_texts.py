"""Own texts: networks that say which token comes next write like what they learned from; others write none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from alignkit import Alignment, Task, average, fold, solve, trace
from alignkit.deepalign import own_texts
from alignkit.tasks.goals import by_outputs
from alignkit.tasks.measures import next_token
from alignkit.tasks.merged_runs import merged_runs
from helpers.folding_nets import gpt, llama, tokens

WORDS, LENGTH = 12, 6


class Reader(nn.Module):
    """Each token, and where asked for also the mean of those before or of all, through a hidden layer."""

    def __init__(self, hidden: int = 20, *, sees: str = "itself", words: int = WORDS, answer=lambda logits: logits):
        super().__init__()
        self.embed, self.hidden, self.read = nn.Embedding(WORDS, 8), nn.Linear(16, hidden), nn.Linear(hidden, words)
        self.sees, self.answer = sees, answer

    def forward(self, tokens, mask=None, others=None):
        x = self.embed(tokens)
        if others is not None:
            x = x + self.embed(others)
        counts = torch.arange(1, x.shape[1] + 1)[:, None]
        around = {"itself": x, "left": x.cumsum(1) / counts, "all": x.mean(1, keepdim=True).expand_as(x)}[self.sees]
        logits = self.read(torch.relu(self.hidden(torch.cat([x, around], -1))))
        return self.answer(logits if self.sees != "classes" else logits.mean(1))


def ids(rows=2, seed=0):
    return torch.randint(WORDS, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def deepalign(graph, a, b, **options):
    return solve(graph, a, b, solver="deepalign", **options)


def two(build):
    """Two fresh networks with graph, by keyword or by position."""
    torch.manual_seed(3)
    return build(), build()


ANSWERS = {
    "a tensor": lambda logits: logits,
    "by name": lambda logits: {"loss": None, "logits": logits},
    "first of several": lambda logits: (logits, logits.sum()),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("sees", ["itself", "left"])
@pytest.mark.parametrize("inputs", ["position", "keyword", "with a mask"])
def test_networks_that_say_what_comes_next_write(answer, sees, inputs):
    a, b = two(lambda: Reader(sees=sees, answer=ANSWERS[answer]))
    by_name = {"position": {}, "keyword": {"tokens": ids()}, "with a mask": {"tokens": ids(), "mask": ids() * 0 + 1}}
    graph = trace(a, **by_name[inputs]) if by_name[inputs] else trace(a, ids())
    notes = deepalign(graph, a, b, probes=16).notes
    assert notes["probes"] == f"16 texts of {LENGTH} tokens that both networks write"
    assert notes["midpoint steps"] == f"512 texts of {LENGTH} tokens that both networks write"


SILENT = {
    "reads in both directions": lambda: Reader(sees="all"),
    "another vocabulary than the inputs": lambda: Reader(words=WORDS + 1),
    "one answer a text": lambda: Reader(answer=lambda logits: logits.mean(1)),
    "hidden states": lambda: Reader(answer=lambda logits: logits @ torch.ones(WORDS, 5)),
    "no numbers": lambda: Reader(answer=lambda logits: logits + float("nan")),
}


@pytest.mark.parametrize("why", SILENT)
def test_others_are_run_on_random_tokens(why):
    a, b = two(SILENT[why])
    notes = deepalign(trace(a, ids()), a, b, probes=16).notes
    assert notes["probes"] == "16 random inputs as traced"


def test_texts_of_one_token_or_of_two_inputs_are_not_written():
    a, b = two(Reader)
    assert "write" not in deepalign(trace(a, ids()[:, :1]), a, b).notes["probes"]
    assert "write" not in deepalign(trace(a, tokens=ids(), others=ids(seed=1)), a, b).notes["probes"]


@pytest.mark.parametrize("limit", ["MAX_LOGITS", "MAX_PRODUCTS"])
def test_large_vocabularies_and_large_networks_do_not_write_for_hours(limit, monkeypatch):
    a, b = two(Reader)
    least = 512 * LENGTH * {"MAX_LOGITS": WORDS, "MAX_PRODUCTS": 32 * sum(p.numel() for p in a.parameters())}[limit]
    for allowed in (least, least - 1):
        monkeypatch.setattr(own_texts, limit, allowed)
        assert ("write" in deepalign(trace(a, ids()), a, b, probes=8).notes["probes"]) == (allowed == least)


@pytest.fixture(scope="module")
def learned():
    """Networks that learned a chain in which every word has a likely next one, and texts of it."""
    following = torch.randperm(WORDS, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    texts = torch.randint(WORDS, (400, 1), generator=generator)
    for _ in range(LENGTH):
        surprise = torch.rand(400, generator=generator) < 0.1
        wanted = torch.where(surprise, torch.randint(WORDS, (400,), generator=generator), following[texts[:, -1]])
        texts = torch.cat([texts, wanted[:, None]], 1)

    def trained(seed):
        torch.manual_seed(seed)
        model = Reader(24, sees="left")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten()).backward()
            optimizer.step()
        return model.eval()

    models = [trained(seed) for seed in range(6)]
    return SimpleNamespace(models=models, graph=trace(models[0], ids()), texts=texts, following=following)


def test_texts_are_like_those_that_were_learned(learned, monkeypatch):
    seen = []
    write = own_texts._Writers.write
    monkeypatch.setattr(own_texts._Writers, "write", lambda self, n: seen.append(write(self, n)) or seen[-1])
    deepalign(learned.graph, *learned.models[:2], probes=200)
    texts = seen[0].inputs
    likely = (learned.following[texts[:, :-1]] == texts[:, 1:]).double().mean()
    assert likely > 0.8, "random tokens have 0.08, the texts that were learned 0.91"


def test_the_middle_is_better_without_data_and_in_any_order_of_units(learned):
    def loss(**options):
        total = 0.0
        for a, b in zip(learned.models[::2], learned.models[1::2], strict=True):
            middle = average([a, deepalign(learned.graph, a, b, **options).apply(b)])
            logits = middle(learned.texts[:, :-1]).flatten(0, 1)
            total += nn.functional.cross_entropy(logits, learned.texts[:, 1:].flatten()).item()
        return total

    graph, (a, b) = learned.graph, learned.models[:2]
    assert loss() < loss(midpoint_steps=0)
    plain = deepalign(graph, a, b).alignment
    left, right = (Alignment.random(graph, seed) for seed in (7, 8))
    assert deepalign(graph, left.apply(a), right.apply(b)).alignment == left @ plain @ right.inverse()
    assert deepalign(graph, a, right.apply(a)).alignment == right.inverse()


def test_data_come_first_and_random_inputs_of_a_task_are_written(learned):
    a, b = learned.models[:2]
    inputs, wanted = learned.texts[:, :-1], learned.texts[:, 1:]

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    task = Task(a, (inputs, wanted), loss)
    assert deepalign(learned.graph, a, b, task=task).notes["probes"] == "128 inputs of the task"
    assert "both networks write" in deepalign(learned.graph, a, b, task=task, inputs="random").notes["probes"]


@pytest.mark.parametrize("build", [gpt, llama])
def test_rotations_are_turned_by_own_texts(build):
    a, b = (build(seed).model for seed in (0, 1))
    graph = trace(a, *tokens(), symmetries="all")
    left, right = (fold(network, graph).network for network in (a, b))
    solution = deepalign(graph, left, right, midpoint_steps=20)
    assert "both networks write" in solution.notes["midpoint steps"]
    task = Task(left, [(*tokens(), tokens()[0])], next_token)

    def deviation(found):
        middle = average([left, found.apply(right)])
        loss = by_outputs(merged_runs(task), *map(task.checked, (left, right)), next(iter(task.batches)))
        return loss(0.5, middle.state_dict())

    assert deviation(solution) < deviation(deepalign(graph, left, right, midpoint_steps=0))
