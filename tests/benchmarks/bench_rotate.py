"""What rotations are worth to rounding: transformers as given, folded and rotated, their matrices at few bits.

    python tests/benchmarks/bench_rotate.py gpt2 llama vit --folder NETWORKS --json docs/results/rotate.json

Networks are those of `bench_seeds.py`. The weights of each output of a matrix are rounded to the nearest of 2^bits - 1
numbers with one scale (round to nearest, symmetric). The error is relative to the root mean square of all matrices; the
loss is the held-out loss on 512 samples with rounded matrices.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import alignkit
from seed_networks import KINDS, Data, new_model, trained

SIZES = {"gpt2": (128, 2), "llama": (128, 2), "vit": (64, 3)}
BITS = (8, 4, 3)


def rounded(name: str, matrix: Tensor, bits: int) -> Tensor:
    """Round the weights of each output to a grid of their own: rows, in the layers of GPT-2 columns."""
    top = 2 ** (bits - 1) - 1
    step = matrix.abs().amax(0 if ".c_" in name else 1, keepdim=True) / top
    return (matrix / step.clamp_min(1e-30)).round() * step


def measure(network: Any, task: alignkit.Task) -> dict[str, Any]:
    """Return the loss of a network, and errors and losses once its matrices are rounded."""
    state = network.state_dict()
    matrices = {name: tensor for name, tensor in state.items() if tensor.ndim == 2}
    row: dict[str, Any] = {"loss": task.evaluate(state).loss}
    for bits in BITS:
        few = {name: rounded(name, matrix, bits) for name, matrix in matrices.items()}
        lost = sum(float((few[name] - matrix).square().sum()) for name, matrix in matrices.items())
        whole = sum(float(matrix.square().sum()) for matrix in matrices.values())
        row[f"{bits} bits"] = {"error": (lost / whole) ** 0.5, "loss": task.evaluate({**state, **few}).loss}
    return row


def run(kind: str, folder: Path) -> dict[str, Any]:
    """Measure the network of seed 0."""
    data, (width, layers) = Data(kind), SIZES[kind]
    network = trained(kind, width, layers, 0, folder, data)
    samples = list(islice(data.batches(99, 256, held_out=True), 2))
    example = {name: tensor[:2] for name, tensor in samples[0].items() if name != "labels"}
    graph = alignkit.trace(new_model(kind, width, layers, 0), symmetries="all", **example)
    networks = {
        "as given": network,
        "folded": alignkit.fold(network, graph, balance=False, **example).network,
        "rotated, hadamard": alignkit.rotate(network, graph, **example).network,
        "rotated, random": alignkit.rotate(network, graph, residual="random", heads="random", **example).network,
    }
    rows = {}
    for name, made in networks.items():
        rows[name] = measure(made, alignkit.Task(made, samples, "model"))
        print(kind, name, rows[name], flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure networks, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=[kind for kind in KINDS if kind in SIZES])
    parser.add_argument("--folder", type=Path, required=True, help="where the networks are, or are put")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = json.loads(given.json.read_text()) if given.json.exists() else {}
    for kind in given.kinds:
        results[kind] = run(kind, given.folder)
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
