"""Clients with digits of their own, which they show to nobody: what each of them trains."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import alignkit

DATA = load_digits()
PARTS = train_test_split(DATA.data / 16, DATA.target, test_size=450, stratify=DATA.target, random_state=0)
TRAIN_X, TEST_X = (torch.as_tensor(part).float() for part in PARTS[:2])
TRAIN_Y, TEST_Y = (torch.as_tensor(part) for part in PARTS[2:])


def network(seed: int) -> nn.Sequential:
    """An MLP 64-128-128-10 with random weights."""
    torch.manual_seed(seed)
    layers = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    return nn.Sequential(*layers)


def shares(clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Rows of each client: every class is split by a Dirichlet distribution, more unequally for a smaller `alpha`."""
    random = np.random.default_rng(seed)
    rows: list[list[int]] = [[] for _ in range(clients)]
    for digit in range(10):
        of_class = random.permutation(np.flatnonzero(TRAIN_Y.numpy() == digit))
        cuts = (np.cumsum(random.dirichlet([alpha] * clients))[:-1] * len(of_class)).astype(int)
        for client, part in zip(rows, np.split(of_class, cuts), strict=True):
            client.extend(part.tolist())
    return [torch.tensor(sorted(client)) for client in rows]


def train(weights: dict[str, Tensor], rows: Tensor, epochs: int, seed: int) -> dict[str, Tensor]:
    """What a client does: train on its own rows, and send the weights back."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = network(seed)
    model.load_state_dict(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(TRAIN_X[batch]), TRAIN_Y[batch]).backward()
            optimizer.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def accuracy(weights: dict[str, Tensor]) -> float:
    """Share of the test images that are classified as they should be."""
    task = alignkit.Task(network(0), (TEST_X, TEST_Y), "cross_entropy", "accuracy")
    return task.evaluate(weights).metric
