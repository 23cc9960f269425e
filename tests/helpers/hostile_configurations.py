"""Configurations that point outside, or ask for more than there is, for every library of models."""

from __future__ import annotations

from typing import Any

CANARY = "CANARY"
"""Stands for the path of a file that must not be opened."""


def gpt2(**more: Any) -> dict[str, Any]:
    small = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_head": 2, "n_layer": 1}
    return {**small, "vocab_size": 40, "n_positions": 16, **more}


def llama(**more: Any) -> dict[str, Any]:
    small = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "num_attention_heads": 2}
    return {**small, "num_hidden_layers": 1, "vocab_size": 40, "intermediate_size": 8, **more}


def detr(backbone: str, **more: Any) -> dict[str, Any]:
    small = {"model_type": "detr", "architectures": ["DetrForObjectDetection"], "d_model": 16, "encoder_layers": 1}
    sizes = {"decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_attention_heads": 2}
    return {**small, **sizes, "decoder_attention_heads": 2, "backbone": backbone, **more}


def resnet(**arguments: Any) -> dict[str, Any]:
    picture = {"input_size": [3, 32, 32]}
    return {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": picture, "model_args": arguments}


def unet(**more: Any) -> dict[str, Any]:
    down, up = ["DownBlock2D", "AttnDownBlock2D"], ["AttnUpBlock2D", "UpBlock2D"]
    small = {"_class_name": "UNet2DModel", "sample_size": 16, "block_out_channels": [16, 32], "layers_per_block": 1}
    return {**small, "down_block_types": down, "up_block_types": up, "norm_num_groups": 8, **more}


ATTENTION = ("user/repo", "kernels-community/flash-attn", "flash_attention_2", {"": "user/repo"}, 5)
POINTING: dict[str, list[dict[str, Any]]] = {
    "transformers": [
        *(llama(**{key: value}) for key in ("attn_implementation", "_attn_implementation") for value in ATTENTION),
        llama(experts_implementation="user/repo", use_kernels=True, kernel_config={"RMSNorm": "user/repo:RMSNorm"}),
        llama(auto_map={"AutoModelForCausalLM": "user/repo--code.Model"}, trust_remote_code=True),
        llama(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        llama(_name_or_path=CANARY, name_or_path=CANARY, tokenizer_class=CANARY, generation_config=CANARY),
        {"model_type": "llava", "text_config": llama(attn_implementation="user/repo"), "vision_config": {}},
        *(llama(architectures=names) for names in (["Trainer"], ["pipeline"], ["AutoModel"], ["os.system"], [5], 5)),
        *(detr(name) for name in ("user/repo", CANARY, "hf-hub:user/repo", f"local-dir:{CANARY}")),
        detr("resnet18", use_pretrained_backbone=True),
        detr("user/repo", use_timm_backbone=False),
        detr("x", backbone_config={"model_type": "timm_backbone", "backbone": "hf-hub:user/repo"}),
        {"model_type": "upernet", "backbone": "user/repo"},
        {"model_type": "timm_wrapper", "architecture": "resnet10t", "model_args": {"checkpoint_path": CANARY}},
        {"model_type": CANARY},
    ],
    "timm": [
        *(resnet(**{key: CANARY}) for key in ("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "file")),
        resnet(pretrained_cfg={"file": CANARY, "hf_hub_id": "user/repo", "url": "http://127.0.0.1/x"}, pretrained=True),
        resnet(pretrained_cfg_overlay={"file": CANARY}),
        *(resnet(**{key: True}) for key in ("scriptable", "exportable", "features_only", "pruned", "no_jit")),
        *({**resnet(), "architecture": name} for name in (f"local-dir:{CANARY}", "hf-hub:user/repo", CANARY, 5, ["x"])),
        {**resnet(), "pretrained_cfg": {"input_size": [3, 32, 32], "url": "http://127.0.0.1/x", "file": CANARY}},
        {**resnet(), "pretrained_cfg": CANARY},
        {**resnet(), "model_args": [CANARY]},
    ],
    "diffusers": [
        unet(_name_or_path=CANARY, quantization_config={"quant_method": "bitsandbytes"}),
        unet(pretrained_model_name_or_path=CANARY),
        unet(act_fn=CANARY),
        unet(down_block_types=[CANARY, CANARY]),
        *(unet(_class_name=name) for name in ("DDPMScheduler", "DiffusionPipeline", "AutoModel", "utils", CANARY, 5)),
    ],
}

TOO_MUCH: dict[str, list[tuple[dict[str, Any], str]]] = {
    "transformers": [
        *((llama(num_hidden_layers=n), "num_hidden_layers") for n in (10**5, 10**12, -3, 0, True, "12", 1.5, 1e9)),
        *((gpt2(n_layer=n), "n_layer") for n in (10**5, 0, float("nan"))),
        *((llama(hidden_size=n), "hidden_size") for n in (10**9, 1e9, -1, 0, "12", None, [16])),
        *((llama(vocab_size=n), "vocab_size") for n in (10**12, -1, float("inf"))),
        (llama(num_labels=10**9), "num_labels"),
        (llama(max_position_embeddings=10**10), "max_position_embeddings"),
        (llama(layer_types=["full_attention"] * 10**5), "layer_types has 100000 entries"),
        ({"model_type": "llava", "text_config": llama(num_hidden_layers=10**6)}, r"text_config\.num_hidden_layers"),
        ({"model_type": "vit", "image_size": 10**6, "hidden_size": 16, "num_attention_heads": 2}, "1000000"),
        (llama(rms_norm_eps=float("nan")), "rms_norm_eps is NaN"),
    ],
    "timm": [
        *(({"architecture": "vit_tiny_patch16_224", "model_args": {"depth": n}}, "depth") for n in (10**5, 0, True)),
        *((resnet(layers=depths), "layers") for depths in ([1, 10**9, 1, 1], [1999, 1, 1, 1], [1] * 10**5)),
        ({**resnet(), "num_classes": 10**9}, "num_classes"),
        ({**resnet(), "pretrained_cfg": {"input_size": [3, 10**5, 10**5]}}, "100000"),
    ],
    "diffusers": [
        (unet(layers_per_block=10**5), "layers_per_block"),
        (unet(block_out_channels=[16, 10**9]), "block_out_channels"),
        (unet(sample_size=10**5), "100000"),
    ],
}
