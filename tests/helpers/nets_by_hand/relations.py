"""Nets on graphs, on tables of embeddings, and on pairs of things."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers.nets_by_hand.net import Net, parameter
from helpers.trace_models import Parts

NODES = torch.linspace(-1, 1, 30).reshape(6, 5).sin()
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
KINDS = torch.tensor([0, 1, 2, 0, 1, 2, 1, 0])
FEATURES = torch.linspace(-1, 1, 24).reshape(8, 3).cos()
FIELDS = torch.arange(9).reshape(3, 3) % 7
DENSE = torch.linspace(-1, 1, 12).reshape(3, 4).sin()
L = nn.Linear


def gathered(x: Tensor, messages: Tensor, edges: Tensor) -> Tensor:
    """Sum messages at the ends of their edges."""
    return torch.zeros(len(x), messages.shape[1], dtype=x.dtype).index_add(0, edges[1], messages)


def convolved(m: nn.Module, x: Tensor, edges: Tensor) -> Tensor:
    degree = torch.ones(len(x), dtype=x.dtype).index_add(0, edges[1], torch.ones(edges.shape[1], dtype=x.dtype))
    for layer in (m.one, m.two):
        x = layer(x)
        x = ((x + gathered(x, x[edges[0]], edges)) / degree[:, None]).relu()
    return m.out(x.mean(0))


def isomorphic(m: nn.Module, x: Tensor, edges: Tensor) -> Tensor:
    x = m.inp(x)
    for layer in m.layers:
        x = layer(x + gathered(x, x[edges[0]], edges))
    return m.out(x.sum(0))


def attentive(m: nn.Module, x: Tensor, edges: Tensor) -> Tensor:
    h = m.inp(x).view(-1, 3, 4)
    score = (h * m.left).sum(-1)[edges[0]] + (h * m.right).sum(-1)[edges[1]]
    weight = F.leaky_relu(score, 0.2).exp()
    total = gathered(x, weight, edges)
    y = gathered(x, (weight[..., None] * h[edges[0]]).flatten(1), edges)
    return m.out(F.elu((y.view(-1, 3, 4) / (total[..., None] + 1e-9)).flatten(1)))


def sampled(m: nn.Module, x: Tensor, edges: Tensor) -> Tensor:
    y = m.inp(x).relu()
    far = torch.zeros_like(y).scatter_reduce(0, edges[1][:, None].expand(-1, 8), y[edges[0]], "amax")
    return m.out(m.both(torch.cat([y, far], 1)).relu())


def passing(m: nn.Module, x: Tensor, edges: Tensor, features: Tensor) -> Tensor:
    x = m.inp(x)
    for _ in range(2):
        weight = m.edge2(m.edge1(features).relu()).view(-1, 6, 6)
        messages = torch.bmm(weight, x[edges[0]][:, :, None])[:, :, 0]
        x = m.cell(gathered(x, messages, edges), x)
    return m.out(x.sum(0))


def many_kinds(m: nn.Module, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
    weight = torch.einsum("kb,bio->kio", m.shares, m.bases)
    messages = torch.einsum("ei,eio->eo", m.inp(x)[edges[0]], weight[kinds])
    return m.out(gathered(x, messages, edges).relu())


def equivariant(m: nn.Module, x: Tensor, edges: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    x = m.inp(x)
    gap = place[edges[0]] - place[edges[1]]
    pair = torch.cat([x[edges[1]], x[edges[0]], gap.square().sum(1, keepdim=True)], 1)
    message = F.silu(m.edge(pair))
    place = place + gathered(place, gap * m.move(message), edges)
    x = x + m.node(torch.cat([x, gathered(x, message, edges)], 1))
    return m.out(x), place


def interactions(m: nn.Module, dense: Tensor, fields: Tensor) -> Tensor:
    x = m.bottom(dense).relu()
    all_of = torch.stack([x, *(bag(fields[:, [i]]) for i, bag in enumerate(m.bags))], 1)
    pairs = (all_of @ all_of.mT)[:, [1, 2, 2, 3, 3, 3], [0, 0, 1, 0, 1, 2]]
    return m.top(torch.cat([x, pairs], 1))


def factorised(m: nn.Module, fields: Tensor) -> Tensor:
    each = m.words(fields)
    pairs = 0.5 * (each.sum(1).square() - each.square().sum(1)).sum(1, keepdim=True)
    return m.first(fields).sum(1) + pairs + m.deep(each.flatten(1))


def crossed(m: nn.Module, x: Tensor) -> Tensor:
    start = x = m.inp(x)
    for layer in m.layers:
        x = start * layer(x) + x
    return m.out(x)


def clusters(m: nn.Module, x: Tensor) -> Tensor:
    y = m.inp(x)
    shares = m.assign(y).softmax(-1)
    sums = torch.einsum("bnk,bnd->bkd", shares, y) - shares.sum(1)[..., None] * m.centres
    return m.out(F.normalize(sums, dim=-1).flatten(1))


def slots(m: nn.Module, x: Tensor) -> Tensor:
    x = m.norm(m.inp(x))
    z = m.start.expand(len(x), -1, -1)
    for _ in range(2):
        shares = (m.k(x) @ m.q(z).mT).softmax(-1)
        z = z + m.mix((shares / shares.sum(1, keepdim=True)).mT @ m.v(x))
    return m.out(z.sum(1))


def process(m: nn.Module, x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    seen = m.encode(torch.cat([x, y], -1)).mean(1, keepdim=True).expand(-1, at.shape[1], -1)
    return m.decode(torch.cat([seen, at], -1))


NETS: dict[str, Net] = {
    "graph convolution": Net(
        lambda: Parts(convolved, one=L(5, 8), two=L(8, 6), out=L(6, 2)),
        (NODES, EDGES),
        "one.*: a .\ntwo.*: b a\nout.*: . b",
    ),
    "graph isomorphism": Net(
        lambda: Parts(
            isomorphic,
            inp=L(5, 6),
            layers=nn.ModuleList(nn.Sequential(L(6, 8), nn.BatchNorm1d(8), nn.ReLU(), L(8, 6)) for _ in range(2)),
            out=L(6, 2),
        ),
        (NODES, EDGES),
        """
        inp.*: x .
        layers.0.0.*: a x
        layers.0.1.*: a
        layers.0.3.*: y a
        layers.1.0.*: b y
        layers.1.1.*: b
        layers.1.3.*: z b
        out.*: . z
        """,
    ),
    "graph attention": Net(
        lambda: Parts(attentive, inp=L(5, 12), left=parameter(3, 4), right=parameter(3, 4), out=L(12, 2)),
        (NODES, EDGES),
        "inp.*: (h u[h]) .\nleft right: h u[h]\nout.*: . (h u[h])",
    ),
    "sampling of neighbours": Net(
        lambda: Parts(sampled, inp=L(5, 8), both=L(16, 6), out=L(6, 2)),
        (NODES, EDGES),
        "inp.*: a .\nboth.*: b a+a\nout.*: . b",
    ),
    "messages through matrices of edges": Net(
        lambda: Parts(passing, inp=L(5, 6), edge1=L(3, 7), edge2=L(7, 36), cell=nn.GRUCell(6, 6), out=L(6, 2)),
        (NODES, EDGES, FEATURES),
        # The cell takes messages, whose units are their own, and gives back the state.
        """
        inp.*: s .
        edge1.*: e .
        edge2.*: (m:6 s) e
        cell.weight_ih: s+s+s m
        cell.weight_hh: s+s+s s
        cell.bias_*: s+s+s
        out.*: . s
        """,
    ),
    "kinds of relations, of few bases": Net(
        lambda: Parts(many_kinds, inp=L(5, 6), shares=parameter(3, 4), bases=parameter(4, 6, 8), out=L(8, 2)),
        (NODES, EDGES, KINDS),
        "inp.*: a .\nshares: . k\nbases: k a b\nout.*: . b",
    ),
    "messages that move nodes": Net(
        lambda: Parts(
            equivariant,
            inp=L(5, 6),
            edge=L(13, 8),
            move=nn.Sequential(L(8, 7), nn.SiLU(), L(7, 1)),
            node=nn.Sequential(L(14, 9), nn.SiLU(), L(9, 6)),
            out=L(6, 2),
        ),
        (NODES, EDGES, FEATURES[:6]),
        """
        inp.*: s .
        edge.*: m s+s+1
        move.0.*: a m
        move.2.*: . a
        node.0.*: b s+m
        node.2.*: s b
        out.*: . s
        """,
    ),
    "interactions of embeddings": Net(
        lambda: Parts(
            interactions,
            bottom=L(4, 6),
            bags=nn.ModuleList(nn.EmbeddingBag(7, 6, mode="sum") for _ in range(3)),
            top=nn.Sequential(L(12, 8), nn.ReLU(), L(8, 1)),
        ),
        (DENSE, FIELDS),
        "bottom.*: e .\nbags.*: . e\ntop.0.*: h e+6\ntop.2.*: . h",
    ),
    "factorisation machine with a deep part": Net(
        lambda: Parts(
            factorised,
            words=nn.Embedding(7, 4),
            first=nn.Embedding(7, 1),
            deep=nn.Sequential(L(12, 8), nn.ReLU(), L(8, 1)),
        ),
        (FIELDS,),
        "words.*: . e\ndeep.0.*: h (3 e)\ndeep.2.*: . h",
    ),
    "factors of users and items": Net(
        lambda: Parts(
            lambda m, u, i: (m.users(u) * m.items(i)).sum(1) + m.user(u)[:, 0] + m.item(i)[:, 0],
            users=nn.Embedding(7, 6),
            items=nn.Embedding(9, 6),
            user=nn.Embedding(7, 1),
            item=nn.Embedding(9, 1),
        ),
        (FIELDS[0], FIELDS[1]),
        "users.* items.*: . f",
    ),
    "crosses of features": Net(
        lambda: Parts(crossed, inp=L(4, 6), layers=nn.ModuleList([L(6, 6), L(6, 6)]), out=L(6, 1)),
        (DENSE,),
        "inp.*: s .\nlayers.*: s s\nout.*: . s",
    ),
    "bags of words with weights": Net(
        lambda: Parts(
            lambda m, x, w: m.out(m.bag(x, per_sample_weights=w).tanh()),
            bag=nn.EmbeddingBag(7, 6, mode="sum"),
            out=L(6, 2),
        ),
        (FIELDS, DENSE[:, :3]),
        "bag.*: . e\nout.*: . e",
    ),
    "distances to clusters": Net(
        lambda: Parts(clusters, inp=L(5, 4), assign=L(4, 3), centres=parameter(3, 4), out=L(12, 2)),
        (NODES[None],),
        "inp.*: d .\nassign.*: k d\ncentres: k d\nout.*: . (k d)",
    ),
    "slots": Net(
        lambda: Parts(
            slots,
            inp=L(5, 8),
            norm=nn.LayerNorm(8),
            start=parameter(4, 6),
            q=L(6, 5),
            k=L(8, 5),
            v=L(8, 7),
            mix=nn.Sequential(L(7, 9), nn.ReLU(), L(9, 6)),
            out=L(6, 2),
        ),
        (NODES[None],),
        """
        inp.*: s .
        norm.*: s
        start: slot z
        q.*: k z
        k.*: k s
        v.*: v s
        mix.0.*: h v
        mix.2.*: z h
        out.*: . z
        """,
    ),
    "neural process": Net(
        lambda: Parts(
            process,
            encode=nn.Sequential(L(3, 8), nn.ReLU(), L(8, 6)),
            decode=nn.Sequential(L(8, 7), nn.ReLU(), L(7, 2)),
        ),
        (FEATURES[None, :, :2], FEATURES[None, :, 2:], FEATURES[None, :5, 1:]),
        "encode.0.*: a .\nencode.2.*: r a\ndecode.0.*: b r+2\ndecode.2.*: . b",
    ),
}
