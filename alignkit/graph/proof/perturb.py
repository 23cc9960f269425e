"""Making a model's weights tell: freshly initialised ones can hide a wrong symmetry."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

from alignkit.checkpoints.fit import is_number
from alignkit.graph.module_copy import copy_module

Module = TypeVar("Module", bound=nn.Module)

_SPREAD = 0.2
"""Standard deviation of what is added to tensors with one value everywhere, and to biases."""


def perturbed(model: Module, seed: int = 0) -> Module:
    """Return a copy of a model in which no two units look alike.

    A permutation of units that all have the same norm weight, bias or running statistics changes nothing, right or
    wrong; neither does one behind a gate, layer scale or last convolution that is initialised to zero. So in the copy

    - running means get small random values, running variances values between 0.5 and 1.5;
    - tensors with one value everywhere (norm weights, zero gates, layer scales, zero biases) get noise of standard
      deviation 0.2, matrices of zeros noise with the variance of 1 / fan-in;
    - one-dimensional tensors (biases) get that noise too, on top of what they hold.

    All else stays, so that activations keep their scale. Whole numbers stay too.

    Args:
        model: The model; it is left as it is. Tied tensors stay tied.
        seed: Seed of the noise; the same seed gives the same weights on any machine.
    """
    result = copy_module(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*result.named_parameters(), *result.named_buffers()]:
            if not is_number(tensor) or not tensor.numel():
                continue
            last = name.rpartition(".")[2]
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            noise = torch.randn(tensor.shape, generator=generator, dtype=wide)
            if last == "running_mean":
                tensor.copy_(_SPREAD * noise)
            elif last == "running_var":
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
            elif isinstance(tensor, nn.Parameter):
                alike = tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
                matrix = sum(n > 1 for n in tensor.shape) > 1
                if alike or not matrix:  # other matrices are random already
                    scale = 1 / math.sqrt(tensor[0].numel()) if matrix else _SPREAD
                    tensor.add_((scale * noise).to(tensor))
    return result
