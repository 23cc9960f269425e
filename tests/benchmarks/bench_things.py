"""Things that stand on a network, carried to a copy of it and to networks of other seeds: what each still does there.

    python tests/benchmarks/bench_things.py gpt2 --folder NETWORKS --json docs/results/things.json

On every network a linear probe, a steering vector and a sparse autoencoder are made for the stream between its middle
layers, a LoRA adapter and a whole fine-tune for another task (text in capitals, or negative images). What counts is the
part of the gain that is kept: 1 is what a thing does on its own network, 0 is nothing. The probe is measured above the
share of the most frequent class, the autoencoder in explained variance, the steering vector in what it adds to the
log-probability of its class, adapter and fine-tune in what they take from the loss of their task. The copy is the same
network, folded, balanced and under a random symmetry. Each network is
carried to the next two. Bootstrap over pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import alignkit
from alignkit import Alignment, SymmetryGraph
from alignkit.jobs import Adapter
from alignkit.rewriting import module_with
from bench_merge_transformers import CHARACTERS
from seed_networks import Data, keep, new_model, trained

SIZES = {"gpt2": (128, 2), "llama": (128, 2), "vit": (64, 3)}
PLACES = {"gpt2": "transformer.h.0", "llama": "model.layers.0", "vit": "vit.layers.1"}
ADAPTED = ("c_attn", "c_proj", "c_fc", "q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "fc1", "fc2")
RANK, CODES, STEPS, RATE = 8, 512, 200, 3e-3
THINGS = ("probe", "steering vector", "autoencoder", "LoRA adapter", "fine-tune")
Batch = dict[str, Tensor]


class Tasks:
    """Data of one kind: as it was trained on, and as it is fine-tuned on."""

    def __init__(self, kind: str) -> None:
        self.data = Data(kind)
        upper = [CHARACTERS.index(c.upper()) for c in CHARACTERS]
        self.capitals = torch.tensor(upper)

    def batches(self, seed: int, size: int, *, held_out: bool = False, other: bool = False) -> Iterator[Batch]:
        """Yield batches without an end; ``other`` are those of the other task."""
        for batch in self.data.batches(seed, size, held_out=held_out):
            if not other:
                yield batch
            elif self.data.is_text:
                pieces = self.capitals[batch["input_ids"]]
                yield {"input_ids": pieces, "labels": pieces}
            else:
                yield {**batch, "pixel_values": 1 - batch["pixel_values"]}

    def classes(self, batch: Batch) -> Tensor:
        """Return what the probe tells: whether the next character ends a word, or which digit it is."""
        if not self.data.is_text:
            return batch["labels"]
        return (batch["input_ids"][:, 1:] <= 1).long()  # a line's end or a blank

    def loss(self, model: nn.Module, *, other: bool) -> float:
        """Measure the loss on held-out samples."""
        batches = self.batches(98, 128, held_out=True, other=other)
        with torch.no_grad():
            return mean(float(model(**next(batches)).loss) for _ in range(4))


@contextmanager
def at_output(model: nn.Module, path: str, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call a function with what comes out of a module; what it returns takes its place."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        is_tuple = isinstance(output, tuple)
        new = change(output[0] if is_tuple else output)
        return output if new is None else (new, *output[1:]) if is_tuple else new

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def stream(model: nn.Module, path: str, batch: Batch) -> Tensor:
    """Return the stream at the output of a module; of an image that of its class token."""
    kept: list[Tensor] = []
    with torch.no_grad(), at_output(model, path, lambda values: kept.append(values)):
        model(**batch)
    values = kept[0]
    return values[:, 0] if "pixel_values" in batch else values[:, :-1]


@dataclass
class Maker:
    """Makes and measures things on networks of one kind."""

    kind: str
    tasks: Tasks
    path: str

    def samples(self, model: nn.Module, seed: int, count: int, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Return the stream on some batches, ``[samples, width]``, and the classes."""
        batches = self.tasks.batches(seed, 128, held_out=held_out)
        parts = [(stream(model, self.path, b), self.tasks.classes(b)) for b in (next(batches) for _ in range(count))]
        return torch.cat([x.flatten(0, -2) for x, _ in parts]), torch.cat([y.flatten() for _, y in parts])

    def probe(self, model: nn.Module, seed: int) -> dict[str, Tensor]:
        """Fit a linear probe."""
        x, y = self.samples(model, seed, 8)
        weight = torch.zeros(int(y.max()) + 1, x.shape[1], requires_grad=True)
        bias = torch.zeros(len(weight), requires_grad=True)
        scale = x.std()
        optimiser = torch.optim.Adam([weight, bias], 0.01)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(STEPS):
            rows = torch.randint(len(x), (1024,), generator=generator)
            optimiser.zero_grad()
            cross_entropy(x[rows] @ weight.T / scale + bias, y[rows]).backward()
            optimiser.step()
        return {"weight": weight.detach() / scale, "bias": bias.detach()}

    def accuracy(self, model: nn.Module, probe: Mapping[str, Tensor]) -> float:
        """Return how far the probe's accuracy is above the share of the most frequent class."""
        x, y = self.samples(model, 97, 4, held_out=True)
        right = float(((x @ probe["weight"].T + probe["bias"]).argmax(-1) == y).double().mean())
        return right - float(y.bincount().max()) / len(y)

    def steering(self, model: nn.Module, seed: int) -> dict[str, Tensor]:
        """Return the difference of means of the stream between the last class and all others."""
        x, y = self.samples(model, seed, 8)
        return {"vector": x[y == y.max()].mean(0) - x[y != y.max()].mean(0)}

    def steered(self, model: nn.Module, things: Mapping[str, Tensor]) -> float:
        """Return what the vector adds to the log-probability of its class."""
        batch = next(self.tasks.batches(96, 256, held_out=True))

        def chance() -> float:
            logits = model(**batch).logits.log_softmax(-1)
            wanted = [9] if "pixel_values" in batch else [0, 1]
            return float(logits[..., wanted].logsumexp(-1).mean())

        with torch.no_grad():
            plain = chance()
            with at_output(model, self.path, lambda values: values + things["vector"]):
                return chance() - plain

    def autoencoder(self, model: nn.Module, seed: int) -> dict[str, Tensor]:
        """Train a sparse autoencoder with ReLU and an L1 penalty."""
        x, _ = self.samples(model, seed, 8)
        generator = torch.Generator().manual_seed(seed)
        scale = (x - x.mean(0)).square().mean().sqrt()
        decoder = torch.randn(x.shape[1], CODES, generator=generator)
        decoder /= decoder.norm(dim=0)
        parts = {"encoder": decoder.T.clone(), "encoder_bias": torch.zeros(CODES), "decoder": decoder}
        parts["decoder_bias"] = x.mean(0) / scale
        for part in parts.values():
            part.requires_grad_()
        optimiser = torch.optim.Adam(parts.values(), 2e-3)
        for _ in range(2 * STEPS):
            rows = x[torch.randint(len(x), (512,), generator=generator)] / scale
            codes = torch.relu((rows - parts["decoder_bias"]) @ parts["encoder"].T + parts["encoder_bias"])
            error = (codes @ parts["decoder"].T + parts["decoder_bias"] - rows).square().sum(-1)
            optimiser.zero_grad()
            (error + 0.02 * codes.sum(-1)).mean().backward()
            optimiser.step()
        found = {name: part.detach() for name, part in parts.items()}
        return {
            "encoder": found["encoder"] / scale,
            "encoder_bias": found["encoder_bias"],
            "decoder": found["decoder"] * scale,
            "decoder_bias": found["decoder_bias"] * scale,
        }

    def explained(self, model: nn.Module, sae: Mapping[str, Tensor]) -> float:
        """Return the share of the variance of the stream, without its mean over units, that is explained."""
        x, _ = self.samples(model, 95, 2, held_out=True)
        codes = torch.relu((x - sae["decoder_bias"]) @ sae["encoder"].T + sae["encoder_bias"])
        error = codes @ sae["decoder"].T + sae["decoder_bias"] - x
        centred = self.kind != "llama"
        error, spread = (v - v.mean(-1, keepdim=True) if centred else v for v in (error, x - x.mean(0)))
        return 1 - float(error.square().sum() / spread.square().sum())

    def tuned(self, model: nn.Module, seed: int) -> nn.Module:
        """Train all weights on the other task."""
        copy = new_model(self.kind, *SIZES[self.kind], seed)
        copy.load_state_dict(model.state_dict())
        optimiser = torch.optim.AdamW(copy.parameters(), 2e-4)
        copy.train()
        for _, batch in zip(range(STEPS), self.tasks.batches(seed, 16, other=True), strict=False):
            optimiser.zero_grad()
            copy(**batch).loss.backward()
            optimiser.step()
        return copy.eval()

    def adapter(self, model: nn.Module, seed: int) -> Adapter:
        """Train a LoRA adapter on the other task."""
        generator = torch.Generator().manual_seed(seed)
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        transposed = self.kind == "gpt2"
        for path, module in model.named_modules():
            if path.rpartition(".")[2] in ADAPTED and getattr(module, "weight", None) is not None:
                outputs, inputs = module.weight.shape[::-1] if transposed else module.weight.shape
                a = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
                factors[path] = a.requires_grad_(), torch.zeros(outputs, RANK).requires_grad_()
        optimiser = torch.optim.AdamW([f for pair in factors.values() for f in pair], RATE, weight_decay=0.0)
        own = {name: tensor.detach() for name, tensor in model.named_parameters()}
        for _, batch in zip(range(STEPS), self.tasks.batches(seed, 16, other=True), strict=False):
            changed = dict(own)
            for path, (a, b) in factors.items():
                added = 2 * b @ a
                changed[f"{path}.weight"] = own[f"{path}.weight"] + (added.T if transposed else added)
            optimiser.zero_grad()
            functional_call(model, changed, (), batch).loss.backward()
            optimiser.step()
        tensors = {}
        for path, (a, b) in factors.items():
            start = f"base_model.model.{path}.lora_"
            tensors |= {f"{start}A.weight": a.detach(), f"{start}B.weight": b.detach()}
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "fan_in_fan_out": transposed}
        return Adapter(config, tensors)

    def with_adapter(self, model: nn.Module, adapter: Adapter) -> nn.Module:
        """Return a network with an adapter in its weights."""
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for module, names in adapter.factors.items():
            added = adapter.product(module).float()
            state[f"{names.module}.weight"] += added.T if adapter.is_transposed else added
            if names.bias in adapter.tensors and f"{names.module}.bias" in state:
                state[f"{names.module}.bias"] += adapter.scale(module) * adapter.tensors[names.bias]
        return module_with(model, state)


def carriers(kind: str, model: nn.Module, tasks: Tasks, path: str) -> dict[str, tuple[SymmetryGraph, str]]:
    """Return the graph and the solver of each way to align."""
    example = {name: tensor[:2] for name, tensor in next(tasks.batches(0, 2)).items() if name != "labels"}
    graph, whole = alignkit.trace(model, **example), alignkit.trace(model, symmetries="all", **example)
    return {
        "permutations, weights": (graph, "weight_matching"),
        "permutations, activations": (graph, "activation_matching"),
        "all symmetries, weights": (whole, "weight_matching"),
        "all symmetries, activations": (whole, "activation_matching"),
    }


class Source:
    """One network of several, with the things that were made on it, which it carries to others."""

    def __init__(self, kind: str, seeds: int, number: int, folder: Path) -> None:
        torch.set_num_threads(1)
        self.tasks, self.path = Tasks(kind), PLACES[kind]
        self.maker = Maker(kind, self.tasks, self.path)
        data = self.tasks.data
        self.network = trained(kind, *SIZES[kind], number, folder, data)
        others = sorted({(number + step) % seeds for step in (1, 2)} - {number})
        self.targets = [trained(kind, *SIZES[kind], other, folder, data) for other in others]
        self.ways = carriers(kind, self.network, self.tasks, self.path)
        whole = self.ways["all symmetries, weights"][0]
        self.copy = Alignment.random(whole, 7 + number).apply(alignkit.fold(self.network, whole).network)
        self.ways_of_copy = carriers(kind, self.copy, self.tasks, self.path)
        maker = self.maker
        self.things: dict[str, Any] = {
            "probe": maker.probe(self.network, number),
            "steering vector": maker.steering(self.network, number),
            "autoencoder": maker.autoencoder(self.network, number),
            "LoRA adapter": maker.adapter(self.network, number),
            "fine-tune": maker.tuned(self.network, number),
        }
        self.own = self.gains(self.network, self.things)

    def gains(self, target: nn.Module, things: Mapping[str, Any]) -> dict[str, float]:
        """Measure what things do for a network."""
        before, maker = self.tasks.loss(target, other=True), self.maker
        return {
            "probe": maker.accuracy(target, things["probe"]),
            "steering vector": maker.steered(target, things["steering vector"]),
            "autoencoder": maker.explained(target, things["autoencoder"]),
            "LoRA adapter": before - self.tasks.loss(maker.with_adapter(target, things["LoRA adapter"]), other=True),
            "fine-tune": before - self.tasks.loss(things["fine-tune"], other=True),
        }

    def kept(self, target: nn.Module, things: Mapping[str, Any]) -> dict[str, float]:
        """Measure the part of the gain on the own network that things have on another one."""
        return {thing: gain / self.own[thing] for thing, gain in self.gains(target, things).items()}

    def as_they_are(self, target: nn.Module) -> dict[str, float]:
        """Use things on another network as they are."""
        base, after = self.network.state_dict(), self.things["fine-tune"].state_dict()
        moved = {
            name: tensor + after[name] - base[name] if tensor.is_floating_point() else tensor
            for name, tensor in target.state_dict().items()
        }
        return self.kept(target, {**self.things, "fine-tune": module_with(target, moved)})

    def carried(self, target: nn.Module, graph: SymmetryGraph, solver: str) -> dict[str, float]:
        """Carry all things to another network."""
        head = ("lm_head.weight",) if "lm_head.weight" in graph.tensors else ()
        base, after = (module_with(network, {}, head) for network in (self.network, self.things["fine-tune"]))
        sides = [alignkit.fold(network, graph) for network in (base, target)]
        batches = self.tasks.batches(5, 64)
        task = alignkit.Task(sides[0].network, [next(batches), next(batches)], "model")
        alignment = alignkit.solve(
            graph, *(side.network for side in sides), solver=solver, task=task if "activation" in solver else None
        ).alignment
        values: dict[str, Any] = {}
        for thing in ("probe", "steering vector", "autoencoder"):
            tensors = self.things[thing]
            width = self.network.config.hidden_size
            layouts = {
                name: " ".join(f"@{self.path}" if size == width else "." for size in tensor.shape)
                for name, tensor in tensors.items()
            }
            values[thing] = alignkit.transport_tensors(
                graph, *sides, tensors=tensors, layouts=layouts, alignment=alignment, model=base
            ).tensors
        values["LoRA adapter"] = alignkit.transport_adapter(
            graph, *sides, adapter=self.things["LoRA adapter"], alignment=alignment
        ).adapter
        values["fine-tune"] = alignkit.transport(graph, *sides, tuned=after, alignment=alignment).network
        return self.kept(target, values)


def of_source(kind: str, seeds: int, number: int, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Return what the things of one network do for it, and what is kept by where and how they are carried."""
    source = Source(kind, seeds, number, folder)
    rows = {
        ("copy", "as they are"): [source.as_they_are(source.copy)],
        ("other seed", "as they are"): [source.as_they_are(target) for target in source.targets],
    }
    for how, way in source.ways.items():
        rows["copy", how] = [source.carried(source.copy, *(way if way[0].folds else source.ways_of_copy[how]))]
        rows["other seed", how] = [source.carried(target, *way) for target in source.targets]
    return source.own, rows


def run(kind: str, seeds: int, folder: Path, jobs: int) -> dict[str, Any]:
    """Make the things of each network, carry them to a copy and to the others, and return what is kept."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        results = list(pool.map(of_source, [kind] * seeds, [seeds] * seeds, range(seeds), [folder] * seeds))
    rows = []
    for where, how in results[0][1]:
        kept = [one for _, found in results for one in found[where, how]]
        row: dict[str, Any] = {"where": where, "row": how, "pairs": len(kept)}
        for thing in THINGS:
            values = np.array([one[thing] for one in kept])
            draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
            low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
            row[thing] = {"kept": float(values.mean()), "low": float(low), "high": float(high)}
        rows.append(row)
        print(where, how, {thing: round(row[thing]["kept"], 3) for thing in THINGS}, flush=True)
    own = {thing: mean(gains[thing] for gains, _ in results) for thing in THINGS}
    return {"kind": kind, "sizes": SIZES[kind], "seeds": seeds, "own": own, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one kind; add it to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=SIZES)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--folder", type=Path, required=True, help="where the networks are, or are put")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    result = run(given.kind, given.seeds, given.folder, given.jobs)
    if given.json is not None:
        keep(given.json, result)


if __name__ == "__main__":
    main()
