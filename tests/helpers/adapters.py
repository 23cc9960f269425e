"""LoRA adapters of tiny networks, made without peft: random factors for every weight that has a module of its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.jobs import Adapter

BASE: dict[str, Any] = {"peft_type": "LORA", "lora_alpha": 6, "r": 2, "bias": "none", "use_dora": False}


def random_adapter(
    model: nn.Module, rank: int = 2, seed: int = 0, *, bias: bool = False, embeddings: bool = True, **config: Any
) -> Adapter:
    """Draw an adapter of all linear layers, convolutions and embeddings of a model that share no weight."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter for module in model.modules() for parameter in module.parameters(recurse=False)]
    tensors: dict[str, Tensor] = {}
    transposed = False
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2 or sum(weight is p for p in parameters) > 1:
            continue

        def drawn(*shape: int, like: Tensor = weight) -> Tensor:
            return (0.3 * torch.randn(shape, generator=generator)).to(like.dtype)

        start = f"base_model.model.{path}.lora_"
        if isinstance(module, nn.Embedding) and not embeddings:
            continue
        if isinstance(module, nn.Embedding):
            tensors |= {
                f"{start}embedding_A": drawn(rank, weight.shape[0]), f"{start}embedding_B": drawn(weight.shape[1], rank)
            }  # fmt: skip
            continue
        is_transposed = type(module).__name__ == "Conv1D"
        transposed |= is_transposed
        inputs, outputs = weight.shape[:2] if is_transposed else weight.shape[1::-1]
        kernel, ones = tuple(weight.shape[2:]), (1,) * (weight.ndim - 2)
        tensors |= {
            f"{start}A.weight": drawn(rank, inputs, *kernel), f"{start}B.weight": drawn(outputs, rank, *ones)
        }  # fmt: skip
        if bias and getattr(module, "bias", None) is not None:
            tensors[f"{start}B.bias"] = drawn(outputs)
    return Adapter({**BASE, "fan_in_fan_out": transposed, "r": rank, "lora_bias": bias, **config}, tensors)


def adapted(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The model with what an adapter adds to its weights and biases."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for module, names in adapter.factors.items():
            part = changed.get_submodule(names.module)
            product = adapter.product(module)
            turned = type(part).__name__ in ("Conv1D", "Embedding")
            part.weight += (product.T if turned else product).reshape(part.weight.shape)
            if names.bias in adapter.tensors and bool(adapter.tensors[names.bias].any()):
                part.bias += adapter.scale(module) * adapter.tensors[names.bias]
    return changed
