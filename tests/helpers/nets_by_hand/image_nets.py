"""Nets for images: blocks of the architectures that people use."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers.nets_by_hand.convolutions import IMAGE, pooled
from helpers.nets_by_hand.net import Net
from helpers.trace_models import Parts

C, T, L = nn.Conv2d, nn.ConvTranspose2d, nn.Linear


class Basic(nn.Module):
    """A residual block, with a projection where the width changes."""

    def __init__(self, before: int, width: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = C(before, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = C(8, 8, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = C(8, width, 1, bias=False), nn.BatchNorm2d(width)
        self.down = nn.Identity() if before == width else C(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.down(x) + self.bn3(self.conv3(y)))


class Inverted(nn.Module):
    """An inverted residual with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = C(6, 12, 1), nn.BatchNorm2d(12)
        self.depth, self.bn2 = C(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.squeeze, self.excite, self.project = C(12, 4, 1), C(4, 12, 1), C(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.bn2(self.depth(F.hardswish(self.bn1(self.expand(x))))))
        gate = self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + self.project(y * gate)


class Next(nn.Module):
    """A block of ConvNeXt; with `norm` also its second version's normalisation of responses."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.depth, self.norm = C(6, 6, 3, padding=1, groups=6), nn.LayerNorm(6)
        self.up, self.down = L(6, 10), L(10, 6)
        self.gamma = nn.Parameter(torch.ones(1 if norm else 6))
        self.scale, self.shift = (nn.Parameter(torch.zeros(10 if norm else 1)) for _ in range(2))
        self.second = norm

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1))))
        if self.second:
            size = y.norm(dim=(1, 2), keepdim=True)
            y = self.scale * (y * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.shift + y
        y = self.down(y)
        return x + (y if self.second else self.gamma * y).permute(0, 3, 1, 2)


def dense_net(m: nn.Module, x: Tensor) -> Tensor:
    features = [m.stem(x)]
    for norm, conv in zip(m.norms, m.convs, strict=True):
        features.append(conv(norm(torch.cat(features, 1)).relu()))
    return m.out(torch.cat(features, 1).mean((2, 3)))


def u_net(m: nn.Module, x: Tensor) -> Tensor:
    one = m.one(x).relu()
    two = m.two(F.max_pool2d(one, 2)).relu()
    three = m.three(F.max_pool2d(two, 2)).relu()
    up = m.mix(torch.cat([two, m.up2(three)], 1)).relu()
    return m.out(torch.cat([m.up1(up), one], 1))


def attention_module(m: nn.Module, x: Tensor) -> Tensor:
    y = m.stem(x)
    both = (m.two(m.one(z).relu()) for z in (y.mean((2, 3)), y.amax((2, 3))))
    y = y * sum(both, torch.zeros(())).sigmoid()[:, :, None, None]
    maps = torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True).values], 1)
    return m.out((y * m.space(maps).sigmoid()).mean((2, 3)))


def efficient_channels(m: nn.Module, x: Tensor) -> Tensor:
    y = m.stem(x)
    gate = m.along(y.mean((2, 3))[:, None])[:, 0].sigmoid()
    return m.out((y * gate[:, :, None, None]).mean((2, 3)))


def inception(m: nn.Module, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = torch.cat([m.a(x), m.b2(m.b1(x).relu()), m.c(F.max_pool2d(x, 3, 1, 1))], 1)
    return m.out(y.relu().mean((2, 3)))


def res2(m: nn.Module, x: Tensor) -> Tensor:
    x = m.stem(x)
    a, b, c = m.split(x).relu().chunk(3, 1)
    b = m.k2(b)
    c = m.k3(c + b)
    return m.out((x + m.join(torch.cat([a, b, c], 1))).mean((2, 3)))


def ghost(m: nn.Module, x: Tensor) -> Tensor:
    y = m.primary(x).relu()
    return m.out(torch.cat([y, m.cheap(y).relu()], 1).mean((2, 3)))


def padded_shortcut(m: nn.Module, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.two(m.one(x).relu()) + F.pad(x, (0, 0, 0, 0, 2, 3))
    return m.out(y.relu().mean((2, 3)))


def pyramid(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    one = m.one(x).relu()
    two = m.two(one).relu()
    top = m.lateral2(two)
    both = m.lateral1(one) + F.interpolate(top, scale_factor=2)
    return m.head(m.smooth(both)), m.head(m.smooth(top))


NETS: dict[str, Net] = {
    "residual, identity and projection": Net(
        lambda: pooled(C(3, 6, 3), Basic(6, 6), Basic(6, 10), Basic(10, 10), width=10),
        (IMAGE,),
        """
        0.*: s .
        1.conv1.* 1.bn1.*: a s
        1.conv2.* 1.bn2.*: b a
        1.conv3.* 1.bn3.*: s b
        2.conv1.* 2.bn1.*: c s
        2.conv2.* 2.bn2.*: d c
        2.conv3.* 2.bn3.*: t d
        2.down.*: t s
        3.conv1.* 3.bn1.*: e t
        3.conv2.* 3.bn2.*: f e
        3.conv3.* 3.bn3.*: t f
        6.*: . t
        """,
    ),
    "residual, with groups inside": Net(
        lambda: pooled(C(3, 6, 3), Basic(6, 6, groups=4), width=6),
        (IMAGE,),
        """
        0.*: s .
        1.conv1.* 1.bn1.*: (g i[g]) s
        1.conv2.weight: (g:4 o[g]) i[g]
        1.bn2.*: (g o[g])
        1.conv3.* 1.bn3.*: s (g o[g])
        4.*: . s
        """,
    ),
    "shortcut padded with zeros": Net(
        lambda: Parts(padded_shortcut, stem=C(3, 4, 3), one=C(4, 6, 3, padding=1), two=C(6, 9, 1), out=L(9, 2)),
        (IMAGE,),
        "stem.*: s .\none.*: h s\ntwo.*: p:2+s+q:3 h\nout.*: . p+s+q",
    ),
    "densely connected": Net(
        lambda: Parts(
            dense_net,
            stem=C(3, 6, 3, padding=1),
            norms=nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10)]),
            convs=nn.ModuleList([C(6, 4, 3, padding=1), C(10, 5, 3, padding=1)]),
            out=L(15, 2),
        ),
        (IMAGE,),
        """
        stem.*: a .
        norms.0.*: a
        convs.0.*: b a
        norms.1.*: a+b
        convs.1.*: c a+b
        out.*: . a+b+c
        """,
    ),
    "u-net": Net(
        lambda: Parts(
            u_net,
            one=C(3, 4, 3, padding=1),
            two=C(4, 6, 3, padding=1),
            three=C(6, 8, 3, padding=1),
            up2=T(8, 5, 2, 2),
            mix=C(11, 7, 1),
            up1=T(7, 6, 2, 2),
            out=C(10, 2, 1),
        ),
        (IMAGE,),
        """
        one.*: a .
        two.*: b a
        three.*: c b
        up2.weight: c d
        up2.bias: d
        mix.*: e b+d
        up1.weight: e f
        up1.bias: f
        out.*: . f+a
        """,
    ),
    "inverted residual, squeeze and excite": Net(
        lambda: pooled(C(3, 6, 3), Inverted(), Inverted(), width=6),
        (IMAGE,),
        """
        0.*: s .
        {i}.expand.* {i}.bn1.*: h{i} s
        {i}.depth.* {i}.bn2.*: h{i} .
        {i}.squeeze.*: r{i} h{i}
        {i}.excite.*: h{i} r{i}
        {i}.project.*: s h{i}
        5.*: . s
        """,
    ),
    "convnext": Net(
        lambda: pooled(C(3, 6, 2, 2), Next(False), Next(False), width=6),
        (IMAGE,),
        """
        0.*: s .
        {i}.depth.* {i}.norm.* {i}.gamma: s .
        {i}.up.*: h{i} s
        {i}.down.*: s h{i}
        5.*: . s
        """,
    ),
    "convnext, second version": Net(
        lambda: pooled(C(3, 6, 2, 2), Next(True), width=6),
        (IMAGE,),
        """
        0.*: s .
        1.depth.* 1.norm.*: s .
        1.up.*: h s
        1.scale 1.shift: h
        1.down.*: s h
        4.*: . s
        """,
    ),
    "attention to channels and space": Net(
        lambda: Parts(
            attention_module, stem=C(3, 8, 3), one=L(8, 3), two=L(3, 8), space=C(2, 1, 3, padding=1), out=L(8, 2)
        ),
        (IMAGE,),
        "stem.*: c .\none.*: r c\ntwo.*: c r\nout.*: . c",
    ),
    "a convolution along channels": Net(
        # It tells which channel stands beside which.
        lambda: Parts(efficient_channels, stem=C(3, 8, 3), along=nn.Conv1d(1, 1, 3, padding=1), out=L(8, 2)),
        (IMAGE,),
        "",
    ),
    "inception": Net(
        lambda: Parts(
            inception,
            stem=C(3, 6, 3),
            a=C(6, 4, 1),
            b1=C(6, 3, 1),
            b2=C(3, 5, 3, padding=1),
            c=C(6, 2, 1),
            out=L(11, 2),
        ),
        (IMAGE,),
        "stem.*: s .\na.*: a s\nb1.*: h s\nb2.*: b h\nc.*: c s\nout.*: . a+b+c",
    ),
    "steps inside a block": Net(
        lambda: Parts(
            res2,
            stem=C(3, 8, 3),
            split=C(8, 12, 1),
            k2=C(4, 4, 3, padding=1),
            k3=C(4, 4, 3, padding=1),
            join=C(12, 8, 1),
            out=L(8, 2),
        ),
        (IMAGE,),
        "stem.*: s .\nsplit.*: a+b+c s\nk2.*: c b\nk3.*: d c\njoin.*: s a+c+d\nout.*: . s",
    ),
    "ghost features": Net(
        lambda: Parts(ghost, primary=C(3, 6, 1), cheap=C(6, 6, 3, padding=1, groups=6), out=L(12, 2)),
        (IMAGE,),
        "primary.* cheap.*: p .\nout.*: . p+p",
    ),
    "feature pyramid": Net(
        lambda: Parts(
            pyramid,
            one=C(3, 6, 3, padding=1),
            two=C(6, 8, 2, 2),
            lateral1=C(6, 5, 1),
            lateral2=C(8, 5, 1),
            smooth=C(5, 7, 3, padding=1),
            head=C(7, 2, 1),
        ),
        (IMAGE,),
        "one.*: a .\ntwo.*: b a\nlateral1.*: p a\nlateral2.*: p b\nsmooth.*: s p\nhead.*: . s",
    ),
}
