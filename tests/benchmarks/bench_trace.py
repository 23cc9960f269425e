"""How long traces take, on one thread, and how much memory they need.

Run by name: `python tests/benchmarks/bench_trace.py llama_70b`. Prints one line for each model: seconds of the trace,
on the clock and of the processor, peak memory of the process, and what was found. Each model wants a process of its
own. Aims, in seconds of the processor: ResNet50 under 0.5; a Llama-70B configuration (80 layers, no weights) under 60,
in 6 GB.
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
    return _llama(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)


def llama_70b() -> Case:
    """The configuration of Llama 3 70B on the meta device, eight tokens."""
    return _llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)


def mixtral_8x7b() -> Case:
    """The configuration of Mixtral 8x7B on the meta device, four tokens; only the logits count."""
    from transformers import MixtralConfig, MixtralForCausalLM

    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig())
    return model, (), {"input_ids": torch.zeros(1, 4, dtype=torch.long), "outputs": "logits"}


def _llama(**sizes: int) -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, max_position_embeddings=8192, **sizes)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return model, (), {"input_ids": torch.zeros(1, 8, dtype=torch.long), "attention_mask": None}


def measure(name: str, build: Callable[[], Case]) -> None:
    """Trace, once another trace has imported what fake tensors need, and print what it took."""
    model, args, kwargs = build()
    trace(nn.Linear(2, 2), torch.zeros(1, 2))
    if not name.startswith(("llama", "mixtral")):
        trace(model, *args, **kwargs)
    start, used = time.perf_counter(), time.process_time()
    graph = trace(model, *args, **kwargs)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{name:12} {seconds:7.2f} s   {used:7.2f} s of the processor   {peak:5.2f} GB peak   "
        f"{graph.provenance.tensors} tensors   {graph!r}",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in (resnet50, vit_b_16, llama_8b, llama_70b, mixtral_8x7b):
        if len(sys.argv) < 2 or case.__name__ in sys.argv[1:]:
            measure(case.__name__, case)
