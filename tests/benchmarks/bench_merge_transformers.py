"""Two small transformers from different seeds, merged through the command line: losses beside the parents'.

    python tests/benchmarks/bench_merge_transformers.py gpt2 --folder /tmp/merge-gpt2 [--steps 800]
    python tests/benchmarks/bench_merge_transformers.py bert --folder /tmp/merge-bert --steps 2000

Characters of the sources of Python's standard library; a decoder (``gpt2``) predicts the next one, an encoder
(``bert``) those that are masked. A and B have other seeds of weights and of data. "A tuned" is A after further steps on
other text, its heads and units put into a random order: the case in which one basin is known to exist.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import alignkit
from alignkit.models import load_model

TESTS = str(Path(__file__).parents[1])
sys.path.insert(0, TESTS)
from helpers import torchvision_shim  # noqa: E402  transformers imports torchvision, which may be built for another torch

torchvision_shim.install()

LENGTH, BATCH, HELD_OUT = 64, 16, 200_000
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
MASK = len(CHARACTERS)
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": MASK + 1,
        "n_positions": LENGTH,
        "n_embd": 128,
        "n_layer": 2,
        "n_head": 4,
        "use_cache": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "bert": {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "vocab_size": MASK + 1,
        "max_position_embeddings": LENGTH,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "pad_token_id": 0,
    },
}
RATES = {"gpt2": 2e-3, "bert": 5e-4}
"""Largest learning rates; the encoder, which normalises after its sums, does not learn at larger ones."""
SOLVERS = ("weight_matching", "deepalign", "activation_matching", "activation_matching > weight_matching")


def text(limit: int = 4_000_000) -> Tensor:
    """Characters of the standard library's modules as numbers, int64."""
    table = {character: at for at, character in enumerate(CHARACTERS)}
    codes: list[int] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        codes += [table[c] for c in path.read_text(encoding="utf-8", errors="ignore") if c in table]
        if len(codes) >= limit:
            break
    return torch.tensor(codes[:limit])


def batch(kind: str, codes: Tensor, generator: torch.Generator, size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Inputs ``[size, LENGTH]`` and targets; -100 where nothing is asked."""
    starts = torch.randint(len(codes) - LENGTH - 1, (size,), generator=generator)
    pieces = codes[starts[:, None] + torch.arange(LENGTH + 1)]
    if kind == "gpt2":
        return pieces[:, :-1], pieces[:, 1:]
    pieces = pieces[:, :-1]
    hidden = torch.rand(pieces.shape, generator=generator) < 0.15
    return torch.where(hidden, MASK, pieces), torch.where(hidden, pieces, -100)


def loss(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of the characters that are asked for, in nats."""
    return cross_entropy(outputs.logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def train(kind: str, model: Any, codes: Tensor, seed: int, steps: int, rate: float) -> None:
    """AdamW with warm-up and cosine decay."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        inputs, targets = batch(kind, codes, generator)
        found = loss(model(input_ids=inputs), targets)
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            print(f"  step {step}: {float(found):.3f}", file=sys.stderr, flush=True)


def new_model(kind: str, seed: int) -> Any:
    """A model with random weights and no dropout."""
    import transformers

    torch.manual_seed(seed)
    values = {**CONFIGS[kind], "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if kind == "bert" else {}
    config = transformers.CONFIG_MAPPING[kind].from_dict(values)
    return getattr(transformers, config.architectures[0])(config)


def make(kind: str, folder: Path, steps: int) -> None:
    """Train A, B and a tuned A in another order, and save them as folders."""
    codes = text()[:-HELD_OUT]
    half = len(codes) // 2
    for name, seed in (("a", 0), ("b", 1)):
        if not (folder / name / "config.json").exists():
            model = new_model(kind, seed)
            train(kind, model, codes, seed, steps, RATES[kind])
            model.save_pretrained(folder / name)
    if (folder / "tuned" / "config.json").exists():
        return
    model = new_model(kind, 0)
    model.load_state_dict(alignkit.read_weights(folder / "a" / "model.safetensors"), strict=False)
    train(kind, model, codes[half:], 2, steps // 4, RATES[kind] / 5)
    bare, args, kwargs = load_model(f"transformers:{folder / 'a'}", bare=True)
    graph = alignkit.trace(bare, *args, **kwargs)
    alignkit.Alignment.random(graph, 5).apply(model).save_pretrained(folder / "tuned")


def task(kind: str) -> alignkit.Task:
    """Held-out text for a model of one kind."""
    generator = torch.Generator().manual_seed(99)
    batches = [batch(kind, text()[-HELD_OUT:], generator, 32) for _ in range(4)]
    return alignkit.Task(new_model(kind, 0), [({"input_ids": x}, y) for x, y in batches], loss)


def gpt2() -> alignkit.Task:
    """The task as ``--task bench_merge_transformers:gpt2`` names it."""
    return task("gpt2")


def bert() -> alignkit.Task:
    """The task as ``--task bench_merge_transformers:bert`` names it."""
    return task("bert")


def merge(kind: str, folder: Path, other: str, name: str, *switches: str) -> dict[str, Any]:
    """Merge A and another model with ``alignkit merge``, from the folder of this file."""
    start = "from helpers import torchvision_shim; torchvision_shim.install(); from alignkit.cli import main; main()"
    program = [sys.executable, "-W", "ignore", "-c", start]
    output = folder / f"merged-{other}-{name.replace(' > ', '-')}"
    call = ["merge", str(folder / "a"), str(folder / other), "-o", str(output), "--force", "--json"]
    call += ["--task", f"bench_merge_transformers:{kind}", *switches]
    done = subprocess.run(
        [*program, *call],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": TESTS},
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "rror: " in line]
        return {"problem": said[0] if said else f"exit code {done.returncode}"}
    return {**json.loads(done.stdout), "folder": output}


def main() -> None:
    """Train, merge, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(CONFIGS))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    given = parser.parse_args()
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    make(given.kind, given.folder, given.steps)
    print(f"trained in {perf_counter() - started:.0f} s, {given.steps} steps each\n")
    held_out = task(given.kind)
    parents = {n: alignkit.read_weights(given.folder / n / "model.safetensors") for n in ("a", "b", "tuned")}
    for name, weights in parents.items():
        print(f"loss of {name}: {held_out.evaluate(weights).loss:.4f} nats a character")
    for other in ("b", "tuned"):
        print(f"\n| average of a and {other} | squared distance | loss | barrier | function check | seconds |")
        print("|---|---:|---:|---:|---:|---:|")
        rows = {"not aligned": ("--no-align",), **{s: ("--solver", s) for s in SOLVERS}}
        for name, switches in rows.items():
            merged = merge(given.kind, given.folder, other, name, *switches)
            if "problem" in merged:
                print(f"| {name} | failed: {merged['problem']} | | | | |", flush=True)
                continue
            written = held_out.evaluate(alignkit.read_weights(merged["folder"] / "model.safetensors")).loss
            distance = f"{merged['after']:.4g}" if "after" in merged else "-"
            barrier = merged["task"]["barrier_aligned"]
            print(
                f"| {name} | {distance} | {written:.4f} | {barrier:.4f} | {merged['function_error']:.0e} | "
                f"{merged['seconds']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
