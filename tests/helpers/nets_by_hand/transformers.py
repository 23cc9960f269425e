"""Transformers: windows, encoders, decoders, and what shares their layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers.nets_by_hand.attention import HEADS, IDS, ROWS, SIZE, WIDTH, joined, split, turned
from helpers.nets_by_hand.net import Net, parameter
from helpers.trace_models import Parts

IMAGE = torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8).sin()
L = nn.Linear


def windows(m: nn.Module, x: Tensor) -> Tensor:
    x = m.patch(x).permute(0, 2, 3, 1)
    places = torch.arange(2)
    row, column = torch.meshgrid(places, places, indexing="ij")
    flat = torch.stack([row.flatten(), column.flatten()])
    index = ((flat[:, :, None] - flat[:, None] + 1) * torch.tensor([3, 1])[:, None, None]).sum(0)
    for shift, p in enumerate(m.blocks):
        y = p["norm1"](x).roll((-shift, -shift), (1, 2))
        b, h, w, c = y.shape
        y = y.view(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        q, k, v = p["qkv"](y).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT + p["bias"].weight[index].permute(2, 0, 1)
        y = p["proj"](joined(scores.softmax(-1) @ v))
        y = y.view(b, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(b, h, w, c).roll((shift, shift), (1, 2))
        x = x + y
        x = x + p["down"](F.gelu(p["up"](p["norm2"](x))))
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return m.out(m.merge(torch.cat(corners, -1)).mean((1, 2)))


def window_block() -> nn.Module:
    return nn.ModuleDict(
        {
            "norm1": nn.LayerNorm(WIDTH),
            "qkv": L(WIDTH, 3 * WIDTH),
            "bias": nn.Embedding(9, HEADS),
            "proj": L(WIDTH, WIDTH),
            "norm2": nn.LayerNorm(WIDTH),
            "up": L(WIDTH, 16),
            "down": L(16, WIDTH),
        }
    )


def vit(m: nn.Module, x: Tensor) -> Tensor:
    x = m.patch(x).flatten(2).mT
    x = torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.places
    return m.out(m.norm(m.blocks(x)[:, 0]))


def gpt(m: nn.Module, ids: Tensor) -> Tensor:
    x = m.words(ids) + m.places(torch.arange(ids.shape[1]))
    past = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=x.dtype)
    return m.head(m.norm(m.blocks(x, mask=past)))


def tied_gpt() -> nn.Module:
    m = Parts(
        gpt,
        words=nn.Embedding(11, 12),
        places=nn.Embedding(16, 12),
        blocks=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(12, 3, 16, 0.0, "gelu", batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        ),
        norm=nn.LayerNorm(12),
        head=L(12, 11, bias=False),
    )
    m.head.weight = m.words.weight
    return m


def llama(m: nn.Module, ids: Tensor) -> Tensor:
    x = m.words(ids)
    for p in m.layers:
        y = p["norm1"](x)
        q, k, v = turned(split(p["q"](y), 4)), turned(split(p["k"](y), 2)), split(p["v"](y), 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + p["o"](joined(y))
        y = p["norm2"](x)
        x = x + p["down"](F.silu(p["gate"](y)) * p["up"](y))
    return m.head(m.norm(x))


def llama_layer() -> nn.Module:
    sizes = {
        "q": (12, 16),
        "k": (12, 8),
        "v": (12, 8),
        "o": (16, 12),
        "gate": (12, 10),
        "up": (12, 10),
        "down": (10, 12),
    }
    linear = {name: L(*size, bias=False) for name, size in sizes.items()}
    return nn.ModuleDict({"norm1": nn.RMSNorm(12), "norm2": nn.RMSNorm(12), **linear})


def one_layer_at_every_depth(m: nn.Module, ids: Tensor) -> Tensor:
    x = m.norm(m.enter(m.words(ids)))
    for _ in range(2):
        x = m.layer(x)
    return m.out(x.mean(1))


def clip(m: nn.Module, image: Tensor, ids: Tensor) -> Tensor:
    x = F.normalize(m.see(m.image(m.patch(image).flatten(2).mT).mean(1)), dim=-1)
    y = F.normalize(m.read(m.text(m.words(ids)).amax(1)), dim=-1)
    return m.scale.exp() * x @ y.T


def conformer(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    x = x + 0.5 * m.down1(F.silu(m.up1(m.norm1(x))))
    y = m.norm2(x)
    x = x + m.heads(y, y, y, need_weights=False)[0]
    y = F.glu(m.point1(m.norm3(x).mT), 1)
    x = x + m.point2(F.silu(m.norm4(m.depth(y)))).mT
    return m.out(x + 0.5 * m.down2(F.silu(m.up2(x))))


LAYER = """
    {prefix}self_attn.in_proj_*: (h{i}:3 qk{i}[h{i}])+(h{i} qk{i}[h{i}])+(h{i} v{i}[h{i}]) {stream}
    {prefix}self_attn.out_proj.*: {stream} (h{i} v{i}[h{i}])
    {prefix}linear1.*: f{i} {stream}
    {prefix}linear2.*: {stream} f{i}
    {prefix}norm*: {stream}
"""


def layers(prefix: str, number: str = "{i}", stream: str = "s") -> str:
    """Return the lines for torch's transformer layers with three heads; `number` tells their groups from others."""
    return LAYER.replace("{prefix}", prefix).replace("{stream}", stream).replace("{i}", number)


CROSS = """
    {p}multihead_attn.in_proj_*: (c{i}:3 ck{i}[c{i}])+(c{i} ck{i}[c{i}])+(c{i} cv{i}[c{i}]) s
    {p}multihead_attn.out_proj.*: s (c{i} cv{i}[c{i}])
"""
LAYER_ARGUMENTS = {"d_model": 12, "nhead": 3, "dim_feedforward": 16, "dropout": 0.0, "batch_first": True}
NETS: dict[str, Net] = {
    "windows that shift": Net(
        lambda: Parts(
            windows,
            patch=nn.Conv2d(3, 12, 2, 2),
            blocks=nn.ModuleList([window_block(), window_block()]),
            merge=L(48, 10),
            out=L(10, 2),
        ),
        (IMAGE,),
        """
        patch.*: s .
        blocks.*.norm1.* blocks.*.norm2.*: s
        blocks.{i}.qkv.*: (h{i}:3 qk{i}[h{i}])+(h{i} qk{i}[h{i}])+(h{i} v{i}[h{i}]) s
        blocks.{i}.bias.*: . h{i}
        blocks.{i}.proj.*: s (h{i} v{i}[h{i}])
        blocks.{i}.up.*: f{i} s
        blocks.{i}.down.*: s f{i}
        merge.*: t s+s+s+s
        out.*: . t
        """,
    ),
    "transformer layers of torch": Net(
        lambda: Parts(
            lambda m, x: m.out(m.body(m.inp(x))),
            inp=L(5, 12),
            body=nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER_ARGUMENTS), 2, enable_nested_tensor=False),
            out=L(12, 2),
        ),
        (ROWS,),
        layers("body.layers.{i}.") + "inp.*: s .\nout.*: . s",
    ),
    "encoder and decoder of torch": Net(
        lambda: Parts(
            lambda m, x, y: m.out(m.decoder(m.inp(y), m.norm(m.encoder(m.inp(x))))),
            inp=L(5, 12),
            encoder=nn.TransformerEncoderLayer(**LAYER_ARGUMENTS),
            norm=nn.LayerNorm(12),
            decoder=nn.TransformerDecoderLayer(**LAYER_ARGUMENTS),
            out=L(12, 2),
        ),
        (ROWS, ROWS[:, :4]),
        # The norms behind cut the encoder's stream from the decoder's only where the two meet in no sum: both start
        # from one layer, so that the stream is one.
        layers("encoder.", "e")
        + layers("decoder.", "d")
        + CROSS.replace("{p}", "decoder.").replace("{i}", "x")
        + "norm.*: s\ninp.*: s .\nout.*: . s",
    ),
    "vision transformer": Net(
        lambda: Parts(
            vit,
            patch=nn.Conv2d(3, 12, 2, 2),
            token=parameter(1, 1, 12),
            places=parameter(1, 17, 12),
            blocks=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**LAYER_ARGUMENTS, norm_first=True), 2, enable_nested_tensor=False
            ),
            norm=nn.LayerNorm(12),
            out=L(12, 2),
        ),
        (IMAGE,),
        layers("blocks.layers.{i}.") + "patch.*: s .\ntoken places: . . s\nnorm.*: s\nout.*: . s",
    ),
    "decoder with tied words": Net(
        tied_gpt,
        (IDS,),
        layers("blocks.layers.{i}.") + "words.* places.*: . s\nnorm.*: s",
    ),
    "rotary decoder with grouped queries": Net(
        lambda: Parts(
            llama,
            words=nn.Embedding(11, 12),
            layers=nn.ModuleList([llama_layer(), llama_layer()]),
            norm=nn.RMSNorm(12),
            head=L(12, 11, bias=False),
        ),
        (IDS,),
        """
        words.* head.*: . s
        norm.* layers.*.norm1.* layers.*.norm2.*: s
        layers.{i}.q.*: (kv{i}:2 g{i}[kv{i}]:2 4) s
        layers.{i}.k.*: (kv{i} 4) s
        layers.{i}.v.*: (kv{i} v{i}[kv{i}]) s
        layers.{i}.o.*: s (kv{i} g{i}[kv{i}] v{i}[kv{i}])
        layers.{i}.gate.* layers.{i}.up.*: f{i} s
        layers.{i}.down.*: s f{i}
        """,
    ),
    "one transformer layer at every depth": Net(
        lambda: Parts(
            one_layer_at_every_depth,
            words=nn.Embedding(11, 6),
            enter=L(6, 12),
            norm=nn.LayerNorm(12),
            layer=nn.TransformerEncoderLayer(**LAYER_ARGUMENTS),
            out=L(12, 2),
        ),
        (IDS,),
        layers("layer.", "l") + "words.*: . e\nenter.*: s e\nnorm.*: s\nout.*: . s",
    ),
    "images and text": Net(
        lambda: Parts(
            clip,
            patch=nn.Conv2d(3, 12, 4, 4),
            image=nn.TransformerEncoderLayer(**LAYER_ARGUMENTS),
            see=L(12, 8, bias=False),
            words=nn.Embedding(11, 12),
            text=nn.TransformerEncoderLayer(**LAYER_ARGUMENTS),
            read=L(12, 8, bias=False),
            scale=nn.Parameter(torch.zeros(())),
        ),
        (IMAGE, IDS),
        layers("image.", "i")
        + layers("text.", "t", stream="t")
        + "patch.*: s .\nsee.*: e s\nwords.*: . t\nread.*: e t",
    ),
    "conformer": Net(
        lambda: Parts(
            conformer,
            inp=L(5, 12),
            norm1=nn.LayerNorm(12),
            up1=L(12, 8),
            down1=L(8, 12),
            norm2=nn.LayerNorm(12),
            heads=nn.MultiheadAttention(12, 3, batch_first=True),
            norm3=nn.LayerNorm(12),
            point1=nn.Conv1d(12, 20, 1),
            depth=nn.Conv1d(10, 10, 3, padding=1, groups=10),
            norm4=nn.BatchNorm1d(10),
            point2=nn.Conv1d(10, 12, 1),
            up2=L(12, 9),
            down2=L(9, 12),
            out=L(12, 2),
        ),
        (ROWS,),
        """
        inp.*: s .
        norm1.* norm2.* norm3.*: s
        up1.*: a s
        down1.*: s a
        heads.in_proj_*: (h:3 qk[h])+(h qk[h])+(h v[h]) s
        heads.out_proj.*: s (h v[h])
        point1.*: c+c s
        depth.* norm4.*: c .
        point2.*: s c
        up2.*: b s
        down2.*: s b
        out.*: . s
        """,
    ),
}
