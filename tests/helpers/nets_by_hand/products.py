"""Products of weights and of features: adapters, experts, capsules, tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers.nets_by_hand.dense import ROWS, X
from helpers.nets_by_hand.net import Net, parameter
from helpers.trace_models import Parts

L = nn.Linear


def hyper(m: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    weight = m.rows(m.hidden(z).relu()).view(-1, 6, 5)
    return m.out(torch.bmm(weight, x[:, :, None])[:, :, 0].tanh())


def film(m: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    scale, shift = m.film(z).chunk(2, -1)
    return m.out((m.inp(x) * (1 + scale) + shift).relu())


def soft_experts(m: nn.Module, x: Tensor) -> Tensor:
    shares = m.gate(x).softmax(-1)
    return sum((shares[:, [i]] * expert(x) for i, expert in enumerate(m.experts)), torch.zeros(()))


def stacked_experts(m: nn.Module, x: Tensor) -> Tensor:
    h = torch.einsum("bi,eih->ebh", x, m.up).add(m.bias[:, None]).relu()
    return torch.einsum("ebh,eho,be->bo", h, m.down, m.gate(x).softmax(-1))


def many_gates(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    h = torch.einsum("bi,eih->beh", x, m.experts).relu()
    mixed = (torch.einsum("beh,be->bh", h, gate(x).softmax(-1)) for gate in m.gates)
    return tuple(tower(y) for tower, y in zip(m.towers, mixed, strict=True))


def capsules(m: nn.Module, x: Tensor) -> Tensor:
    def squash(s: Tensor) -> Tensor:
        norm = s.pow(2).sum(-1, keepdim=True)
        return s * norm.sqrt() / (1 + norm)

    votes = torch.einsum("iojd,bid->bioj", m.vote, squash(m.lower(x).view(-1, 4, 3)))
    routes = torch.zeros(votes.shape[:3], dtype=votes.dtype)
    for _ in range(2):
        upper = squash((routes.softmax(2)[..., None] * votes).sum(1))
        routes = routes + (votes * upper[:, None]).sum(-1)
    return upper.norm(dim=-1)


def low_rank_sum(m: nn.Module, x: Tensor) -> Tensor:
    return m.out(F.linear(x, m.base.weight + 0.5 * m.up @ m.down, m.base.bias).relu())


NETS: dict[str, Net] = {
    "weights made by a net": Net(
        lambda: Parts(hyper, hidden=L(3, 8), rows=L(8, 30), out=L(6, 2)),
        (X, X[:, :3]),
        "hidden.*: h .\nrows.*: (u 5) h\nout.*: . u",
    ),
    "film": Net(
        lambda: Parts(film, inp=L(5, 8), film=L(3, 16), out=L(8, 2)),
        (X, X[:, :3]),
        "inp.*: h .\nfilm.*: h+h .\nout.*: . h",
    ),
    "adapter of low rank": Net(
        lambda: Parts(
            lambda m, x: m.out((m.base(x) + m.b(m.a(x))).relu()),
            base=L(5, 8),
            a=L(5, 3, bias=False),
            b=L(3, 8, bias=False),
            out=L(8, 2),
        ),
        (X,),
        "base.*: h .\na.*: r .\nb.*: h r\nout.*: . h",
    ),
    "adapter of low rank, merged": Net(
        lambda: Parts(low_rank_sum, base=L(5, 8), up=parameter(8, 3), down=parameter(3, 5), out=L(8, 2)),
        (X,),
        "base.*: h .\nup: h r\ndown: r .\nout.*: . h",
    ),
    "experts with hidden layers": Net(
        lambda: Parts(
            soft_experts,
            gate=L(5, 3),
            experts=nn.ModuleList(nn.Sequential(L(5, 6), nn.ReLU(), L(6, 2)) for _ in range(3)),
        ),
        (X,),
        "experts.{i}.0.*: h{i} .\nexperts.{i}.2.*: . h{i}",
    ),
    "experts in one tensor": Net(
        lambda: Parts(
            stacked_experts, gate=L(5, 4), up=parameter(4, 5, 6), bias=parameter(4, 6), down=parameter(4, 6, 2)
        ),
        (X,),
        "gate.*: e .\nup: e . h[e]\nbias: e h[e]\ndown: e h[e] .",
    ),
    "experts with a gate for each task": Net(
        lambda: Parts(
            many_gates,
            experts=parameter(4, 5, 6),
            gates=nn.ModuleList([L(5, 4), L(5, 4)]),
            towers=nn.ModuleList(nn.Sequential(L(6, 7), nn.ReLU(), L(7, 1)) for _ in range(2)),
        ),
        (X,),
        # The mixture sums units of all experts at one place, so that all experts have one order.
        "experts: e . h\ngates.*: e .\ntowers.{i}.0.*: t{i} h\ntowers.{i}.2.*: . t{i}",
    ),
    "capsules": Net(
        lambda: Parts(capsules, lower=L(5, 12), vote=parameter(4, 2, 5, 3)),
        (X,),
        "lower.*: (c:4 d[c]) .\nvote: c =upper pose[upper] d[c]",
    ),
    "a bilinear layer": Net(
        lambda: Parts(
            lambda m, x: m.out(m.two(m.a(x), m.b(x)).tanh()),
            a=L(5, 4),
            b=L(5, 6),
            two=nn.Bilinear(4, 6, 8),
            out=L(8, 2),
        ),
        (X,),
        "a.*: a .\nb.*: b .\ntwo.*: h a b\nout.*: . h",
    ),
    "factors of a polyadic form": Net(
        lambda: Parts(
            lambda m, x: torch.einsum("bi,ir,bj,jr,ro->bo", x, m.a, x, m.b, m.c),
            a=parameter(5, 6),
            b=parameter(5, 6),
            c=parameter(6, 2),
        ),
        (X,),
        "a b: . r\nc: r .",
    ),
    "a train of tensors": Net(
        lambda: Parts(
            lambda m, x: torch.einsum("bxy,xpr,rypqs,sq->bpq", x.view(-1, 2, 3), m.a, m.b, m.c),
            a=parameter(2, 4, 3),
            b=parameter(3, 3, 4, 5, 2),
            c=parameter(2, 5),
        ),
        (ROWS[0],),
        "a: . . r\nb: r . . . s\nc: s .",
    ),
    "a tensor between embeddings": Net(
        lambda: Parts(
            lambda m, i, j: m.out(
                (torch.einsum("bd,kde,be->bk", m.e(i), m.w, m.e(j)) + m.v(torch.cat([m.e(i), m.e(j)], 1))).tanh()
            ),
            e=nn.Embedding(9, 4),
            w=parameter(3, 4, 4),
            v=L(8, 3),
            out=L(3, 1),
        ),
        (torch.tensor([0, 3, 5]), torch.tensor([1, 2, 8])),
        "e.*: . d\nw: k d d\nv.*: k d+d\nout.*: . k",
    ),
}
