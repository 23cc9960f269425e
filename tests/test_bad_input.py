"""Bad input of every kind: each gives its own clear error, and none leaves a file behind.

A row is a name, the class of the error, what its message has to say, and the call. Every call gets the same folder of
good and damaged files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import alignkit
from alignkit import Alignment, SoftAlignment, Solution, SymmetryGraph, read_weights, write_weights
from alignkit.errors import (
    AlignkitError,
    AlignmentError,
    ArgumentError,
    AssignmentError,
    BindError,
    GraphError,
    ShapeMismatchError,
    SolverChoiceError,
    SolverError,
    SpecError,
    UndeterminedSizeError,
    WeightsError,
)
from helpers.bad_files import GRAPH, OTHER, SHAPES, SPEC, contents, fill, good


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


FAMILY = SymmetryGraph.from_spec({"w": "(heads d[heads])"}, {"w": (6,)}, sizes={"heads": 2})
SHARED = torch.ones(4)


def build(spec: Any = None, like: Any = None, **more: Any) -> SymmetryGraph:
    changed = SPEC | spec if isinstance(spec, dict) else spec
    return SymmetryGraph.from_spec(changed, SHAPES if like is None else like, **more)


def small(text: str, *shape: int, **sizes: int) -> SymmetryGraph:
    return SymmetryGraph.from_spec({"w": text}, {"w": shape}, sizes=sizes)


def bind(**changes: Any) -> Any:
    b = {**good(1), **{name.replace("_", "."): value for name, value in changes.items()}}
    return GRAPH.bind(good(), {name: value for name, value in b.items() if value is not None})


def solve(**arguments: Any) -> Solution:
    return alignkit.solve(GRAPH.bind(good(), good(1)), **arguments)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "files"))


@dataclass(frozen=True)
class Row:
    error: type[AlignkitError]
    says: tuple[str, ...]
    call: Callable[[Path], object]


def row(error: type[AlignkitError], *says: str) -> Callable[[Callable[[Path], object]], Row]:
    return lambda call: Row(error, says, call)


SPECS = {
    "a tensor that does not exist": row(SpecError, "'fc1.wieght'. Did you mean 'fc1.weight'?")(
        lambda _: build({"fc1.wieght": "h ."})
    ),
    "a tensor without a layout": row(SpecError, "nothing about 1 tensor", '"fc2.weight": ". ."')(
        lambda _: SymmetryGraph.from_spec({"fc1.weight": "h .", "fc1.bias": "h"}, SHAPES)
    ),
    "too few axes": row(ShapeMismatchError, "'fc1.weight' has 2 axes", "(4, 7)", "'h'")(
        lambda _: build({"fc1.weight": "h"})
    ),
    "too many axes": row(ShapeMismatchError, "'fc1.bias' has 1 axis", "has 2")(lambda _: build({"fc1.bias": "h ."})),
    "a stray sign": row(SpecError, "'fc1.weight'", "position 2", "'*'")(lambda _: build({"fc1.weight": "h * ."})),
    "an open parenthesis": row(SpecError, "'fc2.weight'", "ends too early")(lambda _: build({"fc2.weight": ". (h 1"})),
    "empty parentheses": row(SpecError, "'fc1.bias'", "empty parentheses")(lambda _: build({"fc1.bias": "()"})),
    "a fixed size of zero": row(SpecError, "'fc1.bias'", "size of 0")(lambda _: build({"fc1.bias": "h+0"})),
    "an empty group": row(SpecError, "'fc1.bias'", "'h' has size 0")(lambda _: build({"fc1.bias": "h:0"})),
    "a number with a size": row(SpecError, "'fc1.bias'", "may not be a number")(lambda _: build({"fc1.bias": "4:4"})),
    "a number too long to be a size": row(SpecError, "'fc1.bias'", "15 digits")(
        lambda _: build({"fc1.bias": "9" * 5000})
    ),
    "parentheses without end": row(SpecError, "'fc1.bias'", "32 parentheses")(
        lambda _: build({"fc1.bias": "(" * 9999})
    ),
    "a layout that is no text": row(SpecError, "'fc1.bias'", "found list")(lambda _: build({"fc1.bias": ["h"]})),
    "a name that is no text": row(SpecError, "do not exist: 3")(lambda _: build({3: "h"})),
    "a spec that is no mapping": row(ArgumentError, "spec= has to be a Mapping", "of type list")(
        lambda _: build(["h ."])
    ),
    "two sizes of one group": row(ShapeMismatchError, "'fc2.weight', axis 0 has size 3", "'h' makes 4", "'fc1.weight'")(
        lambda _: build({"fc2.weight": "h ."})
    ),
    "a flatten that was forgotten": row(ShapeMismatchError, "'fc', axis 1 has size 196", "'c' makes 4", "'(c 49)'")(
        lambda _: SymmetryGraph.from_spec({"conv": "c", "fc": ". c"}, {"conv": (4,), "fc": (2, 196)})
    ),
    "a flatten, the longer axis first": row(ShapeMismatchError, "'conv', axis 0", "'(c 49)' for tensor 'fc', axis 1")(
        lambda _: SymmetryGraph.from_spec({"fc": ". c", "conv": "c"}, {"fc": (2, 196), "conv": (4,)})
    ),
    "a fixed size that differs": row(ShapeMismatchError, "'fc1.weight', axis 1 has size 7", "makes 6")(
        lambda _: build({"fc1.weight": "h 2+4"})
    ),
    "segments that do not add up": row(ShapeMismatchError, "'w', axis 0 has size 7", "'a+b+1' makes 6")(
        lambda _: small("a+b+1", 7, a=2, b=3)
    ),
    "no room for a dot": row(ShapeMismatchError, "'w', axis 0 has size 4", "'a+.'")(lambda _: small("a+.", 4, a=4)),
    "a product that does not divide": row(ShapeMismatchError, "'w', axis 0", "no whole size of group 'b'", "7 long")(
        lambda _: small("(a b)", 7, a=2)
    ),
    "a child without its parent": row(GraphError, "'w', axis 0", "'d' stands without its parent 'heads'")(
        lambda _: SymmetryGraph.from_spec({"w": "d[heads]", "v": "heads"}, {"w": (3,), "v": (2,)})
    ),
    "a parent on the right": row(GraphError, "'w', axis 0", "further left")(lambda _: small("(d[heads]:3 heads)", 6)),
    "a parent in another segment": row(GraphError, "'w', axis 0", "'d' stands without its parent 'heads'")(
        lambda _: small("heads+d[heads]", 5, heads=2)
    ),
    "two possible parents": row(GraphError, "'w', axis 2", "ambiguous which 'heads' owns 'd'", "[0, 1]")(
        lambda _: small("heads heads d[heads]", 2, 2, 3)
    ),
    "a parent that nothing mentions": row(GraphError, "'w', axis 0", "no tensor mentions 'heads'")(
        lambda _: small("d[heads]", 3)
    ),
    "two parents of one group": row(GraphError, "'d' is without a parent at tensor 'v'", "nested in 'heads'", "'w'")(
        lambda _: SymmetryGraph.from_spec({"w": "(heads:2 d[heads])", "v": "d"}, {"w": (6,), "v": (3,)})
    ),
    "parents nested too deep": row(GraphError, "'a32'", "more than 31 others")(
        lambda _: small(f"({' '.join(['a0:1', *(f'a{i}[a{i - 1}]:1' for i in range(1, 40))])})", 1)
    ),
    "parents in a circle": row(GraphError, "nested in a circle", "'w'")(lambda _: small("(a[b]:2 b[a])", 4)),
    "sizes that shapes leave open": row(UndeterminedSizeError, "'w', axis 0", "'(a b)'", "sizes={'a': ...}")(
        lambda _: small("(a b)", 12)
    ),
    "two dots in one axis": row(UndeterminedSizeError, "'w', axis 0", "a number in place of '.'")(
        lambda _: small(".+h+.", 12, h=3)
    ),
    "a size for a group that nothing mentions": row(GraphError, "'k'", "no layout mentions")(
        lambda _: build({}, sizes={"k": 2})
    ),
    "a size of zero": row(GraphError, "'h' needs a positive whole number", "0")(lambda _: build({}, sizes={"h": 0})),
    "a size that is no number": row(GraphError, "'h' needs a positive whole number", "'4'")(
        lambda _: build({}, sizes={"h": "4"})
    ),
    "a given size that shapes contradict": row(ShapeMismatchError, "'fc1.weight', axis 0", "given in sizes")(
        lambda _: build({}, sizes={"h": 5})
    ),
    "a written size that shapes contradict": row(ShapeMismatchError, "makes 5", "written in the layout of 'fc1.bias'")(
        lambda _: build({"fc1.bias": "h:5"})
    ),
    "two written sizes": row(ShapeMismatchError, "'h' has 5 units", "'fc1.weight'", "but 4", "'fc1.bias'")(
        lambda _: build({"fc1.weight": "h:5 .", "fc1.bias": "h:4"})
    ),
    "a group's name that safetensors reserves": row(GraphError, "'__metadata__' is not a name for a group")(
        lambda _: small("__metadata__", 3)
    ),
    "a group with the name of a tensor": row(GraphError, "'w' is the name of a group and of a tensor")(
        lambda _: small("w", 3)
    ),
    "tied tensors with two layouts": row(SpecError, "'a' and 'b' are tied", "'h' and '.'")(
        lambda _: SymmetryGraph.from_spec({"a": "h", "b": "."}, {"a": SHARED, "b": SHARED})
    ),
    "like= of no use": row(ArgumentError, "like= has to be a Module or a Mapping", "of type list")(
        lambda _: build({}, like=[1])
    ),
    "a shape that is none": row(GraphError, "like['fc1.bias']", "'four'")(
        lambda _: build({}, like={**SHAPES, "fc1.bias": "four"})
    ),
    "a key of like= that is no text": row(GraphError, "like= has the key ('a', 1)", "strings")(
        lambda _: build({}, like={("a", 1): (2,)})
    ),
    "a tensor of like= whose key is no text": row(GraphError, "like= has the key 3", "strings")(
        lambda _: build({}, like={3: torch.zeros(2)})
    ),
    "a size that cannot be shown": row(GraphError, "'h' needs a positive whole number", "Unshown")(
        lambda _: build({}, sizes={"h": Unshown()})
    ),
    "a JSON graph that is none": row(SpecError, "not JSON")(lambda f: SymmetryGraph.from_json("{")),
}

WEIGHTS = {
    "a missing tensor": row(BindError, "'fc1.bias' is missing in B")(lambda _: bind(fc1_bias=None)),
    "an unexpected tensor": row(BindError, "'fc3.weight' of B is not in the graph")(
        lambda _: bind(fc3_weight=torch.zeros(1))
    ),
    "another shape": row(BindError, "'fc2.weight' has shape (4, 3) in B, the graph says (3, 4)")(
        lambda _: bind(fc2_weight=torch.zeros(4, 3))
    ),
    "another dtype": row(BindError, "'fc1.bias' is float32 in A but int64 in B")(
        lambda _: bind(fc1_bias=torch.zeros(4).long())
    ),
    "infinity": row(BindError, "'fc1.bias' of B holds NaN or infinity")(
        lambda _: bind(fc1_bias=torch.tensor([0, 1, float("inf"), 2]))
    ),
    "tensors without values": row(BindError, "'fc1.bias' of B is on the meta device")(
        lambda _: bind(fc1_bias=torch.zeros(4, device="meta"))
    ),
    "sparse tensors": row(BindError, "weights['fc1.bias'] is not a dense tensor", "layout sparse_coo")(
        lambda _: bind(fc1_bias=torch.zeros(4).to_sparse())
    ),
    "a value that is no tensor": row(BindError, "weights['fc1.bias'] is not a tensor but list")(
        lambda _: bind(fc1_bias=[0.0] * 4)
    ),
    "weights that are none": row(ArgumentError, "a= has to be", "of type int")(lambda _: GRAPH.bind(3, good())),
    "a file with NaN": row(BindError, "'fc1.bias' of B holds NaN")(lambda f: GRAPH.bind(good(), f / "nan.pt")),
    "a module of another architecture": row(BindError, "'fc1.weight' is missing in A", "'weight' of A is not in")(
        lambda _: GRAPH.bind(nn.Linear(7, 4), good())
    ),
    "similarities with NaN": row(AssignmentError, "NaN or infinity")(
        lambda _: alignkit.matching.linear_assignment(torch.full((2, 2), float("nan")))
    ),
}

FILES = {
    "no such file": row(WeightsError, "absent.pt does not exist")(lambda f: read_weights(f / "absent.pt")),
    "a folder": row(WeightsError, "folder.pt is a folder")(lambda f: read_weights(f / "folder.pt")),
    "an unknown suffix": row(WeightsError, "weights.npz", ".safetensors, .pt")(
        lambda f: read_weights(f / "weights.npz")
    ),
    "no suffix": row(WeightsError, "files end in")(lambda f: read_weights(f / "weights")),
    "half a safetensors file": row(WeightsError, "truncated.safetensors cannot be read")(
        lambda f: read_weights(f / "truncated.safetensors")
    ),
    "a flipped bit in the length": row(WeightsError, "flipped.safetensors cannot be read")(
        lambda f: read_weights(f / "flipped.safetensors")
    ),
    "a changed letter in the header": row(WeightsError, "letter.safetensors cannot be read")(
        lambda f: read_weights(f / "letter.safetensors")
    ),
    "a header of absurd length": row(WeightsError, "length.safetensors cannot be read")(
        lambda f: read_weights(f / "length.safetensors")
    ),
    "an empty safetensors file": row(WeightsError, "empty.safetensors cannot be read")(
        lambda f: read_weights(f / "empty.safetensors")
    ),
    "half a .pt file": row(WeightsError, "truncated.pt")(lambda f: read_weights(f / "truncated.pt")),
    "an empty .pt file": row(WeightsError, "empty.pt")(lambda f: read_weights(f / "empty.pt")),
    "a .pt file of text": row(WeightsError, "text.pt")(lambda f: read_weights(f / "text.pt")),
    "a pickle with code": row(WeightsError, "exploit.pt", "could run code", "refused")(
        lambda f: read_weights(f / "exploit.pt")
    ),
    "a state dict with code": row(WeightsError, "exploit.bin", "could run code", "refused")(
        lambda f: read_weights(f / "exploit.bin")
    ),
    "a pickled module": row(WeightsError, "module.pt", "Save the state dict alone")(
        lambda f: read_weights(f / "module.pt")
    ),
    "a pickled list": row(WeightsError, "list.pt holds a list")(lambda f: read_weights(f / "list.pt")),
    "an entry that is no tensor": row(WeightsError, "epoch.pt", "'epoch' is an object of type int")(
        lambda f: read_weights(f / "epoch.pt")
    ),
    "writing to an unknown suffix": row(WeightsError, "out.npz", "End its name in")(
        lambda f: write_weights(f / "out.npz", good())
    ),
    "writing into a folder that is not there": row(WeightsError, "absent", "does not exist")(
        lambda f: write_weights(f / "absent" / "out.pt", good())
    ),
    "writing a value that is no tensor": row(WeightsError, "out.pt", "'epoch'", "of type int")(
        lambda f: write_weights(f / "out.pt", {**good(), "epoch": 3})
    ),
    "writing a tensor without values": row(WeightsError, "out.pt", "'w'", "on the meta device")(
        lambda f: write_weights(f / "out.pt", {"w": torch.zeros(2, device="meta")})
    ),
    "writing a sparse tensor": row(WeightsError, "out.safetensors", "'w'", "layout sparse_coo")(
        lambda f: write_weights(f / "out.safetensors", {"w": torch.eye(2).to_sparse()})
    ),
    "writing a name that safetensors reserves": row(WeightsError, "out.safetensors", "'__metadata__' is reserved")(
        lambda f: write_weights(f / "out.safetensors", {"__metadata__": torch.zeros(2)})
    ),
    "writing over a folder": row(WeightsError, "folder.pt: it is a folder")(
        lambda f: write_weights(f / "folder.pt", good())
    ),
    "a picture of no format": row(GraphError, "graph.doc", ".png")(lambda f: GRAPH.draw(f / "graph.doc")),
    "a picture into a folder that is not there": row(WeightsError, "absent", "does not exist")(
        lambda f: GRAPH.draw(f / "absent" / "graph.png")
    ),
}

ALIGNMENTS = {
    "no indices for a group": row(AlignmentError, "group 'h' has no indices")(lambda _: Alignment(GRAPH, {})),
    "indices for an unknown group": row(AlignmentError, "no groups 'g'")(
        lambda _: Alignment(GRAPH, {"h": torch.arange(4), "g": torch.arange(4)})
    ),
    "an index twice": row(AlignmentError, "group 'h'", "not a permutation of 0 .. 3")(
        lambda _: Alignment(GRAPH, {"h": torch.tensor([0, 1, 1, 2])})
    ),
    "an index out of range": row(AlignmentError, "group 'h'", "not a permutation of 0 .. 3")(
        lambda _: Alignment(GRAPH, {"h": torch.tensor([-1, 0, 1, 2])})
    ),
    "too few indices": row(AlignmentError, "group 'h'", "shape (4,)", "shape (3,)")(
        lambda _: Alignment(GRAPH, {"h": torch.arange(3)})
    ),
    "indices that are no whole numbers": row(AlignmentError, "group 'h'", "whole numbers", "float32")(
        lambda _: Alignment(GRAPH, {"h": torch.arange(4.0)})
    ),
    "one vector for a whole family": row(AlignmentError, "group 'd'", "shape (2, 3)", "shape (3,)")(
        lambda _: Alignment(FAMILY, {"heads": torch.arange(2), "d": torch.arange(3)})
    ),
    "elements of two graphs": row(AlignmentError, "different graphs")(
        lambda _: Alignment.identity(GRAPH) @ Alignment.identity(OTHER)
    ),
    "weights of another shape": row(AlignmentError, "'fc1.bias' has shape (5,)")(
        lambda _: Alignment.identity(GRAPH).apply({**good(), "fc1.bias": torch.zeros(5)})
    ),
    "the alignment of another graph": row(AlignmentError, "other.safetensors belongs to another graph")(
        lambda f: Alignment.load(f / "other.safetensors", GRAPH)
    ),
    "an alignment of another version": row(AlignmentError, "version.safetensors has version 99", "reads version 1")(
        lambda f: Alignment.load(f / "version.safetensors", GRAPH)
    ),
    "a file of another kind": row(AlignmentError, "kind.safetensors is not an alignment")(
        lambda f: Alignment.load(f / "kind.safetensors", GRAPH)
    ),
    "weights in place of an alignment": row(AlignmentError, "a.safetensors is not an alignment")(
        lambda f: Alignment.load(f / "a.safetensors", GRAPH)
    ),
    "a header that is a list": row(AlignmentError, "listed.safetensors is not an alignment")(
        lambda f: Alignment.load(f / "listed.safetensors", GRAPH)
    ),
    "a saved index twice": row(AlignmentError, "'h' are not a permutation")(
        lambda f: Alignment.load(f / "twice.safetensors", GRAPH)
    ),
    "a saved group too few": row(AlignmentError, "'h' has no indices")(
        lambda f: Alignment.load(f / "missing.safetensors", GRAPH)
    ),
    "a saved group too many": row(AlignmentError, "no groups 'g'")(
        lambda f: Alignment.load(f / "unknown.safetensors", GRAPH)
    ),
    "half an alignment": row(AlignmentError, "half.safetensors cannot be read")(
        lambda f: Alignment.load(f / "half.safetensors", GRAPH)
    ),
    "an alignment that is not there": row(AlignmentError, "absent.safetensors cannot be read")(
        lambda f: Alignment.load(f / "absent.safetensors", GRAPH)
    ),
    "an alignment into a folder that is not there": row(WeightsError, "absent", "does not exist")(
        lambda f: Alignment.identity(GRAPH).save(f / "absent" / "out.safetensors")
    ),
}

SOLVING = {
    "an unknown solver": row(SolverChoiceError, "'wieght_matching'", "Did you mean 'weight_matching'?")(
        lambda _: solve(solver="wieght_matching")
    ),
    "an empty stage": row(SolverChoiceError, "'weight_matching >' has an empty stage")(
        lambda _: solve(solver="weight_matching >")
    ),
    "no stage": row(SolverError, "empty sequence")(lambda _: solve(solver=[])),
    "a solver that is none": row(ArgumentError, "solver= has to be", "of type int")(lambda _: solve(solver=3)),
    "an unknown option": row(SolverChoiceError, "no option 'restart'", "Did you mean 'restarts'?")(
        lambda _: solve(restart=3)
    ),
    "an option out of range": row(SolverChoiceError, "max_steps=0", "greater than or equal to 1")(
        lambda _: solve(max_steps=0)
    ),
    "an option of another type": row(SolverChoiceError, "rtol='small'", "valid number")(lambda _: solve(rtol="small")),
    "a start from another graph": row(AlignmentError, "init= belongs to another graph")(
        lambda _: solve(init=Alignment.identity(OTHER))
    ),
    "a start that is none": row(ArgumentError, "init= has to be a Solution, a SoftAlignment, an Alignment or None")(
        lambda _: solve(init="right.safetensors")
    ),
    "a soft start from another graph": row(AlignmentError, "init= belongs to another graph")(
        lambda _: solve(init=SoftAlignment.centre(OTHER))
    ),
    "a device that is not there": row(ArgumentError, "device='abacus'")(lambda _: solve(device="abacus")),
    "a graph without weights": row(BindError, "solve(graph, a, b)")(lambda _: alignkit.solve(GRAPH)),
    "a solution into a folder that is not there": row(WeightsError, "absent", "does not exist")(
        lambda f: solve(solver="identity").save(f / "absent" / "out.safetensors")
    ),
    "an alignment in place of a solution": row(WeightsError, "right.safetensors is not a solution")(
        lambda f: Solution.load(f / "right.safetensors", GRAPH)
    ),
    "a solution with nothing in it": row(WeightsError, "hollow.safetensors is damaged")(
        lambda f: Solution.load(f / "hollow.safetensors", GRAPH)
    ),
    "half a solution": row(WeightsError, "half.safetensors cannot be read as a solution")(
        lambda f: Solution.load(f / "half.safetensors", GRAPH)
    ),
}

ROWS = {**SPECS, **WEIGHTS, **FILES, **ALIGNMENTS, **SOLVING}


@pytest.mark.parametrize("name", ROWS)
def test_bad_input_raises_a_clear_error_and_leaves_no_file(name: str, folder: Path, prepared: Path) -> None:
    before = contents(folder)
    with pytest.raises(AlignkitError) as caught:
        ROWS[name].call(folder)
    assert type(caught.value) is ROWS[name].error
    for text in ROWS[name].says:
        assert text in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert contents(folder) == before
    assert not (prepared / "ran").exists()


def test_no_row_repeats_another() -> None:
    assert len(ROWS) == sum(map(len, (SPECS, WEIGHTS, FILES, ALIGNMENTS, SOLVING)))


def test_the_exploit_would_work_if_it_were_trusted(folder: Path, prepared: Path) -> None:
    torch.load(folder / "exploit.pt", weights_only=False)
    (prepared / "ran").unlink()
