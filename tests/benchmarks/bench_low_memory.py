"""Match, align, average and fold Llama-style checkpoints of over 1 billion parameters with little memory.

Run by name, on one thread, below ``/usr/bin/time -v`` where its word on the peak memory is wanted; FOLDER needs 9 GB::

    python tests/benchmarks/bench_low_memory.py generate FOLDER
    /usr/bin/time -v python tests/benchmarks/bench_low_memory.py import FOLDER
    /usr/bin/time -v python tests/benchmarks/bench_low_memory.py match FOLDER --memory 400MB
    /usr/bin/time -v python tests/benchmarks/bench_low_memory.py align FOLDER --memory 400MB
    /usr/bin/time -v python tests/benchmarks/bench_low_memory.py merge FOLDER --memory 400MB
    /usr/bin/time -v python tests/benchmarks/bench_low_memory.py fold FOLDER --memory 1200MB
    rm -r FOLDER

``generate`` traces the architecture on the meta device and keeps its graphs in FOLDER, so that transformers is not in
the memory of the other steps. B is A with its units in random order, plus noise of half the size of the weights. Aim:
the peak of each step, less that of ``import``, is at most a quarter of one checkpoint.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import alignkit
from alignkit import Alignment, Solution, SymmetryGraph
from alignkit.checkpoints import ByteProgress, open_checkpoint, write_checkpoint
from alignkit.graph.stored import Budget
from alignkit.graph.stored.opening import open_stored
from alignkit.jobs.from_disk import align_checkpoint, match_checkpoints, merge_checkpoints

sys.path.insert(0, str(Path(__file__).parents[1]))

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 14,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SMALL = (
    CONFIG
    | {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    | {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
)
SCALE, NOISE = 0.02, 0.5
"""Size of the weights, and of the noise of B as a part of it."""
SHARD = 400_000_000
"""Bytes of a shard, about."""


def generate(folder: Path, config: dict[str, object]) -> None:
    """Write A, B, the graph and the order of B's units."""
    import safetensors.torch

    from alignkit.models import load_model
    from helpers import torchvision_shim

    torchvision_shim.install()
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model, args, kwargs = load_model(f"transformers:{folder / 'a' / 'config.json'}")
    graph = alignkit.trace(model, *args, **kwargs)
    (folder / "graph.json").write_text(graph.to_json())
    whole = alignkit.trace(model, *args, symmetries="all", **kwargs)
    (folder / "all.json").write_text(whole.to_json())
    (folder / "groups.txt").write_text(graph.report())
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, Tensor]] = [{}]
    weight_map = {}
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        node = next(node for node in graph.tensors.values() if name in node.names)
        value = SCALE * torch.randn(node.shape, generator=generator)
        value = (value if len(node.shape) > 1 else 1 + value).to(torch.bfloat16)
        if sum(t.nbytes for t in shards[-1].values()) + value.nbytes > SHARD and shards[-1]:
            safetensors.torch.save_file(shards[-1], folder / "a" / _shard(len(shards)), {"format": "pt"})
            shards[-1].clear()
            shards.append({})
        shards[-1][name] = value
        weight_map[name] = _shard(len(shards))
    safetensors.torch.save_file(shards[-1], folder / "a" / _shard(len(shards)), {"format": "pt"})
    (folder / "a" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    a = open_checkpoint(folder / "a")
    planted = Alignment.random(graph, 1)
    planted.save(folder / "planted.safetensors")
    (network,) = open_stored(graph, {"A": a}, Budget(1 << 26))
    values = network.under(planted.elements).pieces

    def noisy(name: str) -> Iterator[Tensor]:
        found = values(name)
        for piece in [found] if isinstance(found, Tensor) else found:
            noise = NOISE * SCALE * torch.randn(piece.shape, generator=generator)
            yield (piece.float() + noise).to(piece.dtype)

    write_checkpoint(folder / "b", a, noisy)
    print(f"{sum(t.numel() for t in model.parameters()):,} parameters, {a.nbytes:,} bytes, {len(a.shards)} shards")


def _shard(number: int) -> str:
    return f"model-{number:05}.safetensors"


class Estimates:
    """Prints how far each sweep is, and afterwards how good the estimates of the time left were."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, ByteProgress]] = []
        self.tenth = -1
        self.stage = ""

    def __call__(self, report: ByteProgress) -> None:
        tenth = int(10 * report.fraction)
        if (self.stage, self.tenth) != (report.stage, tenth):
            self.stage, self.tenth = report.stage, tenth
            self.reports.append((time.perf_counter(), report))
            left = "unknown" if report.remaining is None else f"{report.remaining:.0f} s"
            print(
                f"{report.stage}: {report.done / 1e9:.2f} of {report.total / 1e9:.2f} GB, "
                f"{100 * report.fraction:.0f} % of the work, {report.seconds:.0f} s, left {left}",
                flush=True,
            )

    def judge(self, ended: float) -> None:
        """For every sweep: the end that was estimated along the way, over the end that came."""
        stages = list(dict.fromkeys(report.stage for _, report in self.reports))
        for number, stage in enumerate(stages):
            own = [(at, report) for at, report in self.reports if report.stage == stage]
            began = own[0][0] - own[0][1].seconds
            later = [
                at - r.seconds for at, r in self.reports if number + 1 < len(stages) and r.stage == stages[number + 1]
            ]
            took = (later[0] if later else ended) - began
            said = ", ".join(
                f"{100 * r.fraction:.0f} %: {(r.seconds + r.remaining) / took:.2f}"
                for _, r in own
                if r.remaining is not None
            )
            print(f"{stage} took {took:.0f} s; estimated over real length at {said}")


def match(folder: Path, memory: str, products: str) -> None:
    """Match B to A and compare the result with the planted order."""
    graph = SymmetryGraph.from_json((folder / "graph.json").read_text())
    planted = Alignment.load(folder / "planted.safetensors", graph).inverse()
    estimates = Estimates()
    started = time.perf_counter()
    solution = match_checkpoints(graph, folder / "a", folder / "b", memory, on_progress=estimates, products=products)
    seconds = time.perf_counter() - started
    estimates.judge(started + seconds)
    right = sum(int((solution.alignment.flat(name) == planted.flat(name)).sum()) for name in graph.groups)
    units = sum(len(planted.flat(name)) for name in graph.groups)
    print(f"{right} of {units} units found in {seconds:.0f} s and {len(solution.history)} sweeps")
    print(f"squared distance {solution.objective_before:.6g} -> {solution.objective_after:.6g}")
    solution.save(folder / "solution.safetensors")


def align(folder: Path, memory: str) -> None:
    """Write aligned B."""
    started = time.perf_counter()
    align_checkpoint(
        folder / "aligned", open_checkpoint(folder / "b"), _solution(folder), memory=memory, overwrite=True
    )
    print(f"aligned in {time.perf_counter() - started:.0f} s")


def merge(folder: Path, memory: str) -> None:
    """Write the average of A and aligned B."""
    started = time.perf_counter()
    sides = [open_checkpoint(folder / side) for side in "ab"]
    merge_checkpoints(folder / "merged", sides, [None, _solution(folder)], memory=memory, overwrite=True)
    print(f"averaged in {time.perf_counter() - started:.0f} s")


def fold(folder: Path, memory: str) -> None:
    """Write A folded and balanced; its head is not tied, so that the form of the checkpoint stays."""
    graph, started = SymmetryGraph.from_json((folder / "all.json").read_text()), time.perf_counter()
    a = open_checkpoint(folder / "a")
    folded = alignkit.fold(a, graph, memory=memory)
    print(f"{folded!r} in {time.perf_counter() - started:.0f} s")
    write_checkpoint(folder / "folded", a, folded.network.pieces, overwrite=True)
    print(f"written after {time.perf_counter() - started:.0f} s")


def _solution(folder: Path) -> Solution:
    return Solution.load(folder / "solution.safetensors", SymmetryGraph.from_json((folder / "graph.json").read_text()))


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["generate", "import", "match", "align", "merge", "fold"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="400MB")
    parser.add_argument("--products", default="auto", choices=["auto", "float32", "float64"])
    parser.add_argument("--small", action="store_true", help="generate a few million parameters only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.step == "generate":
        generate(given.folder, SMALL if given.small else CONFIG)
    elif given.step == "match":
        match(given.folder, given.memory, given.products)
    elif given.step in ("align", "merge", "fold"):
        {"align": align, "merge": merge, "fold": fold}[given.step](given.folder, given.memory)
    print(f"peak resident set {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
