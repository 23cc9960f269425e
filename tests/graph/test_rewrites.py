"""Folds and balances as a part of a graph: checked, written, read, told, and asked for before weights are used."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import Tensor

from alignkit import Alignment, SymmetryGraph
from alignkit.errors import AlignmentError, BindError, GraphError, SpecError
from alignkit.graph import (
    AxisOf,
    Balance,
    Blocked,
    Fold,
    Gain,
    Mean,
    OutputScale,
    Shift,
    Through,
    Untie,
    Zero,
)
from alignkit.graph.rewrites import FOLDS, REASONS, BalanceKind
from helpers.documents import unsealed

SHAPES = {
    "embed": (9, 6),
    "head": (9, 6),
    "norm.weight": (6,),
    "norm.bias": (6,),
    "qkv.weight": (16, 6),  # 2 key/value heads of 2 dimensions, 4 query heads
    "qkv.bias": (16,),
    "o.weight": (6, 8),
    "o.bias": (6,),
    "scale": (6,),
    "gate": (),
}
SPEC = {
    **dict.fromkeys(("embed", "head"), ". model"),
    **dict.fromkeys(("norm.weight", "scale"), "."),
    **dict.fromkeys(("norm.bias", "o.bias"), "model"),
    "qkv.weight": "(kv q[kv] 2)+(kv 2)+(kv v[kv]) model",
    "qkv.bias": "(kv q[kv] 2)+(kv 2)+(kv v[kv])",
    "o.weight": "model (kv q[kv] v[kv])",
}
VALUES = AxisOf("qkv.bias", 0, start=12)
READER = AxisOf("qkv.weight", 1)
WRITERS = (AxisOf("o.weight", 0), AxisOf("o.bias", 0))
ALL: tuple[Fold, ...] = (
    Untie("head", "embed"),
    OutputScale("scale", WRITERS),
    OutputScale("gate", (AxisOf("embed", 1),)),
    Shift("norm.bias", ((READER, "qkv.bias"),)),
    Gain("norm.weight", (READER,)),
    Zero(AxisOf("qkv.bias", 0, start=8, length=4)),
    Through(VALUES, AxisOf("o.weight", 1), "o.bias", heads=2),
    Mean((*WRITERS, AxisOf("embed", 1)), (READER,)),
)
BALANCES = (
    Balance("v", (AxisOf("qkv.weight", 0, start=12), VALUES), (AxisOf("o.weight", 1),), "invertible"),
    Balance("q", (AxisOf("qkv.bias", 0, 0, 8),), (AxisOf("o.weight", 1),), "scaled", degree=2),
)
BLOCKED = (Blocked("norm.bias", "no_bias", "head"), Blocked("scale", "tied", "embed"))


def graph_with(*folds: Fold, balances: tuple[Balance, ...] = (), blocked: tuple[Blocked, ...] = ()) -> SymmetryGraph:
    sizes = {"kv": 2, "q": 2, "v": 2}
    return SymmetryGraph.from_spec(SPEC, SHAPES, sizes=sizes, folds=folds, balances=balances, blocked=blocked)


FULL = graph_with(*ALL, balances=BALANCES, blocked=BLOCKED)


def folded_weights() -> dict[str, Tensor]:
    """Return random weights that went through every fold of `ALL`."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    for name in ("norm.weight", "scale", "gate"):
        weights[name] = torch.ones(SHAPES[name])
    weights["norm.bias"] = torch.zeros(6)
    weights["qkv.bias"][8:] = 0
    for name, axis in (("o.weight", 0), ("o.bias", 0), ("embed", 1), ("qkv.weight", 1)):
        weights[name] = weights[name] - weights[name].mean(axis, keepdim=True)
    return weights


class TestChecks:
    @pytest.mark.parametrize(
        ("fold", "message"),
        [
            (Gain("norm.wait", (READER,)), r"no tensor 'norm\.wait'.*norm\.weight"),
            (Gain("norm.weight", (AxisOf("o.weight", 1),)), r"'norm\.weight' of shape \(6,\) does not fit o\.weight"),
            (Gain("norm.weight", (AxisOf("o.weight", 2),)), r"'o\.weight', axis 2: the tensor has 2 axes"),
            (Gain("norm.weight", (AxisOf("o.weight", -1),)), r"'o\.weight', axis -1"),
            (Gain("norm.weight", (READER,), shift="qkv.bias"), "cannot belong to one norm"),
            (Gain("embed", (READER,)), r"'embed' of shape \(9, 6\) does not fit"),
            (Gain("gate", (READER,)), r"'gate' of shape \(\) does not fit"),
            (OutputScale("qkv.bias", WRITERS), r"does not fit o\.weight \(axis 0\)"),
            (Shift("norm.bias", ((READER, "o.bias"),)), r"'o\.bias' of shape \(6,\) cannot be the bias"),
            (Shift("norm.bias", ((AxisOf("o.weight", 1), "o.bias"),)), r"'norm\.bias' .* does not fit o\.weight"),
            (Zero(AxisOf("qkv.bias", 0, start=12, length=8)), r"axis 0: positions 12 to 19 does not lie on the axis"),
            (Zero(AxisOf("qkv.bias", 0, length=2, every=5)), "every 5 does not lie"),
            (Zero(AxisOf("qkv.bias", 0, length=0)), "does not lie"),
            (Through(VALUES, AxisOf("o.weight", 1), "qkv.bias"), r"'qkv\.bias' of shape \(16,\) cannot be the bias"),
            (Through(VALUES, AxisOf("o.weight", 1), "o.bias", heads=3), "do not repeat 3 heads"),
            (Through(AxisOf("o.bias", 0), AxisOf("o.weight", 1), "o.bias"), "do not repeat"),
            (Untie("head", "o.weight"), "cannot be untied"),
            (Mean((AxisOf("nothing", 0),)), "no tensor 'nothing'"),
        ],
    )
    def test_a_fold_that_does_not_fit_is_refused_by_tensor_and_axis(self, fold: Fold, message: str) -> None:
        with pytest.raises(GraphError, match=message):
            graph_with(fold)

    @pytest.mark.parametrize(
        "folds",
        [
            (Gain("norm.weight", (READER,)), Gain("scale", (READER,))),
            (Gain("norm.weight", (READER, READER)),),
            (OutputScale("scale", WRITERS), OutputScale("gate", WRITERS[1:])),
        ],
    )
    def test_one_place_takes_one_factor(self, folds: tuple[Fold, ...]) -> None:
        with pytest.raises(GraphError, match=r"axis [01]: the folds of (gains|scales) name the same positions twice"):
            graph_with(*folds)

    @pytest.mark.parametrize(
        ("balance", "message"),
        [
            (Balance("w", (VALUES,), (AxisOf("o.weight", 1),), "scaled"), "'w', which is not a group"),
            (Balance("v", (), (AxisOf("o.weight", 1),), "scaled"), "needs tensors that write"),
            (Balance("v", (VALUES,), (VALUES,), "scaled"), r"'qkv\.bias', axis 0: the balance of 'v' names? the same"),
            (Balance("v", (VALUES,), (AxisOf("o.weight", 7),), "scaled"), r"'o\.weight', axis 7"),
            (Balance("v", (VALUES,), (AxisOf("o.weight", 1),), "invertible", degree=2), "degree 2"),
            (Balance("v", (VALUES,), (AxisOf("o.weight", 1),), "scaled", degree=0), "degree 0"),
        ],
    )
    def test_a_balance_that_does_not_fit_is_refused(self, balance: Balance, message: str) -> None:
        with pytest.raises(GraphError, match=message):
            graph_with(balances=(balance,))

    @pytest.mark.parametrize(("kind", "degree", "most"), [("scaled", 1, 2), ("scaled", 2, 1), ("invertible", 1, 1)])
    def test_a_tensor_stands_between_units_on_two_axes_at_most(self, kind: BalanceKind, degree: int, most: int) -> None:
        sizes = {"in": (4, 3), "cube": (4, 4, 4), "square": (4, 4), "out": (2, 4)}
        spec = {"in": "h .", "cube": "h h h", "square": "h h", "out": ". h"}
        for tensor, count in (("cube", 3), ("square", 2)):
            reads = (AxisOf("out", 1), *(AxisOf(tensor, axis) for axis in range(count)))
            balance = Balance("h", (AxisOf("in", 0),), reads, kind, degree)
            if count > most:
                with pytest.raises(
                    GraphError, match=f"'h' stands at {count} axes of tensor '{tensor}': at most {most}"
                ):
                    SymmetryGraph.from_spec(spec, sizes, balances=(balance,))
            else:
                SymmetryGraph.from_spec(spec, sizes, balances=(balance,))

    def test_tied_tensors_go_by_their_first_name(self) -> None:
        shared = torch.zeros(9, 6)
        like = {"embed": shared, "head": shared, "gain": torch.ones(6)}
        with pytest.raises(GraphError, match=r"no tensor 'head'\. Tied tensors go by their first name"):
            SymmetryGraph.from_spec({"embed": ". model", "gain": "."}, like, folds=[Gain("gain", (AxisOf("head", 1),))])

    def test_positions_of_a_segment_that_comes_again(self) -> None:
        shapes = {"w": (3, 12)}
        assert list(AxisOf("w", 1, start=1, length=2, every=4).positions(shapes)) == [1, 2, 5, 6, 9, 10]
        assert list(AxisOf("w", 1, start=2, every=6).positions(shapes)) == [2, 3, 4, 5, 8, 9, 10, 11]
        assert list(AxisOf("w", 0).positions(shapes)) == [0, 1, 2]


class TestValue:
    def test_folds_stand_in_the_order_in_which_they_are_done(self) -> None:
        backwards = graph_with(*reversed(ALL))
        assert [type(fold) for fold in backwards.folds] == sorted(map(type, ALL), key=FOLDS.index)
        assert {type(fold) for fold in FULL.folds} == set(FOLDS), "every fold is tested here"

    def test_json_and_pickle_keep_everything(self) -> None:
        for again in (SymmetryGraph.from_json(FULL.to_json()), pickle.loads(pickle.dumps(FULL))):
            assert (again.folds, again.balances, again.blocked) == (FULL.folds, FULL.balances, FULL.blocked)
            assert again == FULL

    def test_every_fold_and_balance_is_part_of_the_fingerprint(self) -> None:
        single = [graph_with(fold) for fold in ALL] + [graph_with(balances=(balance,)) for balance in BALANCES]
        offset = graph_with(Gain("norm.weight", (READER,), offset=1.0))
        assert len({graph.fingerprint for graph in (*single, offset, FULL, graph_with())}) == len(single) + 3
        assert graph_with(blocked=BLOCKED) == graph_with()

    def test_a_graph_of_an_earlier_release_is_read(self) -> None:
        facts = unsealed(graph_with().to_json())
        for key in ("folds", "balances", "blocked"):
            del facts["graph"][key]
        assert SymmetryGraph.from_json(json.dumps(facts)) == graph_with()

    @pytest.mark.parametrize(
        ("key", "change"),
        [
            ("folds", lambda listed: listed[4].update(offset=1.0)),
            ("folds", lambda listed: listed[4].update(fold="Melt")),
            ("folds", lambda listed: listed[4].update(gain="nothing")),
            ("folds", lambda listed: listed[4].update(extra=1)),
            ("folds", lambda listed: listed[4]["readers"][0].update(axis="first")),
            ("folds", lambda listed: listed.pop()),
            ("folds", lambda listed: listed.reverse()),
            ("balances", lambda listed: listed[0].update(kind="scaled")),
            ("balances", lambda listed: listed[0].update(kind="unknown")),
            ("blocked", lambda listed: listed[0].update(reason="weather")),
            ("blocked", lambda listed: listed[0].pop("tensor")),
        ],
    )
    def test_changed_text_is_refused(self, key: str, change) -> None:
        facts = unsealed(FULL.to_json())
        change(facts["graph"][key])
        with pytest.raises(SpecError):
            SymmetryGraph.from_json(json.dumps(facts))

    def test_the_report_tells_folds_balances_and_what_is_blocked(self) -> None:
        text = FULL.report()
        for rewrite in (*FULL.folds, *FULL.balances, *FULL.blocked):
            assert str(rewrite) in text
        assert "norm.bias stays: head reads it and has no bias that could take the shift." in text

    @pytest.mark.parametrize("reason", REASONS)
    def test_every_reason_is_a_sentence(self, reason) -> None:
        for where in ("", "aten.add in layers.0"):
            sentence = str(Blocked("ln.weight", reason, where))
            assert sentence.startswith("ln.weight stays: ") and sentence.endswith(".") and "{" not in sentence
            assert where in sentence


class TestFoldedWeights:
    def test_folded_weights_bind(self) -> None:
        weights = folded_weights()
        assert FULL.bind(weights, weights).graph == FULL

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
    def test_rounding_to_a_narrow_type_leaves_them_folded(self, dtype: torch.dtype) -> None:
        graph = graph_with(ALL[-1])
        weights = {name: tensor.to(dtype) for name, tensor in folded_weights().items()}
        graph.bind(weights, weights)
        graph.bind(*[{name: tensor.float() for name, tensor in weights.items()}] * 2)

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("norm.weight", lambda t: t * 1.001, "'norm.weight' is not 1"),
            ("norm.bias", lambda t: t + 1e-6, "'norm.bias' is not 0"),
            ("scale", lambda t: t * 2, "'scale' is not 1"),
            ("gate", lambda t: t * 0, "'gate' is not 1"),
            ("qkv.bias", lambda t: t + torch.eye(16)[9], r"'qkv.bias' \(positions 8 to"),
            (
                "qkv.bias",
                lambda t: t + torch.eye(16)[12],
                r"'qkv.bias' \(positions 12 on",
            ),
            ("embed", lambda t: t + 0.5, "'embed' has a mean along axis 1"),
            ("o.weight", lambda t: t + 0.5, "'o.weight' has a mean along axis 0"),
            ("qkv.weight", lambda t: t + 0.5, "'qkv.weight' has a mean along axis 1"),
        ],
    )
    def test_weights_that_are_not_folded_are_refused(self, name: str, change, message: str) -> None:
        good = folded_weights()
        bad = {**good, name: change(good[name])}
        with pytest.raises(
            BindError, match=rf"fold both models first: alignkit\.fold\(model, graph\).*{message}.*in B"
        ):
            FULL.bind(good, bad)
        with pytest.raises(AlignmentError, match=f"fold the weights first.*{message}"):
            Alignment.identity(FULL).apply(bad)

    def test_gemmas_gain_is_0_once_folded(self) -> None:
        graph = graph_with(Gain("norm.weight", (READER,), offset=1.0))
        ones = folded_weights()
        with pytest.raises(BindError, match=r"'norm\.weight' is not 0"):
            graph.bind(ones, ones)
        zeros = {**ones, "norm.weight": torch.zeros(6)}
        graph.bind(zeros, zeros)


def test_graphs_that_were_written_before_there_were_phases_are_read() -> None:
    """Fields of balances, and so files and fingerprints, are those of then."""
    spec = {"up.weight": "h .", "up.bias": "h", "down.weight": ". h"}
    shapes = {"up.weight": (5, 3), "up.bias": (5,), "down.weight": (2, 5)}
    sides = (AxisOf("up.weight", 0), AxisOf("up.bias", 0)), (AxisOf("down.weight", 1),)
    graph = SymmetryGraph.from_spec(spec, shapes, balances=[Balance("h", *sides, "scaled")])
    assert graph.fingerprint == "d342852b5f9894a0914489c0da369911"
    assert SymmetryGraph.from_json(graph.to_json()) == graph
