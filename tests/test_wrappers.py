"""Modules that run another one: alignkit works on the one inside, whichever job is asked."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import Alignment, Task

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def data_parallel(module: nn.Module) -> nn.Module:
    """Wrap a module where there is no accelerator; other tests may have registered a pretended one."""
    with mock.patch("torch.nn.parallel.data_parallel._get_available_device_type", return_value=None):
        return nn.DataParallel(module)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nothing": lambda module: module,
    "DataParallel": data_parallel,
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "both": lambda module: torch.compile(data_parallel(module), backend="eager"),
}


@pytest.fixture(params=WRAPPERS)
def wrap(request: pytest.FixtureRequest) -> Callable[[nn.Module], nn.Module]:
    return WRAPPERS[request.param]


def test_wrapped_networks_are_traced_solved_and_applied(wrap: Callable[[nn.Module], nn.Module]) -> None:
    a, b = net(0), net(1)
    graph = alignkit.trace(wrap(a), X)
    assert graph == alignkit.trace(a, X)
    solution = alignkit.solve(graph, wrap(a), wrap(b))
    assert solution.alignment == alignkit.solve(graph, a, b).alignment
    aligned = solution.alignment.apply(wrap(b))
    assert list(aligned.state_dict()) == list(b.state_dict())
    torch.testing.assert_close(aligned(X), b(X))
    assert graph.verify(wrap(a), X).error < 1e-9


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


def test_wrapped_networks_are_merged_and_evaluated(wrap: Callable[[nn.Module], nn.Module]) -> None:
    a, b = net(0), net(1)
    graph = alignkit.trace(a, X)
    targets: Tensor = torch.tensor([0, 1, 2, 0, 1, 2])
    task, plain = (Task(w(a), (X, targets), "cross_entropy") for w in (wrap, lambda module: module))
    assert task.evaluate(wrap(b)).loss == plain.evaluate(b).loss
    assert same(alignkit.average([wrap(a), wrap(b)]), alignkit.average([a, b]))
    merged, expected = (alignkit.merge(graph, w(a), w(b)) for w in (wrap, lambda module: module))
    assert same(merged.network, expected.network)
    line = alignkit.interpolate(task, wrap(a), Alignment.identity(graph).apply(wrap(b)))
    assert line.losses == alignkit.interpolate(plain, a, b).losses


def test_a_network_that_was_compiled_once_is_still_itself() -> None:
    a, b = net(0), net(1)
    torch.compile(a, backend="eager")  # marks the module that it is given, too
    b.compile(backend="eager")
    a._compile_kwargs = {"backend": "eager"}  # by Lightning Fabric, which patches torch.compile
    assert (
        alignkit.solve(alignkit.trace(a, X), a, net(1)).alignment
        == alignkit.solve(alignkit.trace(a, X), a, b).alignment
    )
