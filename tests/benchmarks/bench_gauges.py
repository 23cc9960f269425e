"""Planted gauges: a random element of the whole symmetry group is put on a network, and undone from weights alone.

    python tests/benchmarks/bench_gauges.py --json docs/results/gauges.json

A copy of a network is folded and gets everything that changes none of its outputs: a random isometry (orders, signs,
Haar rotations, phases), factors between what writes and what reads (0.1 to 10, with signs where they are free;
matrices of condition 10), half periods of sines, and random gains, shifts, means and biases where folds take them out.
Both are folded and balanced and solved, and phases of sines brought near. The residual is what is left of the norm of
all weights. Then every weight gets noise before the copy is made, as a share of the root mean square of its tensor.
Unrelated pairs are two networks with random weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

import alignkit
from alignkit import Alignment, SymmetryGraph
from alignkit.graph import Balance, Gain, Mean, OutputScale, Shift, Through, Zero
from alignkit.graph.phases import move_phases, phases_in
from alignkit.graph.proof.perturb import perturbed
from alignkit.graph.rewrites import AxisOf, Fold, uses_at
from alignkit.jobs.near_phases import with_near_phases
from alignkit.rewriting import WideWeights, module_with, unfold_weights
from alignkit.zoo.modules import Sine
from seed_networks import new_model

LEVELS = (1e-3, 1e-2, 0.03, 0.1)
SAME = 1e-9
"""Largest residual of a gauge that was undone, as a share of the norm of the weights."""


class Gated(nn.Module):
    """Linear, SwiGLU, linear."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, width), nn.Linear(width, 5)
        self.gate, self.up, self.down = nn.Linear(width, 40), nn.Linear(width, 40), nn.Linear(40, width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.down(silu(self.gate(y)) * self.up(y))))


class LowRank(nn.Module):
    """Two linear layers with factors of rank 4 beside each."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.ModuleList([nn.Linear(24, 32), nn.Linear(32, 10)])
        self.a = nn.ModuleList([nn.Linear(24, 4, bias=False), nn.Linear(32, 4, bias=False)])
        self.b = nn.ModuleList([nn.Linear(4, 32, bias=False), nn.Linear(4, 10, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        for at in range(2):
            x = self.base[at](x) + self.b[at](self.a[at](x))
            x = torch.nn.functional.gelu(x) if at == 0 else x
        return x


class Recurrent(nn.Module):
    """An LSTM whose states are read."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(10, 24, 2, batch_first=True), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0])


def mlp(activation: nn.Module) -> Callable[[], nn.Module]:
    """Three layers of 48 units."""

    def build() -> nn.Module:
        sizes, layers = (20, 48, 48, 48), []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation]
        return nn.Sequential(*layers, nn.Linear(48, 7))

    return build


def transformer(kind: str, **sizes: Any) -> Callable[[], nn.Module]:
    """A tiny model of a class of transformers, with everything that a published one has."""

    def build() -> nn.Module:
        import transformers

        small = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
        ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "max_position_embeddings": 32}
        grouped = {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
        config = transformers.CONFIG_MAPPING[kind](**{**small, **ends, **grouped, **sizes})
        return transformers.AutoModelForCausalLM.from_config(config).eval()

    return build


def resnet() -> nn.Module:
    """The residual network of the zoo."""
    return alignkit.zoo.architecture("resnet", width=8, shape=(3, 16, 16), outputs=10).build().eval()


TOKENS: Callable[[], dict[str, Tensor]] = lambda: {"input_ids": torch.randint(60, (2, 8))}  # noqa: E731
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "MLP, ReLU": (mlp(nn.ReLU()), lambda: torch.randn(4, 20)),
    "MLP, tanh": (mlp(nn.Tanh()), lambda: torch.randn(4, 20)),
    "SIREN": (mlp(Sine(30.0)), lambda: torch.randn(4, 20)),
    "MLP, SwiGLU": (Gated, lambda: torch.randn(4, 12)),
    "ResNet": (resnet, lambda: torch.randn(2, 3, 16, 16)),
    "LSTM": (Recurrent, lambda: torch.randn(3, 5, 10)),
    "GPT-2": (lambda: new_model("gpt2", 32, 2, torch.initial_seed()), TOKENS),
    "Llama": (transformer("llama", tie_word_embeddings=False), TOKENS),
    "Qwen3": (transformer("qwen3", tie_word_embeddings=False), TOKENS),
    "Gemma-2": (transformer("gemma2", tie_word_embeddings=False), TOKENS),
    "ViT": (
        lambda: new_model("vit", 32, 2, torch.initial_seed()),
        lambda: {"pixel_values": torch.randn(2, 1, 28, 28)},
    ),
    "LoRA": (LowRank, lambda: torch.randn(4, 24)),
}


@dataclass(frozen=True)
class Subject:
    """A network of one kind with random weights, and its graph."""

    model: nn.Module
    graph: SymmetryGraph


def subject(kind: str, seed: int) -> Subject:
    """Make a network in float64; gains, shifts and biases are random, too."""
    torch.manual_seed(seed)
    build, example = KINDS[kind]
    model = perturbed(build().double().eval(), seed)
    inputs = example()
    if isinstance(inputs, dict):
        inputs = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
        return Subject(model, alignkit.trace(model, symmetries="all", **inputs))
    return Subject(model, alignkit.trace(model, inputs.double(), symmetries="all"))


def planted(given: Subject, seed: int) -> dict[str, Tensor]:
    """Return the weights of a copy under a random element of the whole group, and unfolded with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    graph = given.graph
    folded = alignkit.fold(given.model.state_dict(), graph, balance=False).network
    wide = WideWeights(Alignment.random(graph, seed).apply(folded))
    move_phases(graph, phases_in(graph), wide, generator)
    for balance in (balance for balance in graph.balances if isinstance(balance, Balance)):
        write, read = factors(graph, balance, generator)
        for places, factor in ((balance.writes, write), (balance.reads, read)):
            for place in places:
                for use in uses_at(graph.tensors[place.tensor], balance.group, place):
                    view = use.block.view(wide[place.tensor])
                    if factor.ndim == 2:
                        view *= use.broadcast(factor)
                    else:
                        target = view.permute(*use.chain, *use.rest)
                        target.copy_((factor @ use.unfold(view)).reshape(target.shape))
    taken = tuple((fold, put_in(fold, wide, generator)) for fold in graph.folds)
    unfold_weights(wide, taken)
    return wide.rounded()


def factors(graph: SymmetryGraph, balance: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw what is multiplied to both sides of a space: 0.1 to 10, or matrices of condition 10."""
    shape = (graph.instances(balance.group), graph.groups[balance.group].size)
    if balance.kind == "invertible":
        sides = [
            torch.linalg.qr(torch.randn(*shape, shape[1], generator=generator, dtype=torch.float64)).Q for _ in "ab"
        ]
        values = 10 ** (torch.linspace(-0.5, 0.5, shape[1], dtype=torch.float64))
        matrix = sides[0] @ torch.diag(values) @ sides[1]
        return matrix, torch.linalg.inv(matrix).mT
    scales = 10 ** (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
    if balance.kind == "complex_planes":  # phases are in the isometry
        adjacent = graph.groups[balance.group].kind == "adjacent_planes"
        half = scales[:, : shape[1] // 2]
        scales = half.repeat_interleave(2, -1) if adjacent else half.repeat(1, 2)
    if balance.kind == "monomial":
        scales *= 1 - 2 * torch.randint(2, shape, generator=generator)
    return scales, scales**-balance.degree


def put_in(fold: Fold, wide: WideWeights, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw what a fold would have taken out."""

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    def mean(place: AxisOf) -> Tensor:
        return 0.1 * like(wide.take(place).mean(-1, keepdim=True))

    match fold:
        case Gain(gain, _, offset):
            return (10 ** (0.5 * torch.rand(wide[gain].shape, generator=generator, dtype=torch.float64)) - offset,)
        case OutputScale(scale):
            return (10 ** (0.5 * torch.rand(wide[scale].shape, generator=generator, dtype=torch.float64)),)
        case Shift(shift):
            return (0.3 * like(wide[shift]),)
        case Zero(bias) | Through(bias):
            return (0.3 * like(wide.take(bias)),)
        case Mean(writers, readers):
            return tuple(map(mean, (*writers, *readers)))
    return ()


def noisy(weights: dict[str, Tensor], level: float, seed: int) -> dict[str, Tensor]:
    """Add noise to every weight, as a share of the root mean square of its tensor."""
    generator = torch.Generator().manual_seed(seed)
    changed = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or name.endswith(("running_mean", "running_var")):
            changed[name] = tensor
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        changed[name] = tensor + level * tensor.square().mean().sqrt() * noise
    return changed


def residual(graph: SymmetryGraph, a: Any, b: Any, solution: alignkit.Solution, norm: float) -> float:
    """Return what is left of the norm of the weights."""
    if phases_in(graph):
        aligned = with_near_phases(graph, a, solution.apply(b))
        return math.sqrt(sum(float((a[name] - tensor).square().sum()) for name, tensor in aligned.items())) / norm
    return math.sqrt(max(0.0, solution.objective_after)) / norm


def run(kind: str, draws: int, unrelated: int) -> dict[str, Any]:
    """Plant gauges on networks of one kind, undo them, and compare unrelated pairs."""
    residuals, seconds = [], []
    noise: dict[float, list[dict[str, float]]] = {level: [] for level in LEVELS}
    given = subject(kind, 0)
    graph = given.graph
    for seed in range(draws):
        if seed % 5 == 0:
            given = subject(kind, seed)
        began = process_time()
        a = alignkit.fold(given.model.state_dict(), graph).network
        norm = math.sqrt(sum(float(t.double().square().sum()) for t in a.values() if t.is_floating_point()))
        copy = planted(given, 100 + seed)
        b = alignkit.fold(copy, graph).network
        solution = alignkit.solve(graph, a, b)
        seconds.append(process_time() - began)
        residuals.append(residual(graph, a, b, solution, norm))
        if residuals[-1] > SAME:
            continue
        for level in LEVELS:
            changed = Subject(module_with(given.model, noisy(given.model.state_dict(), level, seed)), graph)
            other = alignkit.fold(planted(changed, 100 + seed), graph).network
            found = alignkit.solve(graph, a, other)
            known = alignkit.solve(graph, a, other, init=solution.alignment)
            left, least = (residual(graph, a, other, one, norm) for one in (found, known))
            noise[level].append({"residual": left, "ratio": left / least})
    false = 0
    for seed in range(unrelated):
        pair = [alignkit.fold(subject_weights(kind, 1000 + 2 * seed + at), graph).network for at in range(2)]
        false += alignkit.distance(graph, *pair).same
    row = {
        "kind": kind,
        "weights": sum(math.prod(node.shape) for node in graph.tensors.values()),
        "dimension": graph.dimension,
        "folds": len(graph.folds),
        "balances": len(graph.balances),
        "draws": draws,
        "undone": sum(value <= SAME for value in residuals),
        "residual": max(residuals),
        "noise": {
            str(level): {
                "found": sum(one["ratio"] <= 1.01 for one in rows),
                "of": len(rows),
                "residual": sum(one["residual"] for one in rows) / max(1, len(rows)),
            }
            for level, rows in noise.items()
        },
        "unrelated": unrelated,
        "false": false,
        "cpu_seconds": sum(seconds) / len(seconds),
    }
    print(json.dumps(row), flush=True)
    return row


def subject_weights(kind: str, seed: int) -> dict[str, Tensor]:
    """Return random weights of a kind."""
    torch.manual_seed(seed)
    return perturbed(KINDS[kind][0]().double().eval(), seed).state_dict()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each kind of network, and write them to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--unrelated", type=int, default=20, help="pairs of each kind")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [run(kind, given.draws, given.unrelated) for kind in given.kinds]
    if given.json is not None:
        known = json.loads(given.json.read_text()) if given.json.exists() else []
        kept = [row for row in known if row["kind"] not in given.kinds]
        given.json.write_text(json.dumps([*kept, *rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
