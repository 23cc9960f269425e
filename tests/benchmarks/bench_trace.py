"""How long traces take, on one thread, and how much memory they need.

Run by name: `python tests/benchmarks/bench_trace.py`. Prints one line for each model: seconds of the trace, peak memory
of the process, and what was found. Aims: ResNet50 under 2 s; a Llama-8B configuration (32 layers, no weights) under
60 s and 4 GB.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignkit.tracing import trace

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import torchvision_shim

torchvision_shim.install()

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def resnet50() -> Case:
    """ResNet50 of torchvision, one image of 224 x 224."""
    from torchvision.models import resnet50 as build

    return build(weights=None), (torch.zeros(1, 3, 224, 224),), {}


def vit_b_16() -> Case:
    """ViT-B/16 of torchvision, one image of 224 x 224."""
    from torchvision.models import vit_b_16 as build

    return build(weights=None), (torch.zeros(1, 3, 224, 224),), {}


def llama_8b() -> Case:
    """The configuration of Llama 3 8B on the meta device, eight tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return model, (), {"input_ids": torch.zeros(1, 8, dtype=torch.long), "attention_mask": None}


def measure(name: str, build: Callable[[], Case]) -> None:
    """Trace twice (the first run imports what fake tensors need) and print the second."""
    model, args, kwargs = build()
    if name != "llama_8b":
        trace(model, *args, **kwargs)
    start = time.perf_counter()
    graph = trace(model, *args, **kwargs)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{name:12} {seconds:7.2f} s   {peak:5.2f} GB peak   {graph.provenance.tensors} tensors   {graph!r}", flush=True
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in (resnet50, vit_b_16, llama_8b):
        if len(sys.argv) < 2 or case.__name__ in sys.argv[1:]:
            measure(case.__name__, case)
