"""What a call must not change: the process, its inputs, and the files around it."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor


class ProcessState:
    """The settings of the process that a library could leave changed."""

    def __init__(self) -> None:
        self.settings = {
            "the default dtype": torch.get_default_dtype(),
            "grad mode": torch.is_grad_enabled(),
            "inference mode": torch.is_inference_mode_enabled(),
            "the number of threads": torch.get_num_threads(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "the working folder": os.getcwd(),
            # torch notes for itself where its compiler would keep files.
            "the environment": {n: v for n, v in os.environ.items() if not n.startswith("TORCHINDUCTOR")},
            "Python's random state": random.getstate(),
            "torch's random state": torch.get_rng_state().numpy().tobytes(),
            "numpy's random state": np.random.get_state()[1].tobytes(),  # type: ignore[union-attr,index]
        }

    def changes(self) -> list[str]:
        """Name the settings that are not what they were."""
        try:
            now = ProcessState().settings
        except FileNotFoundError:
            return ["the working folder is gone"]
        return [f"{name} was changed" for name, value in self.settings.items() if now[name] != value]

    def restore(self) -> None:
        """Put back what later cases depend on."""
        torch.set_default_dtype(self.settings["the default dtype"])
        torch.set_grad_enabled(self.settings["grad mode"])
        torch.set_num_threads(self.settings["the number of threads"])
        torch.use_deterministic_algorithms(self.settings["deterministic algorithms"])
        os.chdir(self.settings["the working folder"])
        os.environ.clear()
        os.environ.update(self.settings["the environment"])
        random.setstate(self.settings["Python's random state"])


def contents(value: object) -> object:
    """Everything in tensors, modules and containers of them, so that it can be compared later."""
    if isinstance(value, nn.Module):
        settings = tuple((name, module.training, len(module._forward_hooks)) for name, module in value.named_modules())
        gradients = tuple(p.grad is None for p in value.parameters())
        return contents(dict(value.state_dict(keep_vars=True))), settings, gradients
    if isinstance(value, Tensor):
        return tensor_contents(value)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, Mapping):
        return {repr(key): contents(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [contents(part) for part in value]
    if isinstance(value, str | int | float | complex):
        return repr(value)
    return type(value), id(value)


def tensor_contents(tensor: Tensor) -> object:
    """The facts and the bytes of a tensor; the facts alone where it has no bytes of its own."""
    if isinstance(tensor, FakeTensor):
        return id(tensor)
    facts = (str(tensor.dtype), str(tensor.layout), tensor.requires_grad, str(tensor.device))
    try:
        plain = tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg().contiguous()
        return (*facts, tuple(tensor.shape), plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    except (RuntimeError, TypeError, NotImplementedError, AssertionError):
        return facts


def listing(folder: Path) -> dict[str, object]:
    """Every file under a folder with its content; links, pipes and folders by what they are."""
    facts: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            facts[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            facts[name] = path.read_bytes()
        else:
            facts[name] = "folder" if path.is_dir() else "special"
    return facts
