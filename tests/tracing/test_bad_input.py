"""Models and inputs that cannot be traced as they are: each with a message that says what to do."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from alignkit.errors import TraceError
from alignkit.graph.proof.perturb import perturbed
from alignkit.tracing import trace
from helpers.trace_checks import counts, proved

X = torch.linspace(-1, 1, 10).reshape(2, 5)


class Branching(nn.Module):
    """Runs code that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if h.sum().item() > -1:
            h = h * h.mean().item()
        return self.b(h)


@dataclass
class Answer:
    scores: Tensor
    extras: dict[str, list[Tensor]]


class Nested(nn.Module):
    """Returns tensors in a dataclass, a dictionary and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Answer:
        hidden = self.a(x).relu()
        inner = self.b(hidden)
        return Answer(self.c(inner), {"hidden": [hidden]})


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def test_a_model_that_does_not_run_says_why() -> None:
    with pytest.raises(TraceError, match=r"Sequential does not run on the inputs given.*Check the shapes"):
        trace(mlp(), torch.zeros(2, 7))


def test_missing_inputs_are_named() -> None:
    with pytest.raises(TraceError, match=r"missing 1 required positional argument.*Pass all arguments"):
        trace(mlp())


def test_token_ids_of_the_wrong_type_are_told() -> None:
    with pytest.raises(TraceError, match="token ids are integers"):
        trace(nn.Embedding(5, 4), torch.zeros(2, 3))


def test_half_precision_traces_on_fake_tensors() -> None:
    graph = trace(mlp().half(), X.half())
    assert counts(graph) == (1, 0)
    assert graph.provenance.tensors == "fake"


def test_half_precision_with_other_inputs_says_what_to_do() -> None:
    with pytest.raises(TraceError, match=r"Its weights are float16\. Trace model\.float\(\)"):
        trace(Branching().half(), X)


def test_nested_outputs_are_all_fixed() -> None:
    torch.manual_seed(0)
    graph = proved(Nested(), X)
    assert list(graph.groups) == ["b"]


def test_lazy_parameters_ask_for_a_run() -> None:
    with warnings.catch_warnings(action="ignore"):
        model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(TraceError, match=r"lazy tensors without a shape: 0\.weight.*Call the model once"):
        trace(model, X)


def test_meta_parameters_are_enough() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    graph = trace(model, X)
    assert counts(graph) == (1, 0)
    assert graph == trace(mlp(), X)


def test_recurrent_layers_on_meta_are_enough() -> None:
    with torch.device("meta"):
        model = nn.LSTM(5, 8)
    graph = trace(model, X)
    assert graph.provenance.tensors == "fake"
    assert not graph.groups


def test_value_dependent_code_falls_back_to_real_tensors() -> None:
    torch.manual_seed(0)
    graph = proved(Branching(), X)
    assert graph.provenance.tensors == "real"
    assert counts(graph) == (1, 0)


def test_value_dependent_code_without_values_says_what_to_do() -> None:
    with torch.device("meta"):
        model = Branching()
    with pytest.raises(TraceError, match=r"a\.weight is on the meta device.*load the weights"):
        trace(model, X)


def test_scripted_modules_are_refused() -> None:
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(mlp())
    with pytest.raises(TraceError, match="scripted module"):
        trace(scripted, X)


def test_modules_with_a_compiled_one_inside_are_refused() -> None:
    with pytest.raises(TraceError, match="compiled module"):
        trace(nn.Sequential(torch.compile(mlp(), backend="eager")), X)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).train()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    weight = model[0].weight
    trace(model, X)
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert model[0].weight is weight
    assert weight.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_a_model_stores_while_it_runs_does_not_stay() -> None:
    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.table = nn.Linear(5, 3), {}

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.a(x)
            self.table["last"] = self.last
            return self.last

    model = Caches()
    trace(model, X)
    assert not hasattr(model, "last")
    assert model.table == {}


def test_the_same_model_gives_the_same_graph() -> None:
    model = perturbed(Nested())
    assert trace(model, X).spec() == trace(model, X).spec()


def quantised(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {type(layer)})


@pytest.mark.parametrize("layer", [nn.Linear(5, 8), nn.LSTM(5, 8), nn.GRUCell(5, 8)], ids=lambda x: type(x).__name__)
def test_packed_weights_are_named_with_what_to_trace_instead(layer: nn.Module) -> None:
    with pytest.raises(TraceError, match=r"packed weights.*0\..*Trace and align the model that it was quantised from"):
        trace(quantised(layer), X)


class Graph(nn.Module):
    """Hidden units that a matrix mixes between rows."""

    def __init__(self, matrix: Tensor, saved: bool, learned: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        if learned:
            self.matrix = nn.Parameter(matrix)
        else:
            self.register_buffer("matrix", matrix, persistent=saved)

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.matrix @ self.a(x)).relu())


def thin(kind: str) -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.eye(2).to_sparse() if kind == "coo" else torch.eye(2).to_sparse_csr()


@pytest.mark.parametrize("kind", ["coo", "csr"])
@pytest.mark.parametrize("learned", [False, True])
def test_saved_tensors_that_are_not_dense_are_named_with_what_to_do(kind: str, learned: bool) -> None:
    with pytest.raises(TraceError, match=r"not dense.*: matrix\. Store them with to_dense"):
        trace(Graph(thin(kind), saved=True, learned=learned), X)


def test_sparse_tensors_that_no_checkpoint_keeps_hold_no_units() -> None:
    torch.manual_seed(0)
    assert list(proved(Graph(thin("coo"), saved=False, learned=False), X).groups) == ["a"]
