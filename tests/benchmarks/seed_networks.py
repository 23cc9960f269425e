"""Small transformers from several seeds: GPT-2 with a tied head, a Llama, and two ViTs, of transformers' own classes.

The text models predict the next character of the sources of Python's standard library, a ViT names the digits of MNIST
or the clothes of Fashion-MNIST. ViT reads its class token; SigLIP's vision tower the mean of its patches.
Seeds differ in weights and in the order of the data. A network that is there is not trained again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import alignkit

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench_merge_transformers import CHARACTERS, HELD_OUT, LENGTH, text
from networks import mnist

Batch = dict[str, Tensor]
HEADS, KEY_HEADS = 4, 2


@dataclass(frozen=True)
class Kind:
    """One kind of network.

    Attributes:
        config: From width and number of layers to the configuration of transformers.
        steps: Steps of training.
        rate: Largest learning rate.
        decay: Weight decay.
        images: The data set of a ViT; None for text.
    """

    config: Callable[[int, int], dict[str, Any]]
    steps: int
    rate: float
    decay: float
    images: str | None = None


def _gpt2(width: int, layers: int) -> dict[str, Any]:
    sizes = {"n_positions": LENGTH, "n_embd": width, "n_layer": layers, "n_head": HEADS}
    none = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    named = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": len(CHARACTERS) + 1}
    return {**named, **sizes, **none}


def _llama(width: int, layers: int, tied: bool) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "max_position_embeddings": LENGTH}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "tie_word_embeddings": tied}
    named = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(CHARACTERS) + 1}
    return {**named, **sizes, **heads, **ends}


def _vit(width: int, layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    images = {"image_size": 28, "patch_size": 7, "num_channels": 1, "num_labels": 10, "num_attention_heads": HEADS}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {"model_type": "vit", "architectures": ["ViTForImageClassification"], **sizes, **images, **none}


def _siglip(width: int, layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    images = {"image_size": 28, "patch_size": 7, "num_channels": 1, "num_attention_heads": HEADS}
    vision = {**sizes, **images, "vision_use_head": False}
    return {
        "model_type": "siglip",
        "architectures": ["SiglipForImageClassification"],
        "vision_config": vision,
        "num_labels": 10,
    }


KINDS = {
    "gpt2": Kind(_gpt2, 1000, 2e-3, 0.01),
    "llama": Kind(lambda width, layers: _llama(width, layers, False), 1000, 2e-3, 0.01),
    "llama-tied": Kind(lambda width, layers: _llama(width, layers, True), 1000, 2e-3, 0.01),
    "vit": Kind(_vit, 936, 2e-3, 0.05, "mnist"),
    "siglip": Kind(_siglip, 936, 2e-3, 0.05, "mnist"),
    "vit-fashion": Kind(_vit, 936, 2e-3, 0.05, "fashion-mnist"),
}


class Data:
    """Training batches and held-out batches of one kind, which carry their labels."""

    def __init__(self, kind: str) -> None:
        images = KINDS[kind].images
        self.is_text = images is None
        if images is None:
            codes = text()
            self.train, self.held_out = codes[:-HELD_OUT], codes[-HELD_OUT:]
        else:
            self.train, self.held_out = mnist("train", images), mnist("t10k", images)

    def batches(self, seed: int, size: int, *, held_out: bool = False) -> Iterator[Batch]:
        """Yield random batches without an end."""
        source = self.held_out if held_out else self.train
        generator = torch.Generator().manual_seed(seed)
        while True:
            if self.is_text:
                starts = torch.randint(len(source) - LENGTH, (size,), generator=generator)
                pieces = source[starts[:, None] + torch.arange(LENGTH)]
                yield {"input_ids": pieces, "labels": pieces}
            else:
                rows = torch.randint(len(source[1]), (size,), generator=generator)
                yield {"pixel_values": source[0][rows].reshape(-1, 1, 28, 28), "labels": source[1][rows]}

    def example(self) -> Batch:
        """Return two samples without labels, to trace a network."""
        return {name: tensor[:2] for name, tensor in next(self.batches(0, 2)).items() if name != "labels"}

    def task(self, model: Any, count: int = 16) -> alignkit.Task:
        """Return the task of a network on held-out samples: by default 16 batches, 4,096 pieces of text or images."""
        batches = self.batches(99, 256, held_out=True)
        return alignkit.Task(model, [next(batches) for _ in range(count)], "model")

    def quick_task(self, model: Any) -> alignkit.Task:
        """Return the task on 1,024 pieces of text, 65,536 characters, or on as many images as `task` has."""
        return self.task(model, 4 if self.is_text else 16)


def new_model(kind: str, width: int, layers: int, seed: int) -> Any:
    """Return a model with random weights."""
    import transformers

    torch.manual_seed(seed)
    values = KINDS[kind].config(width, layers)
    config = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(values)
    return getattr(transformers, values["architectures"][0])(config).eval()


def trained(kind: str, width: int, layers: int, seed: int, folder: Path, data: Data) -> Any:
    """Return a trained network, from its folder where it is there."""
    place = folder / f"{kind}-{width}x{layers}-{seed}"
    model = new_model(kind, width, layers, seed)
    if (place / "config.json").exists():
        return type(model).from_pretrained(place).eval()
    facts = KINDS[kind]
    optimiser = torch.optim.AdamW(model.parameters(), facts.rate, weight_decay=facts.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, facts.rate, facts.steps, pct_start=0.1)
    model.train()
    for step, batch in zip(range(facts.steps), data.batches(seed, 16 if data.is_text else 128), strict=False):
        loss = model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            print(f"  {place.name}, step {step}: {float(loss.detach()):.3f}", file=sys.stderr, flush=True)
    model.eval().save_pretrained(place)
    return model


def keep(path: Path, result: dict[str, Any]) -> None:
    """Put what was measured for one kind and size of network into a JSON file, in place of what it held of these."""
    known = json.loads(path.read_text()) if path.exists() else []
    key = [result.get(name) for name in ("kind", "width", "layers")]
    kept = [other for other in known if [other.get(name) for name in ("kind", "width", "layers")] != key]
    path.write_text(json.dumps([*kept, result], indent=1) + "\n")
