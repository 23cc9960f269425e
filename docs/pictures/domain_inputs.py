"""What more drawn inputs are worth to domain aligners, and what Sinkhorn makes of one, in words.

From ``docs/results/domain-inputs.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RESULTS = json.loads((Path(__file__).parents[1] / "results" / "domain-inputs.json").read_text(encoding="utf-8"))


def words() -> str:
    """Mean barriers by the number of inputs, and after Sinkhorn."""
    parts = []
    for name, one in RESULTS.items():
        means = {count: np.mean(list(seeds.values())) for count, seeds in one["barriers"].items()}
        seeds = ", ".join(f"{np.mean(values):.4f}" for values in list(one["barriers"].values())[-1].values())
        before, after = (f"{means[count]:.4f} with {int(count):,}" for count in one["barriers"])
        parts.append(
            f"On {name} ({one['pairs']} pairs, {one['samples']:,} test images) the mean barrier is {before} inputs and "
            f"{after} (each seed: {seeds})."
        )
        if "sinkhorn" in one:
            steps, ends = one["sinkhorn"]["steps"], one["sinkhorn"]["barriers"]
            weights, labels, outputs = (np.mean(values) for values in ends.values())
            pairs, images = len(next(iter(ends.values()))), one["sinkhorn"]["options"]["samples"]
            parts.append(
                f"Sinkhorn on all {images:,} training images ends at {weights:.4f} after {steps:,} steps from weight "
                f"matching, and from the aligner after {steps // 2} at {labels:.4f} with labels, and at {outputs:.4f} "
                f"without, by outputs ({pairs} pairs, {one['sinkhorn']['samples']:,} test images; the goal is 0.006)."
            )
    return " ".join(parts)
