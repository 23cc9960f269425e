"""Where alignment of sine INRs ends: signs and phases, and oracles that show what is left.

    python tests/benchmarks/paper/inr_phases.py --folder SETS --data IDX --set sine-inr --output out.json

Columns: no alignment; weight matching by permutations; by permutations and signs; the same once phases are wrapped;
the same with phases wrapped anew near those of A between solves. Oracles: two trainings from one start, whose order is
known; and a network with noise, reordered, which says how much noise alignment bears.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import columns
import measure
import torch
from torch import nn

import alignkit
import alignkit.zoo as zoo
from alignkit.jobs.near_phases import with_near_phases

ROUNDS = 3
"""Solves with phases wrapped in between."""
NOISES = (0.01, 0.03, 0.1, 0.3)
"""Standard deviations of the noise, as a share of the root mean square of each tensor."""
STEPS, BATCH, RATE = 1000, 196, 3e-3
"""Training from a shared start, as the sets were trained."""


class Signal:
    """One signal with the networks that learned it, and what is measured on it."""

    def __init__(self, networks: zoo.NetworkSet, data: Path | None, index: int, samples: int) -> None:
        self.networks = networks
        self.test = networks.task("test", samples, data, index=index)
        self.learn = networks.task("train", samples, data, index=index)
        batches = list(self.test.batches)
        self.inputs = batches[0].inputs
        self.zero = sum(float(batch.targets.square().sum()) for batch in batches) / sum(
            batch.targets.numel() for batch in batches
        )
        self.graph = alignkit.trace(networks.model(), self.inputs, symmetries="all")

    def module(self, weights: Any) -> nn.Module:
        """A module with some weights."""
        model = self.networks.model()
        model.load_state_dict(weights)
        return model.eval()

    def barrier(self, a: nn.Module, b: nn.Module) -> float:
        """Barrier of the line between two networks."""
        return alignkit.interpolate(self.test, a, b, points=measure.LINE_POINTS).barrier

    def wrapped(self, module: nn.Module, like: nn.Module | None = None) -> nn.Module:
        """The network with its phases nearest to 0, or to those of another one."""
        if like is not None:
            return with_near_phases(self.graph, like, module)
        folded = alignkit.fold(module, self.graph, self.inputs).network
        assert isinstance(folded, nn.Module)
        return folded

    def matched(self, a: nn.Module, b: nn.Module) -> nn.Module:
        """B aligned to A by permutations and signs."""
        return alignkit.solve(self.graph, a, b, restarts=9).apply(b)

    def columns(self, a: nn.Module, b: nn.Module) -> dict[str, float]:
        """Barriers of all columns."""
        plain = self.networks.graph
        found = {
            "naive": self.barrier(a, b),
            "permutations": self.barrier(a, alignkit.solve(plain, a, b, restarts=9).apply(b)),
            "permutations and signs": self.barrier(a, self.matched(a, b)),
        }
        a, b = self.wrapped(a), self.wrapped(b)
        b = self.matched(a, b)
        found["phases wrapped"] = self.barrier(a, b)
        for _ in range(ROUNDS - 1):
            b = self.matched(a, self.wrapped(b, like=a))
        found["phases wrapped near A"] = self.barrier(a, self.wrapped(b, like=a))
        return found

    def shared_start(self, seed: int) -> tuple[float, float]:
        """Barrier between two trainings from one start, and how far hidden weights moved relative to their size."""
        torch.manual_seed(seed)
        start = self.networks.model()
        inputs = torch.cat([batch.inputs for batch in self.learn.batches])
        targets = torch.cat([batch.targets for batch in self.learn.batches])
        trained = []
        for run in range(2):
            model = self.module(start.state_dict())
            optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            generator = torch.Generator().manual_seed(1000 * seed + run)
            for _ in range(STEPS):
                rows = torch.randint(len(inputs), (BATCH,), generator=generator)
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()
                schedule.step()
            trained.append(model)
        ends = zip(start.parameters(), trained[0].parameters(), strict=True)
        moved = [float(((after - before).norm() / before.norm()).detach()) for before, after in ends]
        return self.barrier(*trained), sum(moved[:-2]) / len(moved[:-2])

    def noisy(self, a: nn.Module, noise: float, seed: int) -> tuple[float, float, float]:
        """Barriers to a noisy copy, in A's order and in the one that is found, and the share of units found."""
        a = self.wrapped(a)
        generator = torch.Generator().manual_seed(seed)
        changed = {
            n: t + noise * t.square().mean().sqrt() * torch.randn(t.shape, generator=generator)
            for n, t in a.state_dict().items()
        }
        b = self.wrapped(self.module(changed), like=a)
        moved = alignkit.Alignment.random(self.graph, seed)
        solution = alignkit.solve(self.graph, a, moved.apply(b), restarts=9)
        answer = moved.inverse()
        right = [
            (solution.alignment.elements[name] == answer.elements[name]).double().mean() for name in self.graph.groups
        ]
        return self.barrier(a, b), self.barrier(a, solution.apply(moved.apply(b))), float(torch.stack(right).mean())


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means of columns."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def main() -> None:
    """Measure one set."""
    parser = measure.switches(__doc__, "output", set="sine-inr", pairs=12, samples=512)
    arguments = parser.parse_args()
    measure.single_thread()
    networks = zoo.NetworkSet.open(arguments.folder / arguments.set)
    pairs = measure.ring(networks, "test")[: arguments.pairs]
    rows, starts, noises = [], [], {str(noise): [] for noise in NOISES}
    for at, (i, j) in enumerate(pairs):
        signal = Signal(networks, arguments.data, i, arguments.samples)
        a, b = signal.module(networks[i]), signal.module(networks[j])
        rows.append({"predicting zero": signal.zero, **signal.columns(a, b)})
        barrier, moved = signal.shared_start(at)
        starts.append({"barrier": barrier, "hidden weights moved": moved})
        for noise in NOISES:
            known, found, right = signal.noisy(a, noise, at)
            noises[str(noise)].append({"barrier, order known": known, "barrier, order found": found, "found": right})
        print(at + 1, {name: round(value, 4) for name, value in mean(rows).items()}, mean(starts), flush=True)
    results = {
        "command": f"python tests/benchmarks/paper/inr_phases.py --set {arguments.set} --pairs {arguments.pairs} "
        f"--samples {arguments.samples}",
        "set": arguments.set,
        "about": columns.describe_set(networks),
        "pairs": len(pairs),
        "barriers": mean(rows),
        "barriers of pairs": {name: [row[name] for row in rows] for name in rows[0]},
        "shared start": mean(starts),
        "noise": {noise: mean(found) for noise, found in noises.items()},
    }
    measure.write_json(arguments.output, results)


if __name__ == "__main__":
    main()
