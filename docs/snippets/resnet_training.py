"""train.py: a residual network with BatchNorm for images of digits."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import alignkit

images, labels = load_digits(return_X_y=True)
images = torch.as_tensor(images / 16).float().unflatten(1, (1, 8, 8))
labels = torch.as_tensor(labels)


class Block(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.skip = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))


def net():
    """The architecture, and an example of its input."""
    model = nn.Sequential(
        Block(1, 32, 1),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return model, images[:2]


def task(part):
    return alignkit.Task(net()[0], part, "cross_entropy", "accuracy")


def training():
    """The images that the networks were trained on."""
    return task((images[:1300], labels[:1300]))


def testing():
    return task((images[1300:], labels[1300:]))


def main(seed, epochs=6):
    torch.manual_seed(seed)
    model = net()[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1300).split(64):
            optimizer.zero_grad()
            guess = model(images[rows])
            loss = nn.functional.cross_entropy(guess, labels[rows])
            loss.backward()
            optimizer.step()
    checkpoint = {"epochs": epochs, "model": model.state_dict()}
    torch.save(checkpoint, f"run-{seed}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]))
