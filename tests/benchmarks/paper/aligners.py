"""Train the aligners of the paper's experiments: one encoder for one architecture, several seeds.

    python tests/benchmarks/paper/aligners.py --folder SETS --data IDX --aligners OUT --set mnist-mlp --encoder dws

SETS is what ``paper_data.py`` made. An aligner that is there is not trained again, one that was cut off goes on. Each
leaves ``aligner.safetensors`` and ``facts.json`` (settings, steps, networks, CPU seconds, held-out barriers) in
OUT/SET/ENCODER-SEED.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import measure
import torch

import alignkit.zoo as zoo
from alignkit.deepalign import Aligner, DwsAligner, ProbeEncoder, save_aligner
from alignkit.training import RECOMMENDED, train

SEEDS = (0, 1, 2)
FACTS, ALIGNER = "facts.json", "aligner.safetensors"


@dataclass(frozen=True)
class Schedule:
    """How one kind of aligner is trained here; the same for every set of networks.

    Attributes:
        aligner: Arguments of the aligner.
        training: What differs from the recommended settings.
    """

    aligner: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


SCHEDULES = {
    "dws": Schedule(
        {"edges": 8},
        {
            "pairs": 2,
            "pairs_at_once": None,
            "learning_rate": 2e-3,
            "final_rate": 0.05,
            "supervised": 0.5,
            "alignment": 0.5,
            "interpolation": 2.0,
            "supervised_every": 3,
        },
    ),
    "learned": Schedule({}, {"pairs": 2}),
}


def made(networks: zoo.NetworkSet, encoder: str, seed: int) -> Aligner:
    """A fresh aligner."""
    arguments = SCHEDULES[encoder].aligner
    if encoder == "dws":
        return DwsAligner(networks.graph, **arguments, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ProbeEncoder(**arguments)


def trained(
    networks: zoo.NetworkSet,
    encoder: str,
    seed: int,
    folder: Path,
    data: Path | None,
    steps: int,
    pairs: int,
    **changes: Any,
) -> dict[str, Any]:
    """Train one aligner unless it is there; what is known about its training.

    Args:
        networks: The data set.
        encoder: Kind of aligner.
        seed: Seed of its parameters and of everything random in training.
        folder: Where it goes.
        data: Folder of idx files.
        steps: Steps of the optimizer.
        pairs: Held-out pairs on which the best step is chosen.
        changes: Settings of the training that differ from those of the schedule.
    """
    if (folder / FACTS).exists():
        return dict(measure.read_json(folder / FACTS))
    looks = {"validate_every": max(1, steps // 4), "validation_pairs": pairs, "checkpoint_every": 100}
    chosen = SCHEDULES[encoder].training | looks | changes | {"seed": seed, "steps": steps}
    settings = RECOMMENDED[encoder].model_copy(update=chosen)
    started = process_time()
    found = train(made(networks, encoder, seed), [networks], settings, folder, data=data, resume=True)
    facts = {
        "encoder": encoder,
        "seed": seed,
        "parameters": sum(tensor.numel() for tensor in found.aligner.parameters()),
        "arguments": SCHEDULES[encoder].aligner,
        "settings": settings.model_dump(mode="json"),
        "networks": len(networks.indices("train")),
        "steps": found.steps,
        "best_step": found.best_step,
        "cpu_seconds": round(process_time() - started, 1),
        "fingerprint": found.aligner.fingerprint,
        "held_out": {"barrier": found.barriers, "weight_matching": found.references, "before": found.start},
    }
    save_aligner(folder / ALIGNER, found.aligner, {"set": networks.folder.name, "seed": str(seed)})
    measure.write_json(folder / FACTS, facts)
    return facts


def checkpoints(aligners: Path, name: str, encoder: str) -> list[tuple[dict[str, Any], Path]]:
    """All trained aligners of an encoder for a set: what is known about each, and its file; by seed."""
    folders = sorted((aligners / name).glob(f"{encoder}-*"))
    return [(measure.read_json(f / FACTS), f / ALIGNER) for f in folders if (f / FACTS).exists()]


def main() -> None:
    """Train the aligners of one set."""
    parser = measure.switches(__doc__, "aligners", "set", seeds=SEEDS)
    parser.add_argument("--encoder", choices=list(SCHEDULES), default="dws")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=8, help="held-out pairs on which the best step is chosen")
    arguments = parser.parse_args()
    measure.single_thread()
    networks = zoo.NetworkSet.open(arguments.folder / arguments.set)
    for seed in arguments.seeds:
        folder = arguments.aligners / arguments.set / f"{arguments.encoder}-{seed}"
        facts = trained(networks, arguments.encoder, seed, folder, arguments.data, arguments.steps, arguments.pairs)
        print(
            f"{folder.name}: {facts['held_out']}, step {facts['best_step']}, {facts['cpu_seconds']} CPU s", flush=True
        )


if __name__ == "__main__":
    main()
