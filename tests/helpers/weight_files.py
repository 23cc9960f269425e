"""Weights of a small perceptron, the module that the command line takes its model and task from, and calls of jobs."""

from __future__ import annotations

import torch
from torch import nn

import alignkit
from alignkit import SymmetryGraph, read_weights

SPEC = {"0.weight": "h .", "0.bias": "h", "2.weight": ". h", "2.bias": "."}
MODULE = """
import torch
from torch import nn
import alignkit

def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(5, 4)

def task():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 4, generator=generator)
    return alignkit.Task(net()[0], (inputs, torch.randn(32, 3, generator=generator)), "mse")

def number():
    return 3

def broken():
    raise FileNotFoundError("no data here")
"""


def weights(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (6, 4), "0.bias": (6,), "2.weight": (3, 6), "2.bias": (3,)}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def shifted(base, seed):
    return {name: tensor + weights(seed, 0.01)[name] for name, tensor in base.items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def solved(folder, b="b.safetensors"):
    a, b = (read_weights(folder / name) for name in ("a.safetensors", b))
    return alignkit.solve(SymmetryGraph.from_spec(SPEC, like=a), a, b)


GIVEN = ("--spec", "spec.json")


A, B, C, TUNED = (f"{name}.safetensors" for name in ("a", "b", "c", "tuned"))
JOBS: dict[str, tuple[list[str], str]] = {
    "merge": (["merge", A, B, "-o", "out.safetensors", *GIVEN], "out.safetensors"),
    "merge three": (["merge", A, B, C, "-o", "out.safetensors", *GIVEN], "out.safetensors"),
    "solve": (["solve", A, B, "-o", "out.safetensors", *GIVEN], "out.safetensors"),
    "check": (["check", "job_nets:net", A], ""),
    "compare": (["compare", A, B, *GIVEN, "--solver", "weight_matching"], ""),
    "align-many": (["align-many", A, B, C, "-o", "out", *GIVEN], "out"),
    "transport": (["transport", A, TUNED, B, "-o", "out.safetensors", *GIVEN], "out.safetensors"),
    "distance": (["distance", A, B, *GIVEN], ""),
    "canonical-form": (["canonical-form", A, "-o", "out.safetensors", *GIVEN], "out.safetensors"),
    "canonicalize": (["canonicalize", A, B, C, "-o", "out", *GIVEN], "out"),
}
