"""Nets of linear layers: chains, gates, sets, adapters, experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

from helpers.nets_by_hand.net import Net, parameter
from helpers.trace_models import Parts

X = torch.linspace(-1, 1, 15).reshape(3, 5)
ROWS = torch.linspace(-1, 1, 36).reshape(2, 6, 3)
L = nn.Linear


class Residual(nn.Module):
    """A block that adds to its input."""

    def __init__(self, width: int = 8, hidden: int = 10) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), L(width, hidden), L(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def highway(m: nn.Module, x: Tensor) -> Tensor:
    h = m.inp(x)
    for layer, gate in zip(m.layers, m.gates, strict=True):
        share = gate(h).sigmoid()
        h = share * layer(h).relu() + (1 - share) * h
    return m.out(h)


def shared_depth(m: nn.Module, x: Tensor) -> Tensor:
    h = m.inp(x)
    for _ in range(3):
        h = torch.tanh(m.cell(h))
    return m.out(h)


def skips(m: nn.Module, x: Tensor) -> Tensor:
    one = m.a(x).relu()
    two = m.b(torch.cat([x, one], 1)).relu()
    return m.out(torch.cat([x, one, two], 1))


def coupling(m: nn.Module, x: Tensor) -> Tensor:
    one, two = x[:, :2], x[:, 2:]
    scale, shift = m.s(one).tanh(), m.t(one)
    two = two * scale.exp() + shift
    return torch.cat([one, two], 1)


def point_net(m: nn.Module, x: Tensor) -> Tensor:
    turn = m.turn(m.tall(x).relu().amax(1)).view(-1, 3, 3)
    return m.head(m.points(x @ turn).amax(1))


def codes(m: nn.Module, x: Tensor) -> Tensor:
    z = m.encode(x)
    nearest = torch.cdist(z, m.book).argmin(1)
    return m.decode(z + (F.embedding(nearest, m.book) - z).detach())


def icnn(m: nn.Module, x: Tensor) -> Tensor:
    z = m.first(x).relu()
    z = (m.second(z) + m.skip(x)).relu()
    return m.out(z) + m.direct(x)


NETS: dict[str, Net] = {
    "mlp": Net(
        lambda: nn.Sequential(L(5, 8), nn.ReLU(), L(8, 6), nn.Tanh(), L(6, 3)), (X,), "0.*: a .\n2.*: b a\n4.*: . b"
    ),
    "mlp with norms of every kind": Net(
        lambda: nn.Sequential(
            *(L(5, 8), nn.BatchNorm1d(8), nn.ReLU(), L(8, 6), nn.LayerNorm(6), nn.SiLU()),
            *(L(6, 9), nn.RMSNorm(9), nn.GELU(), L(9, 8), nn.GroupNorm(4, 8), nn.PReLU(8), L(8, 3)),
        ),
        (X,),
        """
        0.* 1.*: a .
        3.*: b a
        4.*: b
        6.*: c b
        7.*: c
        9.*: (g:4 i[g]) c
        10.* 11.*: (g i[g])
        12.*: . (g i[g])
        """,
    ),
    "residual mlp": Net(
        lambda: nn.Sequential(L(5, 8), Residual(), Residual(), L(8, 3)),
        (X,),
        """
        0.*: s .
        {i}.norm.*: s
        {i}.up.*: h{i} s
        {i}.down.*: s h{i}
        3.*: . s
        """,
    ),
    "dense connections": Net(
        lambda: Parts(skips, a=L(5, 8), b=L(13, 6), out=L(19, 2)),
        (X,),
        "a.*: one .\nb.*: two 5+one\nout.*: . 5+one+two",
    ),
    "highway": Net(
        lambda: Parts(
            highway,
            inp=L(5, 8),
            layers=nn.ModuleList([L(8, 8), L(8, 8)]),
            gates=nn.ModuleList([L(8, 8), L(8, 8)]),
            out=L(8, 2),
        ),
        (X,),
        "inp.*: s .\nlayers.* gates.*: s s\nout.*: . s",
    ),
    "one layer at every depth": Net(
        lambda: Parts(shared_depth, inp=L(5, 8), cell=L(8, 8), out=L(8, 2)),
        (X,),
        "inp.*: s .\ncell.*: s s\nout.*: . s",
    ),
    "glu": Net(lambda: nn.Sequential(L(5, 16), nn.GLU(), L(8, 3)), (X,), "0.*: h+h .\n2.*: . h"),
    "swiglu": Net(
        lambda: Parts(lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)), gate=L(5, 8), up=L(5, 8), down=L(8, 3)),
        (X,),
        "gate.* up.*: h .\ndown.*: . h",
    ),
    "geglu of a fused layer, interleaved": Net(
        lambda: Parts(lambda m, x: m.down(F.gelu((y := m.up(x))[:, ::2]) * y[:, 1::2]), up=L(5, 16), down=L(8, 3)),
        (X,),
        "up.*: (h 2) .\ndown.*: . h",
    ),
    "halves of a layer that runs twice": Net(
        lambda: Parts(lambda m, x: m.down(m.up(x)[:, :8] * m.up(x.abs())[:, 8:]), up=L(5, 16), down=L(8, 3)),
        (X,),
        "up.*: h+h .\ndown.*: . h",
    ),
    "maxout": Net(
        lambda: Parts(lambda m, x: m.out(m.inp(x).view(-1, 4, 3).amax(-1)), inp=L(5, 12), out=L(4, 2)),
        (X,),
        "inp.*: (h p[h]) .\nout.*: . h",
    ),
    "autoencoder with tied weights": Net(
        lambda: Parts(
            lambda m, x: F.linear(m.two(m.one(x).relu()).relu() @ m.two.weight, m.one.weight.T, m.bias),
            one=L(5, 8),
            two=L(8, 4),
            bias=parameter(5),
        ),
        (X,),
        "one.*: a .\ntwo.*: b a",
    ),
    "siamese": Net(
        lambda: Parts(
            lambda m, x, y: m.out((m.f(x) - m.f(y)).abs()), f=nn.Sequential(L(5, 8), nn.ReLU(), L(8, 6)), out=L(6, 2)
        ),
        (X, X.flip(0)),
        "f.0.*: h .\nf.2.*: e h\nout.*: . e",
    ),
    "two towers that meet in a product": Net(
        lambda: Parts(
            lambda m, x, y: F.normalize(m.a(x), dim=-1) @ F.normalize(m.b(y), dim=-1).T, a=L(5, 8), b=L(3, 8)
        ),
        (X, X[:, :3]),
        "a.* b.*: e .",
    ),
    "two inputs, three outputs": Net(
        lambda: Parts(
            lambda m, x, y: (m.one(h := torch.cat([m.a(x), m.b(y)], 1).relu()), {"two": m.two(h), "three": m.three(h)}),
            a=L(5, 8),
            b=L(3, 6),
            one=L(14, 2),
            two=L(14, 3),
            three=L(14, 1),
        ),
        (X, X[:, :3]),
        "a.*: a .\nb.*: b .\none.* two.* three.*: . a+b",
    ),
    "deep sets": Net(
        lambda: Parts(
            lambda m, x: m.rho(m.phi(x).sum(1)),
            phi=nn.Sequential(L(3, 8), nn.ReLU(), L(8, 6)),
            rho=nn.Sequential(L(6, 7), nn.ReLU(), L(7, 2)),
        ),
        (ROWS,),
        "phi.0.*: a .\nphi.2.*: b a\nrho.0.*: c b\nrho.2.*: . c",
    ),
    "point net": Net(
        lambda: Parts(
            point_net,
            tall=L(3, 8),
            turn=L(8, 9),
            points=nn.Sequential(L(3, 6), nn.ReLU(), L(6, 10)),
            head=L(10, 2),
        ),
        (ROWS,),
        # The columns of the matrix that turns the points are the inputs of the layer behind it.
        "tall.*: t .\nturn.*: (3 p) t\npoints.0.*: a p\npoints.2.*: b a\nhead.*: . b",
    ),
    "siren": Net(
        lambda: Parts(
            lambda m, x: m.out(torch.sin(30 * m.two(torch.sin(30 * m.one(x))))), one=L(2, 8), two=L(8, 6), out=L(6, 1)
        ),
        (X[:, :2],),
        "one.*: a .\ntwo.*: b a\nout.*: . b",
    ),
    "Fourier features": Net(
        lambda: Parts(
            lambda m, x: m.net(torch.cat([(x @ m.waves).sin(), (x @ m.waves).cos()], 1)),
            waves=torch.randn(5, 4),
            net=nn.Sequential(L(8, 6), nn.ReLU(), L(6, 1)),
        ),
        (X,),
        "waves: . f\nnet.0.*: h f+f\nnet.2.*: . h",
    ),
    "radiance field": Net(
        lambda: Parts(
            lambda m, x, d: (
                m.density(h := m.two(torch.cat([x, m.one(x).relu()], 1)).relu()),
                m.colour(m.late(torch.cat([m.feature(h), d], 1)).relu()).sigmoid(),
            ),
            one=L(5, 8),
            two=L(13, 8),
            density=L(8, 1),
            feature=L(8, 6),
            late=L(9, 4),
            colour=L(4, 3),
        ),
        (X, X[:, :3]),
        """
        one.*: a .
        two.*: b 5+a
        density.*: . b
        feature.*: f b
        late.*: c f+3
        colour.*: . c
        """,
    ),
    "spectral norm": Net(
        lambda: nn.Sequential(
            L(5, 8),
            nn.ReLU(),
            parametrizations.spectral_norm(L(8, 6)),
            nn.ReLU(),
            parametrizations.spectral_norm(L(6, 2)),
        ),
        (X,),
        """
        0.*: a .
        2.bias 2.parametrizations.weight.0._u: b
        2.parametrizations.weight.0._v: a
        2.parametrizations.weight.original: b a
        4.parametrizations.weight.0._v: b
        4.parametrizations.weight.original: . b
        """,
    ),
    "weight norm": Net(
        lambda: nn.Sequential(parametrizations.weight_norm(L(5, 8)), nn.ReLU(), parametrizations.weight_norm(L(8, 2))),
        (X,),
        "0.*: h .\n2.parametrizations.weight.original1: . h",
    ),
    "coupling of a flow": Net(
        lambda: Parts(
            coupling,
            s=nn.Sequential(L(2, 8), nn.ReLU(), L(8, 3)),
            t=nn.Sequential(L(2, 6), nn.ReLU(), L(6, 3)),
        ),
        (X,),
        "s.0.*: a .\ns.2.*: . a\nt.0.*: b .\nt.2.*: . b",
    ),
    "variational autoencoder": Net(
        lambda: Parts(
            lambda m, x: (
                m.decode((mean := m.mean(h := m.encode(x))) + 0.1 * (spread := m.spread(h)).exp()),
                (mean.pow(2) + spread.exp() - spread).sum(),
            ),
            encode=nn.Sequential(L(5, 8), nn.ReLU()),
            mean=L(8, 4),
            spread=L(8, 4),
            decode=nn.Sequential(L(4, 6), nn.ReLU(), L(6, 5)),
        ),
        (X,),
        "encode.*: h .\nmean.* spread.*: z h\ndecode.0.*: d z\ndecode.2.*: . d",
    ),
    "code book": Net(
        lambda: Parts(codes, encode=L(5, 4), book=parameter(7, 4), decode=L(4, 5)),
        (X,),
        "encode.*: e .\nbook: code e\ndecode.*: . e",
    ),
    "radial basis functions": Net(
        lambda: Parts(
            lambda m, x: m.out(torch.exp(-torch.cdist(x, m.centres).pow(2) * m.widths)),
            centres=parameter(8, 5),
            widths=parameter(8),
            out=L(8, 2),
        ),
        (X,),
        "centres: h .\nwidths: h\nout.*: . h",
    ),
    "convex in its input": Net(
        lambda: Parts(icnn, first=L(5, 8), second=L(8, 6), skip=L(5, 6, bias=False), out=L(6, 1), direct=L(5, 1)),
        (X,),
        "first.*: a .\nsecond.*: b a\nskip.*: b .\nout.*: . b",
    ),
}
