"""Alignments: laws of the group, misuse, memory shared with the caller, files, soft alignments."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit import Alignment, SoftAlignment, SymmetryGraph
from fuzzers.engine import Case, Dice, expect, expect_refusal
from fuzzers.networks import NETS, moved, numbers, random_alignment, same, weights_for
from fuzzers.values import DTYPES, ODD, STORAGES, anything, filled, shown

Elements = dict[str, Any]


def laws(dice: Dice, folder: Path) -> Case:
    """Alignments are a group, and act on weights as the layouts say."""
    name = dice.choice(sorted(NETS))
    graph = NETS[name]
    g, h, k = (random_alignment(dice, graph) for _ in range(3))
    weights = weights_for(dice, graph)

    def run() -> None:
        identity = Alignment.identity(graph)
        expect((g @ h) @ k == g @ (h @ k), "composition is not associative")
        expect(g @ g.inverse() == identity == g.inverse() @ g, "the inverse does not undo")
        expect(g @ identity == g == identity @ g, "the identity changes something")
        expect((g @ h).inverse() == h.inverse() @ g.inverse(), "the inverse of a composition is another")
        expect(same((g @ h).apply(weights), g.apply(h.apply(weights))), "a composition acts differently")
        expect(same(g.apply(weights), moved(graph, g, weights)), "apply moves units to other places")
        expect((g == h) == all(torch.equal(g.elements[n], h.elements[n]) for n in graph.groups), "== is wrong")
        expect(g.is_identity == (g == identity) and hash(copy.deepcopy(g)) == hash(g), "is_identity or hash is wrong")
        expect(pickle.loads(pickle.dumps(g)) == g, "another alignment comes out of a pickle")
        for group, matrix in g.as_matrices().items():
            eye = torch.eye(matrix.shape[-1]).expand(matrix.shape)
            expect(torch.equal(matrix @ matrix.mT, eye), f"the matrix of {group} is not a permutation")

    return Case(f"laws on {name}", run, kept=(weights, dict(g.elements), dict(h.elements)))


def on_disk(dice: Dice, folder: Path) -> Case:
    """What was saved is what is loaded, and another graph refuses it."""
    name, other = dice.sample(sorted(NETS), 2)
    alignment = random_alignment(dice, NETS[name])

    def run() -> None:
        alignment.save("alignment.safetensors")
        expect(Alignment.load("alignment.safetensors", NETS[name]) == alignment, "another alignment is loaded")
        wrong = lambda: Alignment.load("alignment.safetensors", NETS[other])  # noqa: E731  one call
        expect_refusal(wrong, "the alignment of another graph is loaded")

    return Case(f"save of {name}, load with {other}", run, outputs=("alignment.safetensors",))


def elements_for(dice: Dice, graph: SymmetryGraph) -> Elements:
    return {name: element.clone() for name, element in random_alignment(dice, graph).elements.items()}


INDICES: dict[str, Callable[[Dice, Tensor], Any]] = {
    "list": lambda dice, element: element.tolist(),
    "array": lambda dice, element: element.numpy().copy(),
    "another dtype": lambda dice, element: element.to(dice.choice(DTYPES)),
    "array of a dtype": lambda dice, element: element.numpy().astype(
        dice.choice(["u1", "i2", "f4", "c8", "O", "U3", "?"])
    ),
    "twice": lambda dice, element: torch.zeros_like(element),
    "one too large": lambda dice, element: element + 1,
    "huge": lambda dice, element: element + dice.pick(2**31, 2**62, -(2**62)),
    "huge numbers": lambda dice, element: [10**30] * len(element),
    "longer": lambda dice, element: torch.cat([element, element]),
    "with an axis": lambda dice, element: element[None],
    "halves": lambda dice, element: element + 0.5,
    "anything": lambda dice, element: anything(dice),
    "odd": lambda dice, element: ODD[dice.choice(sorted(ODD))](element),
    "stored": lambda dice, element: STORAGES[dice.choice(sorted(STORAGES))](element),
    "view": lambda dice, element: element.flip(-1),
    "grown": lambda dice, element: element.clone().expand(2, *element.shape),
}


def misuse(dice: Dice, folder: Path) -> Case:
    """Indices of other kinds are the permutation that they say, or are refused by the name of their group."""
    graph = NETS[dice.choice(sorted(NETS))]
    elements = elements_for(dice, graph)
    group, kind = dice.choice(sorted(elements)), dice.choice(sorted(INDICES))
    changed = INDICES[kind](dice, elements[group])
    if dice.chance(0.05):
        del elements[group]
    elif dice.chance(0.05):
        elements["unknown"] = changed
    else:
        elements[group] = changed

    def run() -> None:
        alignment = Alignment(graph, elements)
        expect(
            is_permutation(alignment.elements[group], changed), f"{kind} became {alignment.elements[group].tolist()}"
        )

    return Case(f"{group}: {kind}: {shown(changed)}", run, (f"{group!r}", "'unknown'"), kept=(elements,))


def is_permutation(element: Tensor, given: object) -> bool:
    """Return whether an element holds what was given, and is a permutation."""
    said = numbers(given) if isinstance(given, Tensor) else np.asarray(given)
    equal = bool((said.astype(complex) == element.numpy()).all()) and said.shape == tuple(element.shape)
    return equal and torch.equal(element.sort(-1).values, torch.arange(element.shape[-1]).expand(element.shape))


def aliasing(dice: Dice, folder: Path) -> Case:
    """What a caller writes later changes nothing that was made before, and nothing that is returned is shared."""
    graph = NETS[dice.choice(sorted(NETS))]
    elements, weights = elements_for(dice, graph), weights_for(dice, graph)
    form = dice.choice(("tensors", "arrays", "32 bits"))
    given = {n: e.numpy() if form == "arrays" else e.int() if form == "32 bits" else e for n, e in elements.items()}
    way = dice.choice(("source", "elements", "flat", "matrices", "result", "inverse"))

    def run() -> None:
        alignment = Alignment(graph, given)
        before, stamp = alignment.apply(weights), hash(alignment)
        targets: Mapping[str, Any] = {
            "source": given,
            "elements": alignment.elements,
            "flat": {name: alignment.flat(name) for name in graph.groups},
            "matrices": alignment.as_matrices(),
            "result": alignment.apply(weights),
            "inverse": alignment.inverse().elements,
        }[way]
        for target in targets.values():
            target[...] = 0
        after = alignment.apply(weights)
        expect(same(before, after) and hash(alignment) == stamp, f"writing to its {way} changed the alignment")

    return Case(f"{form}, written to its {way}", run, kept=(weights,))


def applied_to(dice: Dice, folder: Path) -> Case:
    """Weights of every dtype and storage are moved as the layouts say; others are refused by name."""
    graph = NETS[dice.choice(sorted(NETS))]
    alignment, weights = random_alignment(dice, graph), {}
    for name, node in graph.tensors.items():
        plain = filled(dice, node.shape, dice.choice(DTYPES), dice.pick(1.0, 1e-30, 1e30))
        weights[name] = stored(dice, plain)
    odd = "only tensors"
    if dice.chance(0.3):
        name, odd = dice.choice(sorted(weights)), dice.choice(sorted(ODD))
        weights[name] = ODD[odd](filled(dice, graph.tensors[name].shape, torch.float32))
    if dice.chance(0.05):
        weights["extra"] = torch.zeros(2)

    def run() -> None:
        got = alignment.apply(weights)
        plain = {name: tensor for name, tensor in got.items() if not numberless(tensor)}
        expect(plain.keys() == weights.keys(), "odd tensors were taken")
        expect(same(moved(graph, alignment, weights), plain), "apply moves units to other places")
        shared = {t.untyped_storage().data_ptr() for t in weights.values()} - {0}
        expect(not any(t.untyped_storage().data_ptr() in shared for t in got.values()), "the result shares memory")

    shown_as = ", ".join(f"{n} {getattr(t, 'dtype', type(t).__name__)}" for n, t in weights.items())
    names = tuple(map(repr, weights))
    return Case(f"apply to {shown_as}; {odd}", run, names, kept=(weights,))


def stored(dice: Dice, plain: Tensor) -> Tensor:
    """The tensor, held in a random way; where its dtype does not allow that, as it is."""
    try:
        return STORAGES[dice.choice(sorted(STORAGES))](plain)
    except (RuntimeError, NotImplementedError):
        return plain


def numberless(tensor: object) -> bool:
    return not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided


def soft(dice: Dice, folder: Path) -> Case:
    """Soft alignments: doubly stochastic or refused; a hard one in matrices rounds to itself."""
    name = dice.choice(sorted(NETS))
    graph = NETS[name]
    alignment = random_alignment(dice, graph)
    matrices: dict[str, Any] = {n: m.clone() for n, m in SoftAlignment.from_alignment(alignment).matrices.items()}
    group = dice.choice(sorted(matrices))
    kind = dice.choice(("none", "blend", "scaled", "negative", "nan", "odd", "dtype", "anything", "shape"))
    plain = matrices[group]
    changes: dict[str, Callable[[], Any]] = {
        "none": lambda: plain,
        "blend": lambda: plain * 0.7 + 0.3 / plain.shape[-1],
        "scaled": lambda: plain * 1.5,
        "negative": lambda: plain * 3 - 2.0 / plain.shape[-1],
        "nan": lambda: plain * math.nan,
        "odd": lambda: ODD[dice.choice(sorted(ODD))](plain),
        "dtype": lambda: plain.to(dice.choice(DTYPES)),
        "anything": lambda: anything(dice),
        "shape": lambda: plain[..., :-1],
    }
    matrices[group] = changes[kind]()
    right = kind in ("none", "blend")

    def run() -> None:
        made = SoftAlignment(graph, matrices)
        expect(right or kind in ("odd", "dtype"), f"{kind} was taken")
        rounded = made.round()
        expect(rounded == alignment, "rounding gives another alignment")

    return Case(f"soft on {name}: {group} {kind}", run, () if right else (f"{group!r}",), kept=(matrices,))


def make(dice: Dice, folder: Path) -> Case:
    return dice.choice((laws, on_disk, misuse, misuse, aliasing, applied_to, applied_to, soft))(dice, folder)
