"""The models of the coverage run: where they come from and what they are called on."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import torchvision_shim

torchvision_shim.install()

from timm_families import SMALLEST  # noqa: E402
from tiny_transformers import build as build_transformers  # noqa: E402
from tiny_transformers import class_names  # noqa: E402

SOURCES = ("torchvision", "timm", "transformers")
COMPILED = ("rcnn", "fcos", "retinanet", "ssd", "quantized")
"""Detection models need compiled operators, quantized ones have no floating-point weights."""
STRIDE = 4
"""Every fourth type of transformers in alphabetical order is in the run, and those that are used most."""
OFTEN_USED = (
    "bert", "roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert", "xlm-roberta", "mpnet",
    "longformer",
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "phi", "phi3", "stablelm", "olmo2", "llama",
    "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "gpt_oss",
    "granite",
    "cohere", "deepseek_v2", "deepseek_v3", "mamba", "mamba2", "jamba", "rwkv", "t5", "mt5", "bart", "pegasus",
    "marian",
    "m2m_100", "switch_transformers", "led", "whisper", "wav2vec2", "hubert", "clip", "siglip", "vit", "deit", "beit",
    "dinov2", "swin", "swinv2", "convnext", "convnextv2", "resnet", "regnet", "segformer", "mobilevit", "mobilenet_v2",
    "levit", "vit_mae", "videomae", "vilt", "blip", "xlnet", "fnet", "reformer", "perceiver", "poolformer", "pvt_v2",
)  # fmt: skip
IMAGE_SIZES = (96, 128, 160, 192, 224, 256, 288, 384)
"""The first that a model runs on is used: several positions are left at a stride of 32."""

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def names(source: str) -> list[str]:
    """Return the names of all models of a source."""
    if source == "torchvision":
        from torchvision.models import list_models

        return [name for name in list_models() if not any(word in name for word in COMPILED)]
    if source == "timm":
        return sorted(SMALLEST.values())
    every = list(class_names())
    return sorted({*every[::STRIDE], *(name for name in OFTEN_USED if name in every)})


def build(source: str, name: str) -> Example:
    """Return a model with random weights in eval mode and an example call on which it runs.

    Raises:
        RuntimeError: It cannot be built, or runs on none of the inputs tried.
    """
    torch.manual_seed(0)
    if source == "transformers":
        model, inputs = build_transformers(name)
        return model, (), inputs
    images = _torchvision(name) if source == "torchvision" else _timm(name)
    problem: Exception | None = None
    for model, args in images:
        try:
            with torch.no_grad():
                model.eval()(*args)
            return model, args, {}
        except Exception as error:  # another size may do
            problem = problem or error
    raise RuntimeError(f"no forward: {type(problem).__name__}: {problem}")


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _torchvision(name: str) -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    from torchvision import models

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"weights": None}
        if name.startswith(("deeplab", "fcn", "lraspp")):
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = True
        if name.startswith("vit_"):
            options["image_size"] = 96 if name.endswith("16") else 128 if name.endswith("32") else 70
            size = options["image_size"]
            yield models.get_model(name, **options), (_noise(1, 3, size, size),)
            return
        model = models.get_model(name, **options)
    if name.startswith("raft"):
        yield model, (_noise(1, 3, 128, 128), _noise(1, 3, 128, 128).flip(3))
    elif name.startswith(("swin3d", "mvit")):
        frames, size = (16, 224) if name.startswith("mvit") else (4, 64)
        yield model, (_noise(1, 3, frames, size, size),)
    elif name.startswith(("mc3", "r2plus1d", "r3d", "s3d")):
        frames, size = (14, 64) if name == "s3d" else (4, 64)
        yield model, (_noise(1, 3, frames, size, size),)
        yield model, (_noise(1, 3, 16, 224, 224),)
    else:
        yield from ((model, (_noise(1, 3, size, size),)) for size in IMAGE_SIZES)


def _timm(name: str) -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    import timm

    plain = timm.create_model(name, pretrained=False)
    full = plain.default_cfg["input_size"]
    for size in [size for size in IMAGE_SIZES if size < full[1]]:
        model = plain
        if not plain.default_cfg.get("fixed_input_size", False):
            yield model, (_noise(1, full[0], size, size),)
        with contextlib.suppress(TypeError, AssertionError, ValueError, RuntimeError):
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=False, img_size=size)
            yield model, (_noise(1, full[0], size, size),)
    yield plain, (_noise(1, *full),)


def available(source: str) -> bool:
    """Return whether the library of a source is installed."""
    return importlib.util.find_spec(source) is not None
