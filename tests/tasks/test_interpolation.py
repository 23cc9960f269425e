"""The loss along a line: exact values, batching over the line, pictures, JSON."""

from __future__ import annotations

import builtins
import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from alignkit.errors import MissingExtraError, TaskError, WeightsError
from alignkit.graph.bind import Weights, weights_of
from alignkit.plotting import plot_interpolations
from alignkit.tasks import interpolation as evaluate
from alignkit.tasks.interpolation import Interpolation, interpolate
from alignkit.tasks.line import Line
from alignkit.tasks.task import Task
from helpers.documents import unsealed


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Branching(ConvNet):
    """Cannot run under vmap: Python looks at a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2.0 if float(self.conv.bias.sum()) > 0 else 1.0)


def network(seed: int, kind: type[ConvNet] = ConvNet) -> ConvNet:
    torch.manual_seed(seed)
    model = kind().double()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
        model.norm.num_batches_tracked.fill_(seed + 10)
    return model


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(30, 1, 6, 6, generator=generator).double(), torch.arange(30) % 3


def plain_loop(kind: type[ConvNet], points: int) -> list[tuple[float, float]]:
    """Loss and accuracy with a fresh network loaded at every point."""
    a, b, (x, y) = network(0, kind).state_dict(), network(1, kind).state_dict(), images()
    found = []
    for step in range(points):
        place = step / (points - 1)
        model = kind().double().eval()
        mixed = {n: (1 - place) * a[n] + place * b[n] if a[n].is_floating_point() else a[n] for n in a}
        model.load_state_dict(mixed)
        with torch.no_grad():
            out = model(x)
        found.append((functional.cross_entropy(out, y).item(), (out.argmax(1) == y).double().mean().item()))
    return found


@pytest.mark.parametrize("kind", [ConvNet, Branching])
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("budget", [1, 2**28])
def test_batched_over_lambda_equals_a_plain_loop(
    kind: type[ConvNet], chunk: int | None, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "BYTES_AT_ONCE", budget)
    task = Task(network(3, kind), images(), "cross_entropy", "accuracy", chunk=chunk)
    line = interpolate(task, network(0, kind), network(1, kind), points=9, label="x")
    losses, metrics = zip(*plain_loop(kind, 9), strict=True)
    assert line.lambdas == pytest.approx([i / 8 for i in range(9)])
    assert line.losses == pytest.approx(losses, rel=1e-12)
    assert line.metrics == pytest.approx(metrics, rel=1e-12)
    assert line.metric_name == "accuracy"
    assert line.midpoint.loss == line.losses[4]
    assert line.midpoint.metric == line.metrics[4]


def test_many_points_go_through_the_model_at_once() -> None:
    calls = []

    class Counting(ConvNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return super().forward(x)

    task = Task(network(3, Counting), images(), "cross_entropy")
    interpolate(task, network(0).state_dict(), network(1).state_dict(), points=25)
    assert len(calls) <= 2  # one to estimate the memory, one for all points


def test_fewer_points_at_once_when_memory_runs_out() -> None:
    sizes = []

    class Hungry(ConvNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kernel = torch._C._functorch.get_unwrapped(self.conv.weight) if in_vmap(self.conv.weight) else None
            points = 1 if kernel is None else len(kernel)
            sizes.append(points * len(x))
            if points * len(x) > 65:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return super().forward(x)

    def in_vmap(tensor: torch.Tensor) -> bool:
        return torch._C._functorch.is_batchedtensor(tensor)

    task = Task(network(3, Hungry), images(), "cross_entropy")
    line = interpolate(task, network(0).state_dict(), network(1).state_dict(), points=9)
    assert line.losses == pytest.approx([loss for loss, _ in plain_loop(ConvNet, 9)], rel=1e-12)
    assert max(sizes) > 65
    assert sizes[-1] <= 65


def test_ends_are_the_models_themselves_and_their_dtype_is_kept() -> None:
    a, b = network(0).float(), network(1).float()
    x, y = images()
    task = Task(a, (x.float(), y), "cross_entropy")
    line = interpolate(task, a, b, points=5)
    assert line.losses[0] == pytest.approx(task.evaluate(a).loss, rel=1e-6)
    assert line.losses[-1] == pytest.approx(task.evaluate(b).loss, rel=1e-6)


def test_a_model_without_anything_to_interpolate_gives_a_flat_line() -> None:
    x, y = images()
    task = Task(nn.Flatten(), (x, y), "cross_entropy")
    line = interpolate(task, nn.Flatten(), nn.Flatten(), points=3)
    assert len(set(line.losses)) == 1
    assert line.barrier == 0
    assert line.auc == 0


def test_barrier_and_auc_by_hand() -> None:
    line = Interpolation((0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 1.25, 4.0, 2.75, 3.0))
    assert line.excess == pytest.approx([0, -0.25, 2, 0.25, 0])
    assert line.barrier == pytest.approx(2)
    assert line.auc == pytest.approx(0.25 * (-0.25 + 2 + 0.25))


def test_below_the_straight_line_barrier_and_auc_are_clipped_at_zero() -> None:
    line = Interpolation((0.0, 0.5, 1.0), (1.0, 0.2, 3.0))
    assert line.barrier == 0
    assert line.auc == 0


def test_a_barrier_may_come_with_an_auc_of_zero() -> None:
    line = Interpolation((0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 0.0, 0.0, 1.2, 1.0))
    assert line.barrier == pytest.approx(0.2)
    assert line.auc == 0


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=9).filter(lambda v: len(v) % 2 == 1))
def test_json_round_trip_and_reversal(losses: list[float]) -> None:
    lambdas = tuple(i / (len(losses) - 1) for i in range(len(losses)))
    line = Interpolation(lambdas, tuple(losses), tuple(losses), "accuracy", "naïve")
    assert Interpolation.from_json(line.to_json()) == line
    back = Interpolation(lambdas, tuple(reversed(losses)))
    assert back.barrier == pytest.approx(line.barrier, abs=1e-9)
    assert back.auc == pytest.approx(line.auc, abs=1e-9)


def sample_line(label: str = "one", metric: bool = True) -> Interpolation:
    return Interpolation((0.0, 0.5, 1.0), (1.0, 2.0, 1.0), (0.9, 0.5, 0.9) if metric else None, "accuracy", label)


def change(**values: object) -> str:
    return json.dumps(unsealed(sample_line().to_json()) | values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as an interpolation: it is not JSON"),
        ("[1]", "not an interpolation"),
        ("{}", "not an interpolation"),
        (change(version=9), "version 9 .* Upgrade alignkit"),
        (change(losses=[1, 2]), "odd number of points"),
        (change(losses=["x", 1, 2]), "losses.0: Input should be a valid number"),
    ],
)
def test_json_that_is_no_interpolation(text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Interpolation.from_json(text)


@pytest.mark.parametrize("points", [-1, 0, 1, 2, 24])
def test_points_must_be_odd(points: int) -> None:
    task = Task(network(0), images(), "cross_entropy")
    with pytest.raises(TaskError, match=f"points is {points}: give an odd number"):
        interpolate(task, network(0), network(1), points=points)


def test_weights_that_do_not_fit_are_refused() -> None:
    task = Task(network(0), images(), "cross_entropy")
    state = network(1).state_dict()
    del state["out.bias"]
    with pytest.raises(TaskError, match=r"'out\.bias' is missing"):
        interpolate(task, network(0), state)


def test_a_loss_that_diverges_on_the_line_names_place_and_batch() -> None:
    bad = network(1)
    with torch.no_grad():
        bad.out.weight[0, 0] = float("nan")
    x, y = images()
    task = Task(network(0), [(x[:10], y[:10]), (x[10:], y[10:])], "cross_entropy")
    with pytest.raises(TaskError, match="between lambda = 0 and 1: the loss of batch 0 is nan"):
        interpolate(task, network(0), bad)


def test_pictures(tmp_path: Path) -> None:
    lines = [sample_line("identity"), sample_line("weight_matching")]
    figure = plot_interpolations(lines, tmp_path / "both.png", title="Digits")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["identity", "weight_matching"]
    sample_line().plot(str(tmp_path / "one.svg"))
    assert "<svg" in (tmp_path / "one.svg").read_text()
    assert len(plot_interpolations([sample_line(), sample_line(metric=False)], tmp_path / "x.pdf").axes) == 1


def test_pictures_on_given_axes() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert sample_line().plot(axes) is axes.figure
    assert len(axes.lines) == 1


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot be written as '\.txt'"):
        sample_line().plot(tmp_path / "picture.txt")
    with pytest.raises(WeightsError, match="does not exist"):
        sample_line().plot(tmp_path / "nowhere" / "picture.png")
    with pytest.raises(TaskError, match="no interpolation to draw"):
        plot_interpolations([], tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r'pip install "alignkit\[plot\]"'):
        sample_line().plot()


def test_a_line_prints_on_one_line_and_as_a_table_and_can_be_copied() -> None:
    line = Interpolation((0.0, 0.5, 1.0), (0.1, 0.4, 0.1), (0.9, 0.5, 0.9), "accuracy", "a & b")
    assert repr(line) == "Interpolation('a & b', 3 points, barrier 0.3, AUC 0.15)"
    table = line._repr_html_().replace(" style='text-align:left;white-space:pre'", "")
    assert "a &amp; b" in table and "<td>average</td><td>0.4</td><td>0.5</td>" in table
    assert pickle.loads(pickle.dumps(line)) == copy.deepcopy(line) == line


def test_the_line_is_exact_at_its_ends_and_lambda_is_the_share_of_b() -> None:
    a, b = {"w": torch.tensor([1.0, 3.0]), "n": torch.tensor(1)}, {"w": torch.tensor([2.0, 7.0]), "n": torch.tensor(2)}
    line = Line(a, b)
    assert torch.equal(line.at(0.0)["w"], a["w"]) and torch.equal(line.at(1.0)["w"], b["w"])
    assert line.at(0.25)["w"].tolist() == [1.25, 4.0] and int(line.at(1.0)["n"]) == 1
    assert line.stack(torch.tensor([0.25, 1.0]))["w"].tolist() == [[1.25, 4.0], [2.0, 7.0]]


@pytest.mark.parametrize("budget", [1, 2**28])
def test_networks_between_the_ends_are_changed_before_they_are_evaluated(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "BYTES_AT_ONCE", budget)
    task, other = Task(network(3), images(), "cross_entropy"), network(2)
    shares: list[float] = []

    def mend(weights: Weights, share: float) -> Weights:
        assert torch.allclose(weights_of(weights)["conv.weight"], line_at(share))
        shares.append(share)
        return other

    def line_at(share: float) -> torch.Tensor:
        return (1 - share) * network(0).conv.weight + share * network(1).conv.weight

    line = interpolate(task, network(0), network(1), points=5, mend=mend)
    assert shares == [0.25, 0.5, 0.75]
    assert line.losses == pytest.approx([task.evaluate(network(at)).loss for at in (0, 2, 2, 2, 1)])


@pytest.mark.parametrize("mend", [len, range, lambda weights, share: 1 / 0, lambda weights: weights])
def test_a_function_that_mends_and_fails_is_named_with_its_place(mend) -> None:
    task = Task(network(0), images(), "cross_entropy")
    with pytest.raises(TaskError, match=r"at lambda = 0.5: mend= fails"):
        interpolate(task, network(0), network(1), points=3, mend=mend)
