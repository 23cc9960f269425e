"""Graphs: notation, shapes, JSON and nesting."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from alignkit import Alignment, SymmetryGraph
from alignkit.graph import parse_layout
from alignkit.graph.layout import factor_size
from fuzzers.engine import Case, Dice, expect
from fuzzers.networks import NETS, moved, numbers, random_alignment
from fuzzers.values import anything, changed_json, shown
from helpers.graph_strategies import Forest, axis_text, distinct_weights

Spec = dict[str, str]
Shapes = dict[str, tuple[int, ...]]
LETTERS = "ab h12.:+[]()-_/"
TEXTS = {name: graph.to_json() for name, graph in NETS.items()}


def forest(dice: Dice) -> Forest:
    """Up to five groups, nested up to three deep."""
    made = Forest()
    for index in range(dice.randint(1, 5)):
        shallow = [name for name in made.sizes if len(made.path(name)) < 3]
        made.parents[f"g{index}"] = dice.choice([None, *shallow])
        made.sizes[f"g{index}"] = dice.randint(1, 3)
        made.kinds[f"g{index}"] = "permutation"
    return made


def segment(dice: Dice, trees: Forest, context: tuple[str, ...], depth: int = 0) -> str:
    """One segment; children of the groups in the context may stand without their parents."""
    inside, factors = list(context), []
    for _ in range(dice.randint(1, 2)):
        kind = dice.choice(("fixed", "group", "group", "sum") if depth < 2 else ("fixed", "group"))
        if kind == "fixed":
            factors.append(str(dice.randint(1, 2)))
        elif kind == "sum":
            parts = [segment(dice, trees, tuple(inside), depth + 1) for _ in range(dice.randint(1, 2))]
            factors.append(f"({'+'.join(parts)})")
        else:
            path = trees.path(dice.choice(sorted(trees.sizes)))
            known = max((i + 1 for i, name in enumerate(path[:-1]) if name in inside), default=0)
            factors += [trees.mention(name) for name in path[known:]]
            inside += path[known:]
    return f"({' '.join(factors)})"


def layout(dice: Dice, trees: Forest) -> str:
    """The layout of a tensor of one to three axes; the second may hold children of groups on the first."""
    first = segment(dice, trees, (), 2)
    if dice.chance(0.5):
        owners = [unit.group for unit in parse_layout(first)[0].units()]
        context = tuple(name for name in owners if owners.count(name) == 1)
        second = segment(dice, trees, context)
    else:
        first = "+".join([first, *(segment(dice, trees, ()) for _ in range(dice.randrange(3)))])
        second = "+".join(segment(dice, trees, ()) for _ in range(dice.randint(1, 2)))
    roots = [trees.mention(name) for name in trees.sizes if trees.parents[name] is None]
    return " ".join([first, second, dice.choice([".", "2", *roots])][: dice.randint(1, 3)])


def spec_and_shapes(dice: Dice) -> tuple[Spec, Shapes]:
    """A spec that is right, and the shapes that it is for; tensors are small."""
    trees = forest(dice)
    spec = {f"t{i}": layout(dice, trees) for i in range(dice.randint(1, 3))}
    shapes = {n: tuple(2 if "." in axis_text(a) else factor_size(a) for a in parse_layout(t)) for n, t in spec.items()}
    small = {name: shape for name, shape in shapes.items() if math.prod(shape) <= 600}
    return {name: spec[name] for name in small}, small


def right_graph(dice: Dice, folder: Path) -> Case:
    """A graph that is right is taken, survives its texts, and moves units as its layouts say."""
    spec, shapes = spec_and_shapes(dice)

    def run() -> None:
        graph = SymmetryGraph.from_spec(spec, shapes)
        check_texts(graph)
        alignment, weights = random_alignment(dice, graph), distinct_weights(graph)
        expected = moved(graph, alignment, weights)
        got = alignment.apply(weights)
        expect(all(torch.equal(got[name], expected[name]) for name in weights), "apply moves units to other places")
        back = alignment.inverse().apply(got)
        expect(all(torch.equal(back[name], weights[name]) for name in weights), "the inverse does not undo")

    return Case(f"from_spec({spec}, {shapes})", run)


def check_texts(graph: SymmetryGraph) -> None:
    """Check that notation and JSON give the graph back, and that what is drawn is there."""
    expect(SymmetryGraph.from_json(graph.to_json()) == graph, "another graph comes back from JSON")
    shapes = {node.name: node.shape for node in graph.tensors.values()}
    expect(
        SymmetryGraph.from_spec(graph.spec(), shapes).spec() == graph.spec(), "another graph comes back from its spec"
    )
    units = sum(group.size * graph.instances(name) for name, group in graph.groups.items())
    expect(sum(numbers(Alignment.identity(graph).flat(n)).size for n in graph.groups) == units, "units are lost")
    expect(all(name in graph.report() for name in graph.groups), "the report leaves out a group")


def damaged_spec(dice: Dice, folder: Path) -> Case:
    """A spec with characters changed, tensors renamed or shapes changed."""
    spec, shapes = spec_and_shapes(dice)
    for name in list(spec):
        if dice.chance(0.6):
            text = list(spec[name])
            for _ in range(dice.randint(1, 3)):
                at = dice.randrange(len(text) + 1)
                text[at : at + dice.randrange(2)] = dice.choice(LETTERS)
            spec[name] = "".join(text)
        if dice.chance(0.3):
            shapes[name] = tuple(dice.pick(0, 1, 2, size, size + 1, 10**9) for size in shapes[name])
        if dice.chance(0.05):
            spec[f"{name}x"] = spec.pop(name)
    sizes = dice.pick(None, None, {"g0": dice.randrange(4)}, {"g9": 2})

    return Case(f"from_spec({spec}, {shapes}, sizes={sizes})", lambda: taken(spec, shapes, sizes))


def taken(spec: Spec, shapes: Shapes, sizes: dict[str, int] | None = None) -> None:
    """Build a graph; one that is taken has the shapes that were given and survives its texts."""
    graph = SymmetryGraph.from_spec(spec, shapes, sizes=sizes)
    expect({n: node.shape for n, node in graph.tensors.items()} == shapes, "the graph has other shapes")
    if sum(graph.unit_count(name) for name in graph.groups) < 1000:
        check_texts(graph)


def deep_spec(dice: Dice, folder: Path) -> Case:
    """Many groups, deep nesting, long layouts: taken or refused in a bounded time."""
    count = dice.pick(3, 20, 31, 33, 60, 200, 1000)
    kind = dice.choice(("nested", "parentheses", "sum", "axes", "groups", "tensors"))
    nested = " ".join(f"a{i}[a{i - 1}]:1" if i else "a0:1" for i in range(count))
    texts = {
        "nested": f"({nested})",
        "parentheses": "(" * count + "a" + ")" * count,
        "sum": "+".join(["a:1"] * count),
        "axes": " ".join(["a:1"] * min(count, 60)),
        "groups": "+".join(f"a{i}:1" for i in range(min(count, 200))),
        "tensors": "a:1",
    }
    text = texts[kind]
    ones = {"sum": count, "groups": min(count, 200)}
    shape = (1,) * min(count, 60) if kind == "axes" else (ones.get(kind, 1),)
    spec = {f"w{i}": text for i in range(min(count, 200) if kind == "tensors" else 1)}
    return Case(f"{kind}, {count} times", lambda: taken(spec, dict.fromkeys(spec, shape)))


def any_spec(dice: Dice, folder: Path) -> Case:
    """Values of any type in the place of a spec, of shapes and of sizes."""
    spec, shapes = spec_and_shapes(dice)
    arguments = {"spec": spec, "like": shapes, "sizes": None}
    for name in dice.sample(sorted(arguments), dice.randint(1, 2)):
        arguments[name] = anything(dice) if dice.chance(0.4) else changed_json(dice, arguments[name] or {"g0": 1})
    return Case(
        ", ".join(f"{n}={shown(v)}" for n, v in arguments.items()), lambda: SymmetryGraph.from_spec(**arguments)
    )


def json_text(dice: Dice, folder: Path) -> Case:
    """The JSON of a graph with parts changed: refused, or a graph that survives its texts."""
    name = dice.choice(sorted(TEXTS))
    if dice.chance(0.1):
        text = dice.pick("[" * 100_000, "", "null", "1", '"x"', "{}", '{"format": 3}', TEXTS[name][:-9], "\ufeff{}")
    else:
        value = json.loads(TEXTS[name])
        for _ in range(dice.randint(1, 2)):
            value = changed_json(dice, value)
        text = json.dumps(value)

    def run() -> None:
        graph = SymmetryGraph.from_json(text)
        check_texts(graph)
        random_alignment(dice, graph)

    return Case(f"from_json of {name} with changes: {text[:600]}", run)


def make(dice: Dice, folder: Path) -> Case:
    kinds = (right_graph, damaged_spec, damaged_spec, any_spec, json_text, json_text)
    return deep_spec(dice, folder) if dice.chance(0.02) else dice.choice(kinds)(dice, folder)
