"""State outside state dicts: two modules that differ in it are refused by name, and nothing else is."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import alignkit
from alignkit import SymmetryGraph, builders
from alignkit.errors import AlignkitError, AlignmentError, BindError, VerificationError

SPEC = {"one.weight": "h .", "one.bias": "h", "two.weight": ". h", "two.bias": "."}


class Net(nn.Module):
    """A perceptron whose outputs depend on what stands outside its state dict."""

    def __init__(self, **attributes):
        super().__init__()
        self.one, self.act, self.two = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        self.settings()
        return self.two(self.act(self.one(x)))

    def settings(self):
        """Read what the cases set; those that do not set it would fail, so it is not run."""
        return lambda: (
            *(self.scale, self.pos, self.c, self.eps, self.num_heads, self.causal, self.mode, self._scale),
            *(self.cut, self.act2, self.f, self.cfg, self.parts),
        )


class Other(Net):
    """The same names of tensors, another function."""

    def forward(self, x):
        self.settings()
        return self.two(torch.tanh(self.one(x)))


def with_buffer(value, persistent=False):
    net = Net()
    net.register_buffer("pos", value, persistent=persistent)
    return net


def with_part(part):
    net = Net()
    net.act = part
    return net


def with_hidden_module(scale):
    torch.manual_seed(scale)
    return Net(parts=[nn.Linear(2, 2)])


def scaled(factor):
    return lambda x: factor * x


ONES, RAMP = torch.ones(4), torch.arange(4.0)
DIFFERENT = {
    "a buffer": (with_buffer(ONES), with_buffer(RAMP), "non-persistent buffer 'pos' of the model differs"),
    "a buffer that one has": (with_buffer(ONES), Net(), "non-persistent buffer 'pos' of the model is in A only"),
    "a buffer of another shape": (with_buffer(ONES), with_buffer(torch.ones(5)), "buffer 'pos'"),
    "a buffer of another dtype": (with_buffer(ONES), with_buffer(ONES.long()), "buffer 'pos'"),
    "a buffer of another precision": (with_buffer(RAMP / 3), with_buffer((RAMP / 3).double() * 1.001), "buffer 'pos'"),
    "a tensor": (Net(scale=ONES), Net(scale=RAMP), "attribute 'scale' of the model differs"),
    "a tensor that one has": (Net(), Net(scale=RAMP), "attribute 'scale' of the model is in B only"),
    "None and a tensor": (Net(scale=None), Net(scale=RAMP), "attribute 'scale'"),
    "a list of tensors": (Net(scale=[ONES, ONES]), Net(scale=[ONES, RAMP]), "attribute 'scale'"),
    "a longer list": (Net(scale=[ONES]), Net(scale=[ONES, ONES]), "attribute 'scale'"),
    "a tuple of tensors": (Net(scale=(ONES,)), Net(scale=(RAMP,)), "attribute 'scale'"),
    "a dict of tensors": (Net(scale={"a": ONES}), Net(scale={"a": RAMP}), "attribute 'scale'"),
    "a dict of dicts": (Net(c={"a": {"b": [1]}}), Net(c={"a": {"b": [2]}}), "attribute 'c'"),
    "an array": (Net(scale=np.ones(4)), Net(scale=np.arange(4.0)), "attribute 'scale'"),
    "a number": (Net(eps=1e-5), Net(eps=0.1), r"'eps' of the model differs \(1e-05 in A, 0.1 in B\)"),
    "a whole number": (Net(num_heads=2), Net(num_heads=4), "'num_heads'"),
    "a flag": (Net(causal=True), Net(causal=False), "'causal'"),
    "a text": (Net(mode="relu"), Net(mode="tanh"), "'mode'"),
    "a private number": (Net(_scale=1.0), Net(_scale=2.0), "'_scale'"),
    "a slice": (Net(cut=slice(0, 2)), Net(cut=slice(0, 3)), "'cut'"),
    "a function": (Net(act2=torch.relu), Net(act2=torch.tanh), "'act2'"),
    "a function of torch": (Net(f=nn.functional.gelu), Net(f=nn.functional.relu), "'f'"),
    "a lambda": (Net(f=lambda x: x), Net(f=lambda x: 2 * x), "'f'"),
    "what a function encloses": (Net(f=scaled(1.0)), Net(f=scaled(3.0)), "'f'"),
    "a partial": (Net(f=functools.partial(pow, 2)), Net(f=functools.partial(pow, 3)), "'f'"),
    "a namespace": (Net(cfg=SimpleNamespace(a=1)), Net(cfg=SimpleNamespace(a=2)), "'cfg'"),
    "weights of a module in a list": (with_hidden_module(1), with_hidden_module(2), "'parts'"),
    "a setting of a part": (
        with_part(nn.LeakyReLU(0.1)),
        with_part(nn.LeakyReLU(0.3)),
        r"'negative_slope' of part 'act' differs \(0.1 in A, 0.3 in B\)",
    ),
    "the class of a part": (with_part(nn.ReLU()), with_part(nn.GELU()), "'act' is of two classes, ReLU and GELU"),
    "a part that one has": (with_part(nn.Sequential(nn.ReLU())), with_part(nn.Sequential()), "a ReLU, is in A only"),
    "the class": (Net(), Other(), "the model is of two classes, Net and Other"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_differs_is_refused_by_name(case):
    a, b, said = DIFFERENT[case]
    graph = SymmetryGraph.from_spec(SPEC, Net())
    with pytest.raises(BindError, match=said):
        graph.bind(a, b)
    graph.bind(a.state_dict(), b.state_dict())  # the way out that the message names
    graph.bind(a, copy.deepcopy(a))


JOBS = {
    "solve": lambda g, a, b: alignkit.solve(g, a, b),
    "merge": lambda g, a, b: alignkit.merge(g, a, b),
    "distance": lambda g, a, b: alignkit.distance(g, a, b),
    "align_many": lambda g, a, b: alignkit.align_many(g, a, copy.deepcopy(a), b),
    "merge of many": lambda g, a, b: alignkit.merge(g, a, copy.deepcopy(a), b),
    "average": lambda g, a, b: alignkit.average([a, copy.deepcopy(a), b]),
    "transport": lambda g, a, b: alignkit.transport(g, a, a, tuned=b),
    "interpolate": lambda g, a, b: alignkit.interpolate(TASK, a, b),
    "a task": lambda g, a, b: alignkit.Task(a, (torch.zeros(2, 3), torch.zeros(2, 2)), "mse").evaluate(b),
    "canonicalize": lambda g, a, b: alignkit.canonicalize(g, [copy.deepcopy(a), b], reference=a),
    "repair": lambda g, a, b: alignkit.repair(a, [a, b], torch.zeros(2, 3)),
}
TASK = alignkit.Task(Net(), (torch.zeros(2, 3), torch.zeros(2, 2)), "mse")


@pytest.mark.parametrize("job", JOBS)
def test_every_job_with_two_modules_refuses(job):
    graph = SymmetryGraph.from_spec(SPEC, Net())
    with pytest.raises(AlignkitError, match=r"differ outside their weights.*'scale' of the model"):
        JOBS[job](graph, Net(scale=1.0), Net(scale=2.0))


def deep(net):
    return copy.deepcopy(net)


def trained(net):
    """A copy that was trained, run and watched."""
    net = copy.deepcopy(net).train()
    net.register_forward_hook(lambda *_: None)
    net.requires_grad_(False)
    net(torch.randn(4, 3))
    return net


def named(net, **attributes):
    net = copy.deepcopy(net)
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


def from_a_notebook():
    """The class of a cell that ran again."""

    class Cell(Net):
        rate = 0.5

        def forward(self, x):
            return super().forward(x) * self.rate

    return Cell()


def weight_normed(kind):
    torch.manual_seed(0)
    net = Net()
    kind(net.one)
    with torch.no_grad():
        net(torch.randn(2, 3))
    return net


class Parents(Net):
    """A part that knows the whole, and lists of its own parameters."""

    def __init__(self):
        super().__init__()
        self.one.whole = [self]
        self.mine = [self.one.weight, self.two]
        self.bound = self.forward


ALIKE = {
    "mode, hooks, gradients": (Net(), trained(Net())),
    "names and caches": (Net(), named(Net(), name="b", _cache=RAMP, run_path="x", lr=0.1, global_step=7, calls=3)),
    "what nobody reads": (
        Net(),
        named(Net(), best_acc=0.9, history=[1], activations={"one": RAMP}, config={"seed": 1}),
    ),
    "dropout": (with_part(nn.Dropout(0.1)), with_part(nn.Identity())),
    "the rate of dropout": (with_part(nn.Dropout(0.1)), with_part(nn.Dropout(0.5))),
    "in place": (with_part(nn.ReLU(inplace=True)), with_part(nn.ReLU())),
    "the class of a cell that ran twice": (from_a_notebook(), from_a_notebook()),
    "lambdas of one place": (Net(f=scaled(2.0)), Net(f=scaled(2.0))),
    "not a number": (Net(scale=float("nan")), Net(scale=float("nan"))),
    "a tensor that holds NaN": (with_buffer(ONES * torch.nan), with_buffer(ONES * torch.nan)),
    "saved buffers": (with_buffer(ONES, True), with_buffer(RAMP, True)),
    "parents and lists of parameters": (Parents(), Parents()),
    "meta tensors": (with_buffer(ONES.to("meta")), with_buffer(ONES.to("meta"))),
    "objects of libraries": (Net(lock=torch.Generator()), Net(lock=torch.Generator())),
    "ordered dicts": (Net(d=OrderedDict(a=1, b=2)), Net(d=OrderedDict(b=2, a=1))),
}


@pytest.mark.parametrize("case", ALIKE)
def test_what_changes_no_output_is_not_refused(case):
    a, b = ALIKE[case]
    sizes = {name: tuple(tensor.shape) for name, tensor in a.state_dict().items()}
    SymmetryGraph.from_spec({n: SPEC.get(n, " ".join("." * len(s))) for n, s in sizes.items()}, sizes).bind(a, b)


def tanh_of(net, x):
    return torch.tanh(x) * net.gain


class Reads(nn.Module):
    """Reads one of its attributes, in a way that is the case's."""

    def __init__(self, forward, name, value):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
        self.way = forward
        setattr(self, name, value)
        self.best = torch.rand(()).item()  # read by a method that no run calls

    def forward(self, x):
        return self.two(self.way(self, self.one(x)))

    def training_step(self, value):
        self.best = max(self.best, value)

    def helper(self, x):
        return x * self.gain

    @property
    def twice(self):
        return 2 * self.gain


KEYS = ["gain"]
READINGS = {
    "a name that sounds harmless": (lambda net, x: getattr(torch, net.act_name)(x), "act_name", ("relu", "tanh")),
    **{
        name: (eval(f"lambda net, x: x * net.{name}"), name, (1.0, 2.0))
        for name in ("loss_scale", "cache_scale", "device_scale", "backdrop", "output_hidden_scale", "criterion_weight")
    },
    "a step in time": (lambda net, x: x * net.time_step, "time_step", (1.0, 0.5)),
    "another method": (lambda net, x: net.helper(x), "gain", (1.0, 2.0)),
    "a property": (lambda net, x: x * net.twice, "gain", (1.0, 2.0)),
    "a function beside it": (lambda net, x: tanh_of(net, x), "gain", (1.0, 2.0)),
    "getattr": (lambda net, x: x * getattr(net, "gain", 1), "gain", (1.0, 2.0)),
    "a name that is put together": (lambda net, x: x * getattr(net, f"ga{'in'}"), "gain", (1.0, 2.0)),
    "a name in a list": (lambda net, x: x * sum(getattr(net, name) for name in KEYS), "gain", (1.0, 2.0)),
    "a name of two parts": (lambda net, x: x * getattr(net, "ga" + "in"[: len(x)]), "gain", (1.0, 2.0)),
    "a function inside": (lambda net, x: sum(y * net.gain for y in [x]), "gain", (1.0, 2.0)),
}


@pytest.mark.parametrize("case", READINGS)
def test_what_the_code_reads_is_compared_whatever_it_is_called(case):
    way, name, (mine, theirs) = READINGS[case]
    a, b, c = Reads(way, name, mine), Reads(way, name, theirs), Reads(way, name, mine)
    c.best = a.best if "a name" in case and "sounds" not in case else c.best  # any attribute may be meant there
    graph = SymmetryGraph.from_spec(SPEC, a)
    graph.bind(a, c)
    with pytest.raises(BindError, match=f"attribute {name!r} of the model differs"):
        graph.bind(a, b)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "kind",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
        lambda part: prune.l1_unstructured(part, "weight", 1),
    ],
)
def test_weights_that_are_computed_are_no_state_of_their_own(kind):
    a, b = weight_normed(kind), weight_normed(kind)
    copy.deepcopy(a)  # Python writes into the class of what it copies
    with torch.no_grad():
        for tensor in b.parameters():
            tensor.mul_(2)
        b(torch.randn(2, 3))
    sizes = {name: tuple(tensor.shape) for name, tensor in a.state_dict().items()}
    SymmetryGraph.from_spec({n: " ".join("." * len(s)) for n, s in sizes.items()}, sizes).bind(a, b)


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_copies_of_parametrised_modules(kind):
    a = nn.Sequential(kind(nn.Linear(4, 4)), nn.ReLU())
    for b in (copy.deepcopy(a), nn.Sequential(copy.deepcopy(kind(nn.Linear(4, 4))), nn.ReLU())):
        assert alignkit.average([a, b])(torch.zeros(1, 4)).shape == (1, 4)


def test_graphs_of_fx_are_compared_by_their_code():
    nets = [torch.fx.symbolic_trace(net) for net in (Net(), Net(), Other())]
    graph = SymmetryGraph.from_spec(SPEC, nets[0])
    graph.bind(nets[0], nets[1])
    with pytest.raises(BindError, match="'_code'"):
        graph.bind(nets[0], nets[2])


def test_attention_and_recurrent_layers_of_torch():
    for build in (
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
        lambda: nn.LSTM(3, 4, 2, bidirectional=True),
        lambda: nn.MultiheadAttention(8, 2),
    ):
        a, b = build(), build()
        sizes = {name: tuple(tensor.shape) for name, tensor in a.state_dict().items()}
        SymmetryGraph.from_spec({n: " ".join("." * len(s)) for n, s in sizes.items()}, sizes).bind(a, b)
    graph = SymmetryGraph.from_spec({n: " ".join("." * len(s)) for n, s in sizes.items()}, sizes)
    with pytest.raises(BindError, match=r"'num_heads' of the model differs \(2 in A, 4 in B\).*'head_dim'"):
        graph.bind(nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_modules_are_compared_inside():
    net = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.1), nn.Linear(4, 2))
    other = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.9), nn.Linear(4, 2))
    a, b, c = torch.compile(net), torch.compile(copy.deepcopy(net)), torch.compile(other)
    graph = builders.mlp(a)
    graph.bind(a, b)
    with pytest.raises(BindError, match="negative_slope"):
        graph.bind(a, c)


class Scaled(nn.Module):
    """Hidden units, each times its entry of a buffer that no state dict has."""

    def __init__(self, scale):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)) * self.scale)


@pytest.mark.parametrize("again", [lambda graph: graph, lambda graph: SymmetryGraph.from_json(graph.to_json())])
def test_what_a_trace_took_for_constant_has_to_be_so_in_every_model(again):
    """Also where only one module is at hand, and where two agree with each other but not with the traced one."""
    graph = again(alignkit.trace(Scaled(ONES), torch.zeros(1, 3)))
    assert list(graph.groups) == ["one"]
    a, b = Scaled(RAMP), Scaled(RAMP)
    said = "the non-persistent buffer 'scale' of {} holds several values"
    with pytest.raises(BindError, match=said.format("A")):
        graph.bind(a, b)
    solution = alignkit.solve(graph, a.state_dict(), b.state_dict())
    for refused in (solution.apply, solution.alignment.apply):
        with pytest.raises(AlignmentError, match=said.format("the model")):
            refused(b)
    with pytest.raises(VerificationError, match=said.format("the model")):
        graph.verify(b, torch.randn(2, 3))
    doubled = Scaled(2 * ONES)
    assert graph.verify(doubled, torch.randn(2, 3)).error < 1e-9  # another value, but one
    solution.apply(doubled)


def test_what_a_trace_did_not_take_for_constant_is_carried_along():
    graph = alignkit.trace(Scaled(RAMP), torch.zeros(1, 3))
    assert not graph.groups
    assert torch.equal(alignkit.Alignment.identity(graph).apply(Scaled(RAMP + 1)).scale, RAMP + 1)
