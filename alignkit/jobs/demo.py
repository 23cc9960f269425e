"""Two small networks, trained from different seeds and aligned by every solver: the first thing to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alignkit.checkpoints.documents import Format
from alignkit.checkpoints.staging import write_text
from alignkit.checkpoints.weights import write_weights
from alignkit.errors import AlignkitError, MissingExtraError, UsageError
from alignkit.graph import Pair
from alignkit.jobs.solve import solve
from alignkit.plotting.pictures import plot_interpolations
from alignkit.plugins.plugin_registry import list_solvers
from alignkit.tasks.interpolation import Interpolation, interpolate
from alignkit.tasks.task import Task
from alignkit.tracing import trace

WIDTHS = (64, 128, 128, 10)
EPOCHS, BATCH, LEARNING_RATE = 40, 64, 1e-3
TEST_SAMPLES = 450
POINTS = 25
FORMAT = Format("alignkit.demo", "demo", "alignkit demo", UsageError)
FILES = ("demo.png", "demo.json", "model_a.safetensors", "model_b.safetensors", "spec.json")
"""What the demo writes; models and spec are those that ``alignkit solve`` takes."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the whole that is done."""


@dataclass(frozen=True)
class DemoRow:
    """One solver's line of the table.

    Attributes:
        solver: Name.
        distance_before: ``||A - B||^2``.
        distance_after: ``||A - P # B||^2``, None if the solver could not run.
        barrier: Loss barrier on the test split between A and aligned B.
        auc: Area under the same curve.
        midpoint_accuracy: Test accuracy of the average of A and aligned B.
        seconds: Time of the solver.
        problem: Why the solver could not run, else None.
    """

    solver: str
    distance_before: float
    distance_after: float | None = None
    barrier: float | None = None
    auc: float | None = None
    midpoint_accuracy: float | None = None
    seconds: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo found out.

    Attributes:
        rows: One for each solver, identity first.
        lines: The interpolations of the solvers that ran.
        accuracies: Test accuracy of A and of B.
        seed: Seed of model A; that of B is one larger.
        seconds: Time of the whole demo up to the pictures, training included.
    """

    rows: tuple[DemoRow, ...]
    lines: tuple[Interpolation, ...]
    accuracies: tuple[float, float]
    seed: int
    seconds: float

    def to_json(self) -> str:
        """Numbers of the table and of the curves."""
        values = {
            "seed": self.seed,
            "accuracy_a": self.accuracies[0],
            "accuracy_b": self.accuracies[1],
            "seconds": self.seconds,
            "solvers": [asdict(row) for row in self.rows],
            "lines": [line.to_dict() for line in self.lines],
        }
        return FORMAT.to_json(values)


class Digits(NamedTuple):
    """Images ``[n, 64]`` in 0..1 and classes ``[n]`` of the two splits."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


def run_demo(folder: str | Path, *, seed: int = 0, force: bool = False, progress: Progress | None = None) -> DemoResult:
    """Train two MLPs 64-128-128-10 on scikit-learn's digits, align them with every solver, and write what came out.

    Args:
        folder: Where `FILES` are written; created if it does not exist.
        seed: Seed of model A and of the solvers; model B has the next one.
        force: Replace files of these names even if they do not come from an earlier demo.
        progress: Told what is being done.

    Raises:
        MissingExtraError: scikit-learn or matplotlib is not installed.
        UsageError: Files of these names exist, and come from something else.
        WeightsError: The folder cannot be written to.
    """
    folder, report = Path(folder), progress or (lambda doing, done: None)
    digits = _digits()
    _check_folder(folder, force)
    started = perf_counter()
    model_a = train(digits, seed, lambda done: report("training model A", 0.4 * done))
    model_b = train(digits, seed + 1, lambda done: report("training model B", 0.4 + 0.4 * done))
    task = Task(model_a, (digits.test_inputs, digits.test_targets), "cross_entropy", "accuracy")
    data = Task(model_a, (digits.train_inputs, digits.train_targets), "cross_entropy", "accuracy")
    pair = trace(model_a, digits.test_inputs[:1]).bind(model_a, model_b)
    rows: list[DemoRow] = []
    lines: list[Interpolation] = []
    for index, name in enumerate(names := identity_first(list_solvers())):
        report(f"aligning with {name}", 0.8 + 0.2 * index / len(names))
        row, line = _aligned(pair, name, model_a, model_b, task, data, seed)
        rows.append(row)
        lines += [] if line is None else [line]
    report("drawing", 1.0)
    accuracies = (_accuracy(task, model_a), _accuracy(task, model_b))
    result = DemoResult(tuple(rows), tuple(lines), accuracies, seed, perf_counter() - started)
    _write(folder, result, pair, model_a, model_b)
    return result


def train(digits: Digits, seed: int, progress: Callable[[float], None] | None = None) -> nn.Sequential:
    """Train one MLP with Adam. Same seed, same machine, same weights; the global random state is left alone.

    Args:
        digits: The data; only the training split is used.
        seed: Seed of the initial weights and of the order of the samples.
        progress: Told the share of epochs that are done.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(wide, narrow) for wide, narrow in pairwise(WIDTHS)]
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        for epoch in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(digits.train_inputs)), BATCH):
                loss = nn.functional.cross_entropy(model(digits.train_inputs[rows]), digits.train_targets[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if progress is not None:
                progress((epoch + 1) / EPOCHS)
    return model.eval()


def identity_first(names: Iterable[str]) -> list[str]:
    """All names in alphabetical order, but identity first."""
    return sorted(names, key=lambda name: (name != "identity", name))


def _aligned(
    pair: Pair, name: str, model_a: nn.Module, model_b: nn.Module, task: Task, data: Task, seed: int
) -> tuple[DemoRow, Interpolation | None]:
    before = sum(float((pair.a[n].double() - pair.b[n].double()).square().sum()) for n in pair.a)
    try:
        solution = solve(pair, solver=name, task=data, seed=seed)
        line = interpolate(task, model_a, solution.apply(model_b), POINTS, label=name)
    except AlignkitError as error:
        return DemoRow(name, before, problem=str(error)), None
    middle = line.midpoint.metric
    return DemoRow(name, before, solution.objective_after, line.barrier, line.auc, middle, solution.seconds), line


def _accuracy(task: Task, model: nn.Module) -> float:
    metric = task.evaluate(model).metric
    assert metric is not None
    return metric


def _digits() -> Digits:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError('the demo needs scikit-learn and matplotlib: pip install "alignkit[demo]"') from error
    bunch = load_digits()
    parts = train_test_split(
        bunch.data / 16, bunch.target, test_size=TEST_SAMPLES, stratify=bunch.target, random_state=0
    )
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in parts)
    return Digits(train_x.float(), train_y, test_x.float(), test_y)


def _check_folder(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name a folder for the demo's results.")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not force and not _is_demo(folder):
        raise UsageError(f"{folder} holds {', '.join(there)} already. Choose another folder, or pass --force.")


def _is_demo(folder: Path) -> bool:
    try:
        FORMAT.read(folder / "demo.json")
    except UsageError:
        return False
    return True


def _write(folder: Path, result: DemoResult, pair: Pair, model_a: nn.Module, model_b: nn.Module) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be created: {error.strerror}.") from error
    write_weights(folder / "model_a.safetensors", model_a.state_dict())
    write_weights(folder / "model_b.safetensors", model_b.state_dict())
    plot_interpolations(result.lines, folder / "demo.png", title="Between two MLPs on digits (test split)")
    write_text(folder / "spec.json", json.dumps(pair.graph.spec(), indent=2) + "\n")
    write_text(folder / "demo.json", result.to_json())
