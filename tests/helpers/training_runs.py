"""Training runs that take a second: small networks with a task, a fresh aligner, and quick settings."""

from __future__ import annotations

import torch
from torch import nn

from alignkit import Task, builders
from alignkit.deepalign import DwsAligner, ProbeEncoder
from alignkit.training import TrainingSettings
from alignkit.training.pairs import Pool

QUICK = {"pairs": 2, "validate_every": 4, "validation_pairs": 2, "checkpoint_every": 2, "batch_size": 32, "probes": 16}


def perceptron(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


class Small:
    """Networks trained on a small task: what training needs of a set, in memory."""

    def __init__(self, width=12, count=8, kinds=1, validation=3):
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(512, 8, generator=generator)
        self.labels = (self.inputs[:, :3].prod(1) > 0).long() + 2 * (self.inputs[:, 4] > 0).long()
        self.width, self.kinds, self.validation = width, kinds, validation
        self.graph = builders.mlp(self.model())
        self.networks = [self._trained(seed) for seed in range(count)]

    def _trained(self, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.model().train()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            for _ in range(150):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(self.inputs), self.labels).backward()
                optimizer.step()
        return {name: tensor.detach() for name, tensor in model.state_dict().items()}

    def __len__(self):
        return len(self.networks)

    def __getitem__(self, index):
        return self.networks[index]

    def indices(self, split):
        cut = len(self) - self.validation
        return list(range(cut)) if split == "train" else list(range(cut, len(self)))

    def target(self, index):
        return index % self.kinds

    def model(self):
        return perceptron(self.width)

    def task(self, split, samples, folder, *, index, device):
        return Task(self.model(), (self.inputs[:samples], self.labels[:samples]), "cross_entropy", device=device)


def fresh(kind, graph):
    torch.manual_seed(0)
    return DwsAligner(graph, hidden=8, output=8, layers=2) if kind == "dws" else ProbeEncoder(channels=4, rounds=1)


def parameters(aligner):
    return {name: tensor.clone() for name, tensor in aligner.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def pool_of(networks, **settings):
    return Pool(networks, TrainingSettings(**settings))
