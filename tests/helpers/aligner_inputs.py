"""What aligners are given in tests: pairs with their tasks and probes, and encoders with random parameters."""

from __future__ import annotations

import torch

from alignkit import Task
from alignkit.deepalign import ProbeEncoder
from alignkit.deepalign.probing import find_probing
from alignkit.solver import Problem
from alignkit.testing import attention, convnet, mlp, residual, torch_attention


def mlp_of_four():
    return mlp(6, 16, 12, 4)


ARCHITECTURES = [mlp_of_four, convnet, attention, residual, torch_attention]


def encoder(seed, scale=1.0):
    torch.manual_seed(seed)
    made = ProbeEncoder()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return made


def task_of(pair, architecture, dtype=torch.float32):
    inputs = architecture.inputs(16).to(dtype)
    with torch.no_grad():
        outputs = pair.module_a.to(dtype)(inputs)
    return Task(pair.module_a, (inputs, outputs), "mse")


def pair_of(bound, task):
    problem = Problem(bound, task=task)
    return find_probing(problem, 16, "auto", None).pair


def scores_of(aligner, pair):
    with torch.no_grad():
        return aligner(pair)
