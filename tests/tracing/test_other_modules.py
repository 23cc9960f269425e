"""Modules that hold more than plain weights: computed weights, compiled functions, exported graphs, jagged inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils import prune

import alignkit
from alignkit.errors import TraceError
from alignkit.tracing import trace
from helpers.trace_checks import layouts
from helpers.trace_models import Parts

X = torch.arange(12.0).square().sin().reshape(4, 3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def old_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": old_weight_norm,
    "l1_unstructured": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "ln_structured": lambda layer: prune.ln_structured(layer, "weight", 0.3, n=2, dim=0),
    "spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("ran", [False, True], ids=["new", "ran with gradients"])
def test_modules_that_compute_their_weights_are_verified_applied_and_merged(name: str, ran: bool) -> None:
    a, b = network(), network()
    for model in (a, b):
        for layer in (model[0], model[2]):
            COMPUTED[name](layer)
        if ran:
            model(X).sum().backward()
        model.eval()
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.add_(torch.arange(float(parameter.numel())).cos().reshape(parameter.shape) / 5)
    graph = trace(a, X)
    assert [group.size for group in graph.groups.values()] == [6, 5]
    graph.verify(a, X)
    aligned = alignkit.solve(graph, a, b, solver="weight_matching").apply(b)
    moved = alignkit.Alignment.random(graph, 1).apply(b)
    with torch.no_grad():
        assert torch.allclose(aligned(X), b(X), atol=1e-5) and torch.allclose(moved(X), b(X), atol=1e-5)
    assert not torch.equal(moved[2].bias, b[2].bias)


def test_a_compiled_function_runs_as_it_is_written() -> None:
    @torch.compile(backend="eager")
    def gated(x: Tensor, y: Tensor) -> Tensor:
        return x * y.sigmoid()

    torch.manual_seed(0)
    model = Parts(
        lambda net, x: net.leave(gated(net.one(x), net.two(x))),
        one=nn.Linear(3, 6),
        two=nn.Linear(3, 6),
        leave=nn.Linear(6, 2),
    )
    for _ in range(2):
        graph = trace(model, X)
        assert layouts(graph) == {
            "one.weight": "one .",
            "one.bias": "one",
            "two.weight": "one .",
            "two.bias": "one",
            "leave.weight": ". one",
        }
        with torch.no_grad():
            model(X)  # compiled now
        graph.verify(model, X)


def attending(x: Tensor) -> Tensor:
    heads = x.unflatten(-1, (2, -1)).transpose(0, 1)[None]
    return flex_attention(heads, heads, heads)[0].transpose(0, 1).flatten(1)


def branching(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("run", "said"),
    [(attending, 'flex_attention.*attn_implementation="sdpa"'), (branching, "cond.*plain Python control flow")],
)
def test_operators_that_take_functions_are_named_with_what_to_use(run: Callable[[Tensor], Tensor], said: str) -> None:
    torch.manual_seed(0)
    model = Parts(lambda net, x: net.leave(run(net.enter(x))), enter=nn.Linear(3, 4), leave=nn.Linear(4, 2))
    with pytest.raises(TraceError, match=said):
        trace(model, X)


def test_exported_modules_are_refused_with_what_to_trace() -> None:
    exported = torch.export.export(network(), (X,)).module()
    with pytest.raises(TraceError, match=r"torch\.export.*Trace the module that it was exported from"):
        trace(exported, X)


@pytest.mark.filterwarnings("ignore")
def test_jagged_inputs_are_refused() -> None:
    jagged = torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged)
    with pytest.raises(TraceError, match=r"nested .jagged. tensor.*padded"):
        trace(network(), jagged)
