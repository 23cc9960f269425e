import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

digits = load_digits()
parts = train_test_split(
    digits.data / 16,
    digits.target,
    test_size=450,
    stratify=digits.target,
    random_state=0,
)
train_x, test_x = (torch.as_tensor(part).float() for part in parts[:2])
train_y, test_y = (torch.as_tensor(part) for part in parts[2:])


def fit(model, inputs, epochs):
    """Train a model on the digits, with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(64):
            guess = model(inputs[rows])
            loss = nn.functional.cross_entropy(guess, train_y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()
