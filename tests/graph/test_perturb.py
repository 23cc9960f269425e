"""The perturbation that makes weights tell."""

from __future__ import annotations

import torch
from torch import nn

from alignkit.graph.proof.perturb import perturbed


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8))
    nn.init.zeros_(model[2].weight)
    return model


def test_no_two_units_look_alike() -> None:
    for name, tensor in perturbed(network()).state_dict().items():
        if tensor.ndim:
            assert len(torch.unique(tensor.flatten(1) if tensor.ndim > 1 else tensor, dim=0)) == len(tensor), name


def test_random_matrices_and_the_model_itself_stay() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = perturbed(model).state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_variances_stay_positive() -> None:
    assert bool((perturbed(network())[1].running_var >= 0.5).all())


def test_the_seed_decides() -> None:
    model = network()
    first, again, other = (perturbed(model, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_tied_tensors_stay_tied() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    result = perturbed(model)
    assert result["a"].weight is result["b"].weight


def test_both_parts_of_complex_weights_are_perturbed() -> None:
    model = nn.Linear(3, 4, dtype=torch.complex64)
    nn.init.zeros_(model.weight)
    nn.init.ones_(model.bias)
    for tensor in perturbed(model).state_dict().values():
        assert len(torch.unique(tensor.real)) == len(torch.unique(tensor.imag)) == tensor.numel()
