"""Symmetries of models in libraries, derived by hand: lines as in `helpers.nets_by_hand.net`, for whole families."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

Model = Any
"""A model of a library, whose attributes are its own."""


def lines_for(source: str, name: str, model: nn.Module) -> str | None:
    """Return the lines for a model, or None where nobody derived them."""
    for pattern, derive in FAMILIES.items():
        if re.fullmatch(pattern, f"{source}:{name}"):
            answer = derive(model)
            return answer if isinstance(answer, str) else "\n".join(answer)
    return None


# torchvision


def _chain(model: Model) -> Iterator[str]:
    """VGG and AlexNet: convolutions with or without norms in a row, then linear layers on the flattened map."""
    before, width = ".", 1
    for number, layer in enumerate(model.features):
        if isinstance(layer, nn.Conv2d):
            yield f"features.{number}.*: c{number} {before}"
            before, width = f"c{number}", layer.out_channels
        elif isinstance(layer, nn.BatchNorm2d):
            yield f"features.{number}.*: {before}"
    linear = [(number, layer) for number, layer in enumerate(model.classifier) if isinstance(layer, nn.Linear)]
    before = f"({before} {linear[0][1].in_features // width})"
    for number, _ in linear[:-1]:
        yield f"classifier.{number}.*: h{number} {before}"
        before = f"h{number}"
    yield f"classifier.{linear[-1][0]}.*: . {before}"


def _resnet(model: Model) -> Iterator[str]:
    """ResNets: a stream for each stage that a convolution begins, one group behind each inner convolution."""
    yield "conv1.* bn1.*: s0 ."
    stream = "s0"
    for stage in (1, 2, 3, 4):
        for number, block in enumerate(getattr(model, f"layer{stage}")):
            at, tag = f"layer{stage}.{number}", f"{stage}_{number}"
            after = stream if block.downsample is None else f"s{stage}"
            if block.downsample is not None:
                yield f"{at}.downsample.*: {after} {stream}"
            groups = block.conv2.groups
            inner = f"a{tag}" if groups == 1 else f"(g{tag}:{groups} i{tag}[g{tag}])"
            yield f"{at}.conv1.* {at}.bn1.*: {inner} {stream}"
            if not hasattr(block, "conv3"):
                yield f"{at}.conv2.* {at}.bn2.*: {after} {inner}"
            else:
                out, inside = (f"b{tag}", inner) if groups == 1 else (f"(g{tag} o{tag}[g{tag}])", f"i{tag}[g{tag}]")
                yield f"{at}.conv2.*: {out} {inside}"
                yield f"{at}.bn2.*: {out}"
                yield f"{at}.conv3.* {at}.bn3.*: {after} {out}"
            stream = after
    yield f"fc.*: . {stream}"


def _densenet(model: Model) -> Iterator[str]:
    """DenseNets: every layer reads all that came before in its block."""
    yield "features.conv0.* features.norm0.*: c0 ."
    read = "c0"
    for number in (1, 2, 3, 4):
        for layer in range(1, len(getattr(model.features, f"denseblock{number}")) + 1):
            at, tag = f"features.denseblock{number}.denselayer{layer}", f"{number}_{layer}"
            yield f"{at}.norm1.*: {read}"
            yield f"{at}.conv1.* {at}.norm2.*: h{tag} {read}"
            yield f"{at}.conv2.*: c{tag} h{tag}"
            read += f"+c{tag}"
        if number < 4:
            yield f"features.transition{number}.norm.*: {read}"
            yield f"features.transition{number}.conv.*: t{number} {read}"
            read = f"t{number}"
    yield f"features.norm5.*: {read}"
    yield f"classifier.*: . {read}"


def _squeezenet(model: Model) -> Iterator[str]:
    """SqueezeNets: two convolutions side by side in each module."""
    yield "features.0.*: c0 ."
    read = "c0"
    for number, layer in enumerate(model.features):
        if hasattr(layer, "squeeze"):
            yield f"features.{number}.squeeze.*: s{number} {read}"
            yield f"features.{number}.expand1x1.*: a{number} s{number}"
            yield f"features.{number}.expand3x3.*: b{number} s{number}"
            read = f"a{number}+b{number}"
    yield f"classifier.1.*: . {read}"


def _inverted(model: Model) -> Iterator[str]:
    """MobileNets, MNASNets and EfficientNets: the last convolution of a block with a residual writes the stream.

    A convolution by channels keeps its group. Squeeze and excite have one inside, and come back to that of the block.
    """
    body = "layers" if hasattr(model, "layers") else "features"
    names = {name: module for name, module in model.named_modules() if name.startswith(body)}
    residual = {
        name: getattr(block, "use_res_connect", getattr(block, "apply_residual", False))
        for name, block in names.items()
        if type(block).__name__ in ("InvertedResidual", "_InvertedResidual", "MBConv", "FusedMBConv")
    }
    group, stream, block = ".", ".", ""
    for name, layer in names.items():
        if name in residual:
            block, stream = name, group
            convolutions = [n for n, m in names.items() if n.startswith(f"{name}.") and isinstance(m, nn.Conv2d)]
        if isinstance(layer, nn.BatchNorm2d):
            yield f"{name}.*: {group}"
        elif isinstance(layer, nn.Conv2d) and name.endswith("fc1"):
            yield f"{name}.*: {name} {group}"
            squeezed = name
        elif isinstance(layer, nn.Conv2d) and name.endswith("fc2"):
            yield f"{name}.*: {group} {squeezed}"
        elif isinstance(layer, nn.Conv2d):
            read = group
            inside = block and name.startswith(f"{block}.")
            if not layer.groups > 1:
                group = stream if inside and residual[block] and name == convolutions[-1] else name
            yield f"{name}.*: {group} {'.' if layer.groups > 1 else read}"
    for name, layer in model.classifier.named_children():
        if isinstance(layer, nn.Linear):
            last = layer.out_features == 1000
            yield f"classifier.{name}.*: {'.' if last else 'classifier'} {group}"
            group = "classifier"


def _convnext(model: Model) -> Iterator[str]:
    """ConvNeXts: a stream for each stage."""
    yield "features.0.*: s0 ."
    for number in range(1, 8):
        stage = number // 2
        if number % 2 == 0:
            yield f"features.{number}.0.*: s{stage - 1}"
            yield f"features.{number}.1.*: s{stage} s{stage - 1}"
            continue
        at = f"features.{number}"
        yield f"{at}.*.layer_scale: s{stage} . ."
        yield f"{at}.*.block.0.* {at}.*.block.2.*: s{stage} ."
        yield f"{at}.{{i}}.block.3.*: h{number}_{{i}} s{stage}"
        yield f"{at}.{{i}}.block.5.*: s{stage} h{number}_{{i}}"
    yield "classifier.0.*: s3"
    yield "classifier.2.*: . s3"


def _torchvision_vit(model: Model) -> str:
    heads = model.encoder.layers[0].num_heads
    return f"""
        conv_proj.*: s .
        class_token encoder.pos_embedding: . . s
        encoder.layers.encoder_layer_{{i}}.ln_* encoder.ln.*: s
        encoder.layers.encoder_layer_{{i}}.self_attention.in_proj_*: {_fused("h{i}", heads)} s
        encoder.layers.encoder_layer_{{i}}.self_attention.out_proj.*: s (h{{i}} vh{{i}}[h{{i}}])
        encoder.layers.encoder_layer_{{i}}.mlp.0.*: f{{i}} s
        encoder.layers.encoder_layer_{{i}}.mlp.3.*: s f{{i}}
        heads.head.*: . s
    """


def _torchvision_swin(model: Model) -> Iterator[str]:
    """Swin transformers of the first version: a stream for each stage, four of which each merge reads."""
    yield "features.0.*: s0 ."
    for number in range(1, 8):
        at, stage = f"features.{number}", number // 2
        if number % 2 == 0:
            four = "+".join([f"s{stage - 1}"] * 4)
            yield f"{at}.norm.*: {four}"
            yield f"{at}.reduction.*: s{stage} {four}"
            continue
        heads = model.features[number][0].attn.num_heads
        for block in range(len(model.features[number])):
            tag = f"{number}_{block}"
            yield f"{at}.{block}.norm1.* {at}.{block}.norm2.*: s{stage}"
            yield f"{at}.{block}.attn.qkv.*: {_fused(f'h{tag}', heads)} s{stage}"
            yield f"{at}.{block}.attn.proj.*: s{stage} (h{tag} vh{tag}[h{tag}])"
            yield f"{at}.{block}.attn.relative_position_bias_table: . h{tag}"
            yield f"{at}.{block}.mlp.0.*: f{tag} s{stage}"
            yield f"{at}.{block}.mlp.3.*: s{stage} f{tag}"
    yield "norm.*: s3\nhead.*: . s3"


def _fused(group: str, heads: int) -> str:
    """Return the layout of queries, keys and values one behind the other."""
    keys, values = f"({group}:{heads} q{group}[{group}])", f"({group} v{group}[{group}])"
    return f"{keys}+{keys}+{values}"


# transformers


def _attention(queries: str, keys: str, values: str, out: str, heads: int, stream: str = "s") -> str:
    """Return the lines of an attention layer with separate projections, whose names hold `{i}`."""
    return f"""
        {queries} {keys}: (h{{i}}:{heads} qk{{i}}[h{{i}}]) {stream}
        {values}: (h{{i}} v{{i}}[h{{i}}]) {stream}
        {out}: {stream} (h{{i}} v{{i}}[h{{i}}])
    """


def _bert(model: Model) -> str:
    """BERT and RoBERTa: the head's layer in front of the tied words is in the stream."""
    root, at = model.base_model_prefix, f"{model.base_model_prefix}.encoder.layer.{{i}}"
    head = "cls.predictions.transform" if root == "bert" else "lm_head"
    norm = "LayerNorm" if root == "bert" else "layer_norm"
    own = f"{at}.attention.self"
    return f"""
        {root}.embeddings.*_embeddings.*: . s
        {root}.embeddings.LayerNorm.* {at}.attention.output.LayerNorm.* {at}.output.LayerNorm.* {head}.{norm}.*: s
        {at}.intermediate.dense.*: f{{i}} s
        {at}.output.dense.*: s f{{i}}
        {head}.dense.*: s s
    """ + _attention(
        f"{own}.query.*",
        f"{own}.key.*",
        f"{own}.value.*",
        f"{at}.attention.output.dense.*",
        model.config.num_attention_heads,
    )


def _distilbert(model: Model) -> str:
    at = "distilbert.transformer.layer.{i}"
    return f"""
        distilbert.embeddings.*_embeddings.*: . s
        distilbert.embeddings.LayerNorm.* {at}.sa_layer_norm.* {at}.output_layer_norm.* vocab_layer_norm.*: s
        {at}.ffn.lin1.*: f{{i}} s
        {at}.ffn.lin2.*: s f{{i}}
        vocab_transform.*: s s
    """ + _attention(
        *(f"{at}.attention.{name}_lin.*" for name in ("q", "k", "v", "out")), model.config.num_attention_heads
    )


def _gpt2(model: Model) -> str:
    """GPT-2: layers hold the transposes of what linear ones do."""
    heads = model.config.num_attention_heads
    at = "transformer.h.{i}"
    return f"""
        transformer.wte.* transformer.wpe.*: . s
        {at}.ln_* transformer.ln_f.* {at}.attn.c_proj.bias {at}.mlp.c_proj.bias: s
        {at}.attn.c_attn.weight: s {_fused("h{i}", heads)}
        {at}.attn.c_attn.bias: {_fused("h{i}", heads)}
        {at}.attn.c_proj.weight: (h{{i}} vh{{i}}[h{{i}}]) s
        {at}.mlp.c_fc.weight: s f{{i}}
        {at}.mlp.c_fc.bias: f{{i}}
        {at}.mlp.c_proj.weight: f{{i}} s
    """


def _gpt_neo(model: Model) -> str:
    at = "transformer.h.{i}"
    return f"""
        transformer.wte.* transformer.wpe.*: . s
        {at}.ln_* transformer.ln_f.*: s
        {at}.mlp.c_fc.*: f{{i}} s
        {at}.mlp.c_proj.*: s f{{i}}
    """ + _attention(
        *(f"{at}.attn.attention.{name}_proj.*" for name in ("q", "k", "v", "out")), model.config.num_attention_heads
    )


def _opt(model: Model) -> str:
    at = "model.decoder.layers.{i}"
    return f"""
        model.decoder.embed_*: . s
        {at}.*layer_norm.* model.decoder.final_layer_norm.*: s
        {at}.fc1.*: f{{i}} s
        {at}.fc2.*: s f{{i}}
    """ + _attention(*(f"{at}.self_attn.{n}_proj.*" for n in ("q", "k", "v", "out")), model.config.num_attention_heads)


def _gptj(model: Model) -> str:
    """GPT-J: the first units of each head turn with the position."""
    at, heads, turn = "transformer.h.{i}", model.config.num_attention_heads, model.config.rotary_dim
    return f"""
        transformer.wte.* lm_head.*: . s
        {at}.ln_1.* transformer.ln_f.*: s
        {at}.attn.q_proj.* {at}.attn.k_proj.*: (h{{i}}:{heads} ({turn}+qk{{i}}[h{{i}}])) s
        {at}.attn.v_proj.*: (h{{i}} v{{i}}[h{{i}}]) s
        {at}.attn.out_proj.*: s (h{{i}} v{{i}}[h{{i}}])
        {at}.mlp.fc_in.*: f{{i}} s
        {at}.mlp.fc_out.*: s f{{i}}
    """


def _gpt_neox(model: Model) -> str:
    at, heads = "gpt_neox.layers.{i}", model.config.num_attention_heads
    size = model.config.hidden_size // heads
    turn = int(size * model.config.rope_parameters["partial_rotary_factor"])
    keys = f"{turn}+qk{{i}}[h{{i}}]:{size - turn}"
    return f"""
        gpt_neox.embed_in.* lm_head.*: . s
        {at}.*layernorm.* gpt_neox.final_layer_norm.*: s
        {at}.attention.query_key_value.*: (h{{i}}:{heads} ({keys}+{keys}+v{{i}}[h{{i}}])) s
        {at}.attention.dense.*: s (h{{i}} v{{i}}[h{{i}}])
        {at}.mlp.dense_h_to_4h.*: f{{i}} s
        {at}.mlp.dense_4h_to_h.*: s f{{i}}
    """


def _llama(model: Model) -> str:
    """Decoders with grouped queries, all of whose units of queries and keys turn with the position."""
    config = model.config
    queries = config.num_attention_heads // config.num_key_value_heads
    keys = f"kv{{i}}:{config.num_key_value_heads}"
    inner = f"{keys} g{{i}}[kv{{i}}]:{queries}" if queries > 1 else keys
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    at = "model.layers.{i}"
    text = f"""
        model.embed_tokens.*: . s
        {at}.*layernorm.* model.norm.*: s
        {at}.self_attn.o_proj.*: s ({inner} v{{i}}[kv{{i}}])
        {at}.mlp.down_proj.*: s f{{i}}
    """
    if hasattr(model.model.layers[0].self_attn, "qkv_proj"):
        text += f"{at}.self_attn.qkv_proj.*: ({inner} {size})+({keys} {size})+({keys} v{{i}}[kv{{i}}]:{size}) s\n"
        text += f"{at}.mlp.gate_up_proj.*: f{{i}}+f{{i}} s\n"
    else:
        text += f"""
            {at}.self_attn.q_proj.*: ({inner} {size}) s
            {at}.self_attn.k_proj.*: ({keys} {size}) s
            {at}.self_attn.v_proj.*: ({keys} v{{i}}[kv{{i}}]) s
            {at}.mlp.gate_proj.* {at}.mlp.up_proj.*: f{{i}} s
        """
    if hasattr(model.model.layers[0].self_attn, "q_norm") and config.model_type == "olmo2":
        text += f"{at}.self_attn.q_norm.*: ({inner} {size})\n{at}.self_attn.k_norm.*: ({keys} {size})\n"
    return text if model.lm_head.weight is model.model.embed_tokens.weight else text + "lm_head.*: . s"


def _vit(model: Model) -> str:
    """ViT, DeiT and DINOv2."""
    root = model.base_model_prefix
    at = f"{root}.layers.{{i}}" if hasattr(getattr(model, root), "layers") else f"{root}.encoder.layer.{{i}}"
    tokens = f" {root}.embeddings.distillation_token" if root == "deit" else ""
    classified = "s+s" if root == "dinov2" else "s"
    scales = f" {at}.layer_scale*" if root == "dinov2" else ""
    norms = f"{at}.norm*" if root == "dinov2" else f"{at}.layernorm_*"
    return f"""
        {root}.embeddings.cls_token {root}.embeddings.position_embeddings{tokens}: . . s
        {root}.embeddings.patch_embeddings.projection.*: s .
        {norms} {root}.layernorm.*{scales}: s
        {at}.mlp.fc1.*: f{{i}} s
        {at}.mlp.fc2.*: s f{{i}}
        classifier.*: . {classified}
    """ + _attention(*(f"{at}.attention.{n}_proj.*" for n in ("q", "k", "v", "o")), model.config.num_attention_heads)


FAMILIES: dict[str, Callable[[Any], str | Iterator[str]]] = {
    r"torchvision:(vgg\w+|alexnet)": _chain,
    r"torchvision:(resnet\d+|wide_resnet\w+|resnext\w+)": _resnet,
    r"torchvision:densenet\d+": _densenet,
    r"torchvision:squeezenet\w+": _squeezenet,
    r"torchvision:(mobilenet_v[23]\w*|mnasnet\w+|efficientnet_\w+)": _inverted,
    r"torchvision:convnext_\w+": _convnext,
    r"torchvision:vit_\w+": _torchvision_vit,
    r"torchvision:swin_[tsb]": _torchvision_swin,
    r"transformers:(bert|roberta)": _bert,
    r"transformers:distilbert": _distilbert,
    r"transformers:gpt2": _gpt2,
    r"transformers:gpt_neo": _gpt_neo,
    r"transformers:opt": _opt,
    r"transformers:gptj": _gptj,
    r"transformers:gpt_neox": _gpt_neox,
    r"transformers:(llama|mistral|qwen2|qwen3|gemma|gemma2|granite|cohere|olmo2|phi3|smollm3)": _llama,
    r"transformers:(vit|deit|dinov2)": _vit,
}
"""Who derives the symmetries of which models, by source and name."""
