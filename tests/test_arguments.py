"""The checked front: a wrong argument is told at the door, whatever the function."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, SymmetryGraph, arguments
from alignkit.arguments import ANYTHING, check_arguments, kind_of
from alignkit.errors import AlignkitError, ArgumentError

NOT_CHECKED = {
    "alignkit.hookimpl": "of pluggy",
    "alignkit.matching.linear_assignment": "called thousands of times by a solve; it checks its matrix itself",
    "alignkit.checkpoints.check_writable": "for the other rooms",
    "alignkit.checkpoints.prepare_output": "for the other rooms",
    "alignkit.checkpoints.scratch_beside": "for the other rooms",
    "alignkit.checkpoints.write_text": "for the other rooms",
    "alignkit.training.describe_networks": "for the other rooms",
}
"""Public functions that do not hold their arguments against annotations, and why."""


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every function of `alignkit` and its public rooms, and the methods of the classes that users call."""
    for room in ("alignkit", *(f"alignkit.{name}" for name in alignkit._ROOMS)):
        for name in import_module(room).__all__:
            value = getattr(import_module(room), name)
            if inspect.isfunction(value) and inspect.signature(value).parameters and room != "alignkit.testing":
                yield f"{room}.{name}", value
    for kind in (Alignment, SymmetryGraph, alignkit.SoftAlignment, alignkit.Solution, alignkit.Task):
        for name, member in vars(kind).items():
            function = getattr(member, "__func__", member)
            takes = inspect.isfunction(function) and len(inspect.signature(function).parameters) > 1
            if takes and (name == "__init__" or not name.startswith("_")) and "Solution.__init__" not in str(function):
                yield f"{kind.__name__}.{name}", function


PUBLIC = dict(public_functions())


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - NOT_CHECKED))
def test_every_public_function_is_checked(name: str) -> None:
    function = inspect.unwrap(PUBLIC[name], stop=lambda f: f.__code__.co_filename == arguments.__file__)
    assert function.__code__.co_filename == arguments.__file__, "decorate it with check_arguments, or say why not"
    kinds = arguments._expected(function.__wrapped__).kinds
    signature = inspect.signature(PUBLIC[name])
    open_ones = {n for n, kind in kinds.items() if kind is ANYTHING} - {"self", "cls"}
    assert {str(signature.parameters[n].annotation) for n in open_ones} <= {"Any", "object", "Figure"}


@check_arguments
def example(
    pair: alignkit.Pair | SymmetryGraph,
    *models: nn.Module | Mapping[str, Tensor] | str | Path,
    count: int = 1,
    scale: float = 1.0,
    exact: bool = False,
    method: Literal["linear", "slerp"] = "linear",
    shares: Sequence[float] | None = None,
    matrix: Float[Tensor, "n n"] | None = None,  # noqa: F722
    path: os.PathLike[str] | None = None,
    report: Callable[[str], None] | None = None,
    solver: type[alignkit.Solver[Any]] | None = None,
    **options: int,
) -> object:
    return pair, models, count, scale


GRAPH = SymmetryGraph.from_spec({"w": "h ."}, {"w": (3, 2)})


@pytest.mark.parametrize(
    "good",
    [
        {"count": np.int64(3), "scale": 3, "shares": np.ones(2)},
        {"count": -(2**63), "scale": np.float32(1), "exact": np.bool_(True), "shares": (1, 0.5)},
        {"method": "slerp", "shares": [0, 1], "matrix": torch.ones(2, 2), "path": Path("x"), "report": print},
        {"solver": alignkit.Solver, "other": 5},
    ],
)
def test_what_an_annotation_admits_goes_through(good: dict[str, Any]) -> None:
    models = (nn.Linear(2, 2), {"w": 3}, "a.pt", Path("b.pt"))
    assert example(GRAPH, *models, **good) == (GRAPH, models, good.get("count", 1), good.get("scale", 1.0))


@pytest.mark.parametrize("seed", [np.int64(2), np.uint8(2), np.arange(3)[2]])
def test_numbers_of_numpy_arrive_as_those_of_python(seed: Any) -> None:
    *_, count, scale = example(GRAPH, count=seed, scale=np.float32(0.5))
    assert (type(count), type(scale)) == (int, float)
    assert alignkit.Alignment.random(GRAPH, seed) == alignkit.Alignment.random(GRAPH, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda net, number: alignkit.compare(GRAPH, {"w": torch.ones(3, 2)}, {"w": torch.ones(3, 2)}, seeds=number),
        lambda net, number: alignkit.compare(GRAPH, {"w": torch.ones(3, 2)}, {"w": torch.ones(3, 2)}, solvers=number),
        lambda net, number: alignkit.repair(net, [net, net], number),
        lambda net, number: alignkit.reset_batchnorm(net, number),
    ],
)
def test_a_tensor_of_one_number_is_no_sequence(call: Any) -> None:
    with pytest.raises(AlignkitError, match=r"batches is a Tensor|iterator|no tensor with an axis of samples"):
        call(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.tensor(1))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"count": 1.5}, "count= has to be a whole number of 64 bits, found 1.5 of type float"),
        ({"count": True}, "found True of type bool"),
        ({"count": 10**30}, "of 64 bits"),
        ({"scale": "1"}, "scale= has to be a number, found '1' of type str"),
        ({"scale": 1j}, "of type complex"),
        ({"scale": 10**30}, "scale= has to be a number"),
        ({"exact": 1}, "exact= has to be True or False"),
        ({"method": "cubic"}, "method= has to be 'linear' or 'slerp', found 'cubic'"),
        ({"shares": 0.5}, "shares= has to be a sequence (each item a number) or None"),
        ({"shares": ["a"]}, "each item a number"),
        ({"shares": "ab"}, "found 'ab' of type str"),
        ({"shares": {0.5: 0.5}}, "of type dict"),
        ({"shares": torch.ones(2, 2)}, "of type Tensor"),
        ({"matrix": [[1.0]]}, "matrix= has to be a Tensor or None"),
        ({"path": b"x"}, "path= has to be a path or None"),
        ({"report": "print"}, "report= has to be a function or None"),
        ({"solver": int}, "solver= has to be a subclass of Solver or None"),
        ({"other": "x"}, "other= has to be a whole number"),
    ],
)
def test_what_it_does_not_admit_is_named(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        example(GRAPH, **bad)
    assert said in str(caught.value)
    assert str(caught.value).startswith("example(): ")


class Odd:
    @property
    def ndim(self) -> int:
        raise RuntimeError("asked for its axes")


@pytest.mark.parametrize("odd", [Odd(), 10**400, np.float64, type, ...])
@pytest.mark.parametrize("name", ["count", "scale", "exact", "method", "shares", "matrix", "path", "report"])
def test_odd_objects_are_refused_and_not_asked(name: str, odd: object) -> None:
    if name != "report" or not callable(odd):
        with pytest.raises(ArgumentError, match=f"{name}= has to be"):
            example(GRAPH, **{name: odd})


def test_positions_are_counted_and_advice_is_given() -> None:
    with pytest.raises(ArgumentError, match=r"models\[1\] has to be a Module, a Mapping, a text or a Path, found 3"):
        example(GRAPH, "a.pt", 3)
    with pytest.raises(ArgumentError, match=r"A graph comes from alignkit\.trace"):
        example(nn.Linear(2, 2))


@pytest.mark.parametrize("job", [alignkit.merge, alignkit.align_many])
def test_a_list_of_networks_is_told_to_come_one_after_the_other(job: Any) -> None:
    network = nn.Linear(2, 2)
    graph = SymmetryGraph.from_spec({"weight": "a .", "bias": "a"}, network)
    for listed in ([network, network], (network, network)):
        with pytest.raises(ArgumentError, match=r"one after the other: \w+\(\.\.\., \*models\)"):
            job(graph, listed)


def test_missing_and_unknown_arguments_are_errors_of_both_kinds() -> None:
    with pytest.raises(ArgumentError, match=r"^read_weights\(\): missing a required argument: 'path'"):
        alignkit.read_weights()  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match=r"'wieghts'\. Did you mean 'weights'"):
        alignkit.average([], wieghts=[1])  # type: ignore[call-arg]
    assert issubclass(ArgumentError, AlignkitError) and issubclass(ArgumentError, TypeError)


def test_iterators_are_not_consumed_and_values_are_not_read() -> None:
    class Unread(Mapping[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            raise AssertionError("read")

        def __iter__(self) -> Iterator[str]:
            raise AssertionError("read")

        def __len__(self) -> int:
            raise AssertionError("read")

    assert kind_of(Mapping[str, Tensor]).admits(Unread())
    numbers = iter([1, 2])
    assert kind_of(Iterator[int]).admits(numbers)
    assert list(numbers) == [1, 2]


GRAPH = SymmetryGraph.from_spec({"w": "h ."}, {"w": (3, 2)})
SIDES = ({"w": torch.ones(3, 2)}, {"w": torch.zeros(3, 2)})
ON_DEVICES: dict[str, Callable[[str], object]] = {
    "solve": lambda device: alignkit.solve(GRAPH, *SIDES, device=device),
    "merge": lambda device: alignkit.merge(GRAPH, *SIDES, device=device),
    "distance": lambda device: alignkit.distance(GRAPH, *SIDES, device=device),
    "transport": lambda device: alignkit.transport(GRAPH, *SIDES, tuned=SIDES[0], device=device),
    "align_many": lambda device: alignkit.align_many(GRAPH, *SIDES, device=device, method="universe"),
    "canonicalize": lambda device: alignkit.canonicalize(GRAPH, SIDES, SIDES[0], device=device),
    "compare": lambda device: alignkit.compare(GRAPH, *SIDES, device=device),
    "Task": lambda device: alignkit.Task(nn.Linear(2, 2), [], "mse", device=device),
    "peak_memory": lambda device: alignkit.jobs.peak_memory(device).__enter__(),
}


@pytest.mark.parametrize("device", ["warp", "0.5", "cuda:x", "cpu:-1", "\0"])
@pytest.mark.parametrize("call", ON_DEVICES)
def test_a_device_that_cannot_be_used_is_named(call: str, device: str) -> None:
    with pytest.raises(ArgumentError, match=r"device=.* cannot be used"):
        ON_DEVICES[call](device)


@pytest.mark.parametrize("field", ["test", "points", "repair"])
def test_fields_of_dataclasses_are_checked(field: str) -> None:
    with pytest.raises(ArgumentError, match=f"Evaluation.*{field}="):
        alignkit.Evaluation(**{field: object()})


def stop(*_: object) -> None:
    raise OverflowError("mine")


def without_parameters() -> None:
    raise AssertionError("called")


CALLBACKS: dict[str, Callable[[Any], object]] = {
    "compare": lambda call: alignkit.compare(GRAPH, *SIDES, solvers=["identity"], report=call),
    "solve_many": lambda call: alignkit.solve_many(GRAPH, [SIDES], report=call),
}


@pytest.mark.parametrize("callback", [without_parameters, nn.Linear(2, 2)], ids=["a function", "a module"])
@pytest.mark.parametrize("job", CALLBACKS)
def test_a_callback_that_cannot_take_its_argument_is_named(job: str, callback: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"{job}\(\): what report= calls failed: TypeError"):
        CALLBACKS[job](callback)


@pytest.mark.parametrize("job", CALLBACKS)
def test_what_a_callback_raises_is_for_its_owner(job: str) -> None:
    with pytest.raises(OverflowError, match="mine"):
        CALLBACKS[job](stop)


def test_progress_that_fails_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    alignkit.write_weights(tmp_path / "a.safetensors", {"w": torch.ones(3, 2)})
    checkpoint = alignkit.checkpoints.open_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match="on_progress= calls failed: TypeError"):
        alignkit.checkpoints.write_checkpoint(
            tmp_path / "b.safetensors", checkpoint, checkpoint.__getitem__, without_parameters
        )
    assert not (tmp_path / "b.safetensors").exists()
