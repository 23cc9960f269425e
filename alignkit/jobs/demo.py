"""Two small networks, trained from different seeds and aligned by every solver: the first thing to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments
from alignkit.checkpoints.documents import Format
from alignkit.checkpoints.file_set import written_together
from alignkit.checkpoints.staging import check_writable, make_folder, write_text
from alignkit.checkpoints.weights import write_weights
from alignkit.errors import MissingExtraError, UsageError
from alignkit.jobs.compare.compare import compare
from alignkit.jobs.compare.comparison import Comparison, ComparisonRow
from alignkit.jobs.compare.job import Evaluation
from alignkit.jobs.estimate import Estimate, estimate
from alignkit.plugins.plugin_registry import list_solvers
from alignkit.reports import Facts, Report
from alignkit.tasks.task import Task
from alignkit.text import install_extra
from alignkit.tracing import trace

WIDTHS = (64, 128, 128, 10)
EPOCHS, BATCH, LEARNING_RATE = 40, 64, 1e-3
TEST_SAMPLES = 450
POINTS = 25
FORMAT = Format("alignkit.demo", "demo", "alignkit demo", UsageError, dict[str, Any])
FILES = ("demo.png", "demo.json", "model_a.safetensors", "model_b.safetensors", "spec.json")
"""What the demo writes; models and spec are those that ``alignkit solve`` takes."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the whole that is done."""


@dataclass(frozen=True)
class DemoResult:
    """Every solver on the two networks, judged on the test split, the identity first; and the test accuracy of A and B.

    ``seed`` is that of model A, B's is one larger; ``seconds`` is the time up to the pictures, training included.
    """

    comparison: Comparison
    accuracies: tuple[float, float]
    seed: int
    seconds: float

    def explain(self) -> str:
        """Return the table, and below it what A and B do alone."""
        alone = "Test accuracy: A {:.3f}, B {:.3f}.".format(*self.accuracies)
        return f"Two MLPs on digits, B aligned to A\n{self.comparison.explain()}\n{alone}"

    def facts(self) -> dict[str, Any]:
        """Return the numbers of the table and of the curves as plain values, as JSON takes them."""
        return {
            "seed": self.seed,
            "accuracy_a": self.accuracies[0],
            "accuracy_b": self.accuracies[1],
            "total_seconds": self.seconds,
            "comparison": self.comparison.facts(),
        }

    @check_arguments
    def report(self, title: str = "Two MLPs on digits", *, facts: Facts = None) -> Report:
        """Show the comparison as picture and table."""
        a, b = self.accuracies
        alone = {"test accuracy of A": f"{a:.3f}", "test accuracy of B": f"{b:.3f}"}
        return self.comparison.report(title, facts={**(facts or {}), **alone})


@check_arguments
def run_demo(folder: str | Path, *, seed: int = 0, force: bool = False, progress: Progress | None = None) -> DemoResult:
    """Train two MLPs 64-128-128-10 on scikit-learn's digits, align them with every solver, and write what came out.

    Args:
        folder: Where `FILES` are written; created if it does not exist.
        seed: Seed of model A and of the solvers; model B has the next one.
        force: Replace files of these names even if they do not come from an earlier demo.
        progress: Called with what is being done.

    Raises:
        MissingExtraError: scikit-learn or matplotlib is not installed.
        UsageError: Files of these names exist, and come from something else.
        WeightsError: The folder cannot be written to.
    """
    folder, report = Path(folder), progress or (lambda doing, share: None)
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError(f"the demo needs scikit-learn and matplotlib: {install_extra('demo')}.") from error
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name a folder for the demo's results.")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not force:
        try:  # an earlier demo is replaced, anything else is not
            FORMAT.read(folder / "demo.json")
        except UsageError:
            held = ", ".join(there)
            raise UsageError(f"{folder} holds {held} already. Choose another folder, or pass --force.") from None
    started, bunch = perf_counter(), load_digits()
    images, classes = (bunch.data / 16).astype("float32"), bunch.target
    parts = train_test_split(images, classes, test_size=TEST_SAMPLES, stratify=classes, random_state=0)
    inputs, test_inputs, targets, test_targets = map(torch.as_tensor, parts)
    model_a = train(inputs, targets, seed, lambda share: report("training model A", 0.4 * share))
    model_b = train(inputs, targets, seed + 1, lambda share: report("training model B", 0.4 + 0.4 * share))
    test = Task(model_a, (test_inputs, test_targets), "cross_entropy", "accuracy")
    data = Task(model_a, (inputs, targets), "cross_entropy", "accuracy")
    pair = trace(model_a, test_inputs[:1]).bind(model_a, model_b)
    names = sorted(list_solvers())
    number = count(1)

    def solved(row: ComparisonRow) -> None:
        report(f"aligned with {row.solver}", 0.8 + 0.2 * next(number) / len(names))

    report("aligning", 0.8)
    evaluation = Evaluation(test, POINTS)
    comparison = compare(pair, solvers=names, task=data, seeds=[seed], evaluation=evaluation, report=solved)
    metrics = [test.evaluate(model).metric for model in (model_a, model_b)]
    result = DemoResult(comparison, (metrics[0] or 0.0, metrics[1] or 0.0), seed, perf_counter() - started)
    make_folder(folder)
    with written_together():
        write_weights(folder / "model_a.safetensors", model_a.state_dict())
        write_weights(folder / "model_b.safetensors", model_b.state_dict())
        comparison.plot(folder / "demo.png", title="Between two MLPs on digits (test split)")
        write_text(folder / "spec.json", json.dumps(pair.graph.spec(), indent=2) + "\n")
        FORMAT.write(folder / "demo.json", result.facts())
    return result


@check_arguments
def estimate_demo(writes: Sequence[str] = ()) -> Estimate:
    """Estimate what the demo needs beside the training of its two networks; ``writes`` are its files, for the text."""
    graph = trace(_network(), torch.zeros(1, WIDTHS[0]))
    return estimate(graph, "demo", solver=sorted(list_solvers()), writes=writes)


def train(inputs: Tensor, targets: Tensor, seed: int, progress: Callable[[float], None]) -> nn.Sequential:
    """Train one MLP with Adam on images ``[n, 64]`` in 0..1 and classes ``[n]``.

    Same seed, same machine, same weights; the global random state is left alone. ``progress`` is called with the share
    of epochs that are done.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        for epoch in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(inputs)), BATCH):
                loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            progress((epoch + 1) / EPOCHS)
    return model.eval()


def _network() -> nn.Sequential:
    layers = [nn.Linear(wide, narrow) for wide, narrow in pairwise(WIDTHS)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
