"""Convolutions of every kind, and what reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers.nets_by_hand.net import Net
from helpers.trace_models import Parts

IMAGE = torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8).sin()
SIGNAL = torch.linspace(-1, 1, 96).reshape(2, 3, 16).sin()
C, T, L = nn.Conv2d, nn.ConvTranspose2d, nn.Linear


def pooled(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(width, 2))


def text_cnn(m: nn.Module, ids: Tensor) -> Tensor:
    x = m.words(ids).mT
    return m.out(torch.cat([conv(x).relu().amax(-1) for conv in m.convs], 1))


def wave_net(m: nn.Module, x: Tensor) -> Tensor:
    x, total = m.inp(x), torch.zeros(())
    for i, layer in enumerate(m.layers):
        signal, gate = layer(F.pad(x, (2**i, 0))).chunk(2, 1)
        y = signal.tanh() * gate.sigmoid()
        total = total + m.skips[i](y)
        if i < len(m.back):
            x = x + m.back[i](y)
    return m.out(total.relu())


def tied_filters(m: nn.Module, x: Tensor) -> Tensor:
    return F.conv_transpose2d(m.conv(x).relu(), m.conv.weight, m.bias)


def styled(m: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    x = m.enter(x)
    weight = m.filters[None] * (1 + m.style(z))[:, None, :, None, None]
    weight = weight * torch.rsqrt(weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
    b, out, inp = weight.shape[:3]
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.reshape(b * out, inp, 3, 3), padding=1, groups=b)
    return m.leave(F.leaky_relu(y.view(b, out, *y.shape[2:]) + m.bias[:, None, None], 0.2))


def timed(m: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    time = m.times(torch.cat([(t[:, None] * k).sin() for k in (1, 2, 4)], 1)).relu()
    y = m.one(x)
    y = y + m.add(time)[:, :, None, None]
    return m.two(F.silu(m.norm(y)))


def automaton(m: nn.Module, x: Tensor) -> Tensor:
    state = m.inp(x)
    for _ in range(2):
        seen = m.see(state)
        state = state + m.act(m.think(seen).relu())
    return m.out(state)


NETS: dict[str, Net] = {
    "cnn": Net(
        lambda: nn.Sequential(
            C(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), C(6, 8, 3), nn.MaxPool2d(2), nn.Flatten(), L(32, 3)
        ),
        (IMAGE,),
        "0.* 1.*: a .\n3.*: b a\n6.*: . (b 4)",
    ),
    "grouped convolution": Net(
        lambda: pooled(C(3, 8, 3), C(8, 12, 3, groups=4), width=12),
        (IMAGE,),
        """
        0.*: (g i[g]) .
        1.weight: (g:4 o[g]) i[g]
        1.bias: (g o[g])
        4.*: . (g o[g])
        """,
    ),
    "grouped convolution of the input": Net(
        lambda: nn.Sequential(nn.Conv1d(3, 12, 3, groups=3), nn.ReLU(), nn.Conv1d(12, 2, 1)),
        (SIGNAL,),
        "0.*: a:4+b:4+c:4 .\n2.*: . a+b+c",
    ),
    "depthwise, with a multiplier": Net(
        lambda: nn.Sequential(C(3, 4, 1), C(4, 8, 3, groups=4), nn.ReLU6(), C(8, 2, 1)),
        (IMAGE,),
        "0.*: c .\n1.*: (c m[c]) .\n3.*: . (c m[c])",
    ),
    "dilated": Net(
        lambda: nn.Sequential(
            C(3, 8, 3, padding=2, dilation=2), nn.ELU(), C(8, 6, 3, padding=4, dilation=4), C(6, 2, 1)
        ),
        (IMAGE,),
        "0.*: a .\n2.*: b a\n3.*: . b",
    ),
    "transposed": Net(
        lambda: nn.Sequential(C(3, 8, 2, 2), T(8, 6, 2, 2), nn.ReLU(), T(6, 3, 3, padding=1)),
        (IMAGE,),
        "0.*: a .\n1.weight: a b\n1.bias: b\n3.weight: b .",
    ),
    "transposed, in groups": Net(
        lambda: nn.Sequential(C(3, 8, 1), T(8, 12, 2, 2, groups=4), nn.ReLU(), C(12, 2, 1)),
        (IMAGE,),
        "0.*: (g i[g]) .\n1.weight: (g:4 i[g]) o[g]\n1.bias: (g o[g])\n3.*: . (g o[g])",
    ),
    "three dimensions": Net(
        lambda: nn.Sequential(
            nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.ConvTranspose3d(6, 4, 1), nn.Conv3d(4, 1, 1)
        ),
        (IMAGE[:, :, None],),
        "0.* 1.*: a .\n3.weight: a b\n3.bias: b\n4.*: . b",
    ),
    "sub-pixel up and down": Net(
        lambda: nn.Sequential(
            C(3, 12, 1), nn.PixelShuffle(2), nn.ReLU(), C(3, 5, 1), nn.PixelUnshuffle(2), C(20, 2, 1)
        ),
        (IMAGE,),
        "0.*: (c 4) .\n3.*: d c\n5.*: . (d 4)",
    ),
    "norms of channels and places": Net(
        lambda: nn.Sequential(
            *(C(3, 6, 1), nn.InstanceNorm2d(6, affine=True, track_running_stats=True), C(6, 8, 1), nn.GroupNorm(4, 8)),
            *(C(8, 5, 1), nn.LayerNorm([5, 8, 8]), C(5, 4, 1), nn.GroupNorm(1, 4), C(4, 2, 1)),
        ),
        (IMAGE,),
        """
        0.* 1.*: a .
        2.*: (g:4 i[g]) a
        3.*: (g i[g])
        4.*: b (g i[g])
        5.*: b . .
        6.*: c b
        7.*: c
        8.*: . c
        """,
    ),
    "neighbours of a channel": Net(
        lambda: nn.Sequential(C(3, 6, 1), nn.LocalResponseNorm(3), C(6, 5, 1), nn.ReLU(), C(5, 2, 1)),
        (IMAGE,),
        "2.*: b .\n4.*: . b",
    ),
    "kernels over words": Net(
        lambda: Parts(
            text_cnn,
            words=nn.Embedding(11, 6),
            convs=nn.ModuleList([nn.Conv1d(6, 4, 2), nn.Conv1d(6, 5, 3)]),
            out=L(9, 2),
        ),
        (torch.arange(14).reshape(2, 7) % 11,),
        "words.*: . e\nconvs.0.*: a e\nconvs.1.*: b e\nout.*: . a+b",
    ),
    "gated dilations with skips": Net(
        lambda: Parts(
            wave_net,
            inp=nn.Conv1d(3, 6, 1),
            layers=nn.ModuleList([nn.Conv1d(6, 8, 2), nn.Conv1d(6, 8, 2, dilation=2)]),
            skips=nn.ModuleList([nn.Conv1d(4, 5, 1), nn.Conv1d(4, 5, 1)]),
            back=nn.ModuleList([nn.Conv1d(4, 6, 1)]),
            out=nn.Conv1d(5, 2, 1),
        ),
        (SIGNAL,),
        "inp.*: s .\nlayers.{i}.*: h{i}+h{i} s\nskips.{i}.*: k h{i}\nback.{i}.*: s h{i}\nout.*: . k",
    ),
    "autoencoder with tied filters": Net(
        lambda: Parts(tied_filters, conv=C(3, 8, 2, 2), bias=nn.Parameter(torch.zeros(3))),
        (IMAGE,),
        "conv.*: h .",
    ),
    "filters that a style scales": Net(
        lambda: Parts(
            styled,
            enter=C(3, 6, 1),
            style=L(4, 6),
            filters=nn.Parameter(torch.randn(5, 6, 3, 3)),
            bias=nn.Parameter(torch.zeros(5)),
            leave=C(5, 3, 1),
        ),
        (IMAGE, IMAGE[:, 0, 0, :4]),
        "enter.*: a .\nstyle.*: a .\nfilters: b a\nbias: b\nleave.*: . b",
    ),
    "diffusion step": Net(
        lambda: Parts(
            timed, times=L(3, 7), one=C(3, 8, 3, padding=1), add=L(7, 8), norm=nn.GroupNorm(2, 8), two=C(8, 3, 1)
        ),
        (IMAGE, torch.tensor([0.1, 0.7])),
        "times.*: t .\none.*: (g:2 i[g]) .\nadd.*: (g i[g]) t\nnorm.*: (g i[g])\ntwo.*: . (g i[g])",
    ),
    "cellular automaton": Net(
        lambda: Parts(
            automaton,
            inp=C(3, 6, 1),
            see=C(6, 12, 3, padding=1, groups=6),
            think=C(12, 8, 1),
            act=C(8, 6, 1),
            out=C(6, 2, 1),
        ),
        (IMAGE,),
        "inp.*: s .\nsee.*: (s m[s]) .\nthink.*: h (s m[s])\nact.*: s h\nout.*: . s",
    ),
}
