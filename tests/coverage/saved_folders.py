"""Small models of each library: how they are built, saved to a folder, and loaded from it, all by the library."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tiny_transformers
import zoo_models

CLASSES = {
    "clip": "CLIPModel", "siglip": "SiglipModel", "bart": "BartForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration", "bert": "BertForMaskedLM", "vit_mae": "ViTMAEForPreTraining",
}  # fmt: skip
"""Classes that are saved in place of those of the coverage run."""
MORE = (
    "ijepa", "vit_msn", "vivit", "dinov2_with_registers", "audio-spectrogram-transformer", "timesformer", "hiera",
    "data2vec-vision", "olmoe", "glm4_moe", "minimax", "granitemoe", "ernie4_5_moe", "qwen3_next", "phimoe",
    "chinese_clip", "altclip", "clip_text_model", "clip_vision_model", "siglip_vision_model", "starcoder2", "olmo",
    "nemotron", "xglm", "blenderbot", "mbart", "speech_to_text", "wavlm", "camembert", "mobilebert", "convbert",
    "patchtst", "yolos", "glpn", "dpr", "imagegpt", "openai-gpt", "gpt_bigcode", "codegen", "exaone4", "smollm3",
)  # fmt: skip
"""Types of transformers beside those that are used most: more that are stored in other ways, and more kinds."""
LEFT_OUT = ("deepseek_v2", "perceiver")
"""Types whose tiny configuration does not run."""
DIFFUSERS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        "sample_size": 16, "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    },
    "UNet2DConditionModel": {
        "sample_size": 16, "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 4,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 12,
    },
    "AutoencoderKL": {
        "block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2, "norm_num_groups": 8,
        "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4, "sample_size": 16,
    },
    "VQModel": {
        "block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2, "norm_num_groups": 8,
        "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4, "num_vq_embeddings": 16, "sample_size": 16,
    },
    "AutoencoderTiny": {"encoder_block_out_channels": [16] * 4, "decoder_block_out_channels": [16] * 4},
}  # fmt: skip
FAMILIES: dict[str, tuple[str, ...]] = {
    "transformers": tuple(name for name in (*zoo_models.OFTEN_USED, *MORE) if name not in LEFT_OUT),
    "timm": (
        "resnet10t", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050",
        "regnetx_002", "ghostnet_050", "edgenext_xx_small", "levit_128s", "xcit_nano_12_p16_224", "pvt_v2_b0",
        "efficientvit_b0",
    ),
    "diffusers": tuple(DIFFUSERS),
}  # fmt: skip


def build(source: str, name: str, seed: int) -> nn.Module:
    """Return a model with random weights in eval mode."""
    torch.manual_seed(seed)
    if source == "timm":
        import timm

        return timm.create_model(name, pretrained=False).eval()
    if source == "diffusers":
        import diffusers

        return getattr(diffusers, name)(**DIFFUSERS[name]).eval()
    model_class, config = _tiny(name)
    torch.manual_seed(seed)
    return model_class(config).eval()


@cache
def _tiny(name: str) -> tuple[Any, Any]:
    """Return class and configuration of a tiny model of transformers."""
    model, inputs = tiny_transformers.build(name, CLASSES.get(name))
    _say_size(model.config, inputs)
    return type(model), model.config


def _say_size(config: Any, inputs: dict[str, Tensor]) -> None:
    """Have a configuration say the size of images that its model runs on, as those of trained models do."""
    image = inputs.get("pixel_values")
    for part in (config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))):
        if image is not None and isinstance(getattr(part, "image_size", None), int):
            part.image_size = image.shape[-1]


def save(source: str, model: Any, folder: Path) -> None:
    """Save a model as its library does."""
    if source == "timm":
        from timm.models import save_for_hf

        save_for_hf(model, str(folder), safe_serialization=True)
    else:
        model.save_pretrained(folder)


def load(source: str, name: str, folder: Path) -> nn.Module:
    """Load a folder as its library does; raise `RuntimeError` if a tensor is missing there or one too many."""
    if source == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    import transformers

    if source == "diffusers":
        import diffusers

        model, told = getattr(diffusers, name).from_pretrained(folder, output_loading_info=True)
    else:
        content = transformers.AutoConfig.from_pretrained(folder)
        model_class = getattr(transformers, content.architectures[0])
        model, told = model_class.from_pretrained(folder, output_loading_info=True)
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # torch's grouped products take no tensors as narrow as these
    wrong = {kind: sorted(map(str, names)) for kind, names in told.items() if names}
    if wrong:
        raise RuntimeError(f"the library tells {wrong}")
    return model
