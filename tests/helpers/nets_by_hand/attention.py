"""Attention of every kind."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers.nets_by_hand.net import Net, parameter
from helpers.trace_models import Parts

ROWS = torch.linspace(-1, 1, 60).reshape(2, 6, 5).sin()
OTHERS = torch.linspace(-1, 1, 24).reshape(2, 4, 3).cos()
IDS = torch.arange(12).reshape(2, 6) % 11
L = nn.Linear
HEADS, SIZE, WIDTH = 3, 4, 12


def split(x: Tensor, heads: int = HEADS) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(-3, -2).flatten(-2)


def turned(x: Tensor, part: int = SIZE) -> Tensor:
    """Rotate the first units of queries or keys by angles that grow with the position."""
    x, rest = x[..., :part], x[..., part:]
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * 10.0 ** -torch.arange(part // 2, dtype=x.dtype)
    one, two = x.chunk(2, -1)
    both = torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1)
    return torch.cat([both, rest], -1)


def projections(width: int = WIDTH, kv: int = WIDTH, inp: int = 5) -> dict[str, nn.Module]:
    return {
        "inp": L(inp, width),
        "q": L(width, WIDTH),
        "k": L(width, kv),
        "v": L(width, kv),
        "o": L(WIDTH, width),
        "out": L(width, 2),
    }


SEPARATE = """
    inp.*: s .
    q.* k.*: (h:3 qk[h]) s
    v.*: (h v[h]) s
    o.*: s (h v[h])
    out.*: . s
"""


def plain(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    y = F.scaled_dot_product_attention(split(m.q(x)), split(m.k(x)), split(m.v(x)))
    return m.out(x + m.o(joined(y)))


def causal_by_hand(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    scores = split(m.q(x)) @ split(m.k(x)).mT / SIZE**0.5
    past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    return m.out(x + m.o(joined(scores.masked_fill(~past, -1e9).softmax(-1) @ split(m.v(x)))))


def fused(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    q, k, v = m.qkv(x).unflatten(-1, (3, HEADS, SIZE)).unbind(-3)
    y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    return m.out(x + m.o(joined(y)))


def fused_by_heads(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    q, k, v = split(m.qkv(x)).chunk(3, -1)
    return m.out(x + m.o(joined(F.scaled_dot_product_attention(q, k, v))))


def grouped(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    k, v = (split(f(x), 2).repeat_interleave(2, 1) for f in (m.k, m.v))
    return m.out(x + m.o(joined(F.scaled_dot_product_attention(split(m.q(x), 4), k, v))))


def one_key(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    scores = torch.einsum("bhnd,bmd->bhnm", split(m.q(x)), m.k(x)) / SIZE**0.5
    return m.out(x + m.o(joined(torch.einsum("bhnm,bmd->bhnd", scores.softmax(-1), m.v(x)))))


def one_key_for_every_sample(m: nn.Module, x: Tensor) -> Tensor:
    """The key and value meet all heads by broadcasting, which torch does by folding samples and heads together."""
    x = m.inp(x)
    k, v = m.k(x)[:, None], m.v(x)[:, None]
    return m.out(x + m.o(joined((split(m.q(x)) @ k.mT).softmax(-1) @ v)))


def slopes(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    places = torch.arange(x.shape[1], dtype=x.dtype)
    bias = -(places[:, None] - places).abs() * torch.tensor([0.5, 0.25, 0.125], dtype=x.dtype)[:, None, None]
    y = (split(m.q(x)) @ split(m.k(x)).mT + bias).softmax(-1) @ split(m.v(x))
    return m.out(x + m.o(joined(y)))


def rotary(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    y = F.scaled_dot_product_attention(turned(split(m.q(x))), turned(split(m.k(x))), split(m.v(x)))
    return m.out(x + m.o(joined(y)))


def partly_rotary(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    q, k = (turned(norm(split(f(x), 2)), 2) for norm, f in ((m.q_norm, m.q), (m.k_norm, m.k)))
    return m.out(x + m.o(joined(F.scaled_dot_product_attention(q, k, split(m.v(x), 2)))))


def relative(m: nn.Module, x: Tensor) -> Tensor:
    x, n = m.inp(x), x.shape[1]
    distance = (torch.arange(n)[:, None] - torch.arange(n)).clamp(-4, 4) + 4
    scores = split(m.q(x)) @ split(m.k(x)).mT + m.bias(distance).permute(2, 0, 1)
    return m.out(x + m.o(joined(scores.softmax(-1) @ split(m.v(x)))))


def shared_bias(m: nn.Module, ids: Tensor) -> Tensor:
    x, n = m.words(ids), ids.shape[1]
    bias = m.bias((torch.arange(n)[:, None] - torch.arange(n)).clamp(-3, 3) + 3).permute(2, 0, 1)
    for p in m.layers:
        y = p["norm"](x)
        scores = split(p["q"](y)) @ split(p["k"](y)).mT + bias
        x = x + p["o"](joined(scores.softmax(-1) @ split(p["v"](y))))
    return x @ m.words.weight.T


def cross(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x, y = m.inp(x), m.other(y)
    z = F.scaled_dot_product_attention(split(m.q(x)), split(m.k(y)), split(m.v(y)))
    return m.out(x + m.o(joined(z)))


def linear_attention(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    q, k = (F.elu(split(f(x))) + 1 for f in (m.q, m.k))
    state = k.mT @ split(m.v(x))
    y = q @ state / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
    return m.out(x + m.o(joined(y)))


def talking(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    scores = torch.einsum("bhnm,gh->bgnm", split(m.q(x)) @ split(m.k(x)).mT, m.before).softmax(-1)
    scores = torch.einsum("bgnm,fg->bfnm", scores, m.after)
    return m.out(x + m.o(joined(scores @ split(m.v(x), 4))))


def latent(m: nn.Module, x: Tensor) -> Tensor:
    """Keys and values from a narrow state; a part of the keys has positions and is common to all heads."""
    x = m.inp(x)
    low = m.norm(m.low(x))
    k, v = split(m.kv(low)).split([SIZE, SIZE], -1)
    q, place = split(m.q(x)).split([SIZE, 2], -1)
    turn = turned(m.place(x)[:, None], 2).expand(-1, HEADS, -1, -1)
    y = F.scaled_dot_product_attention(torch.cat([q, turned(place, 2)], -1), torch.cat([k, turn], -1), v)
    return m.out(x + m.o(joined(y)))


def common_part(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    q, place = split(m.q(x)).split([SIZE, 2], -1)
    scores = q @ split(m.k(x)).mT + place @ m.place(x)[:, None].mT
    return m.out(x + m.o(joined(scores.softmax(-1) @ split(m.v(x)))))


def pooled(m: nn.Module, x: Tensor) -> Tensor:
    h = m.inp(x).relu()
    shares = m.score(m.a(h).tanh() * m.b(h).sigmoid()).softmax(1)
    return m.out((shares * h).sum(1))


def memory(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    return m.out(x + (m.q(x) @ m.keys.T).softmax(-1) @ m.values)


def perceiver(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    z = m.latents.expand(len(x), -1, -1)
    z = z + m.o(F.scaled_dot_product_attention(m.q(z), m.k(x), m.v(x)))
    return m.out(z.mean(1))


NETS: dict[str, Net] = {
    "attention": Net(lambda: Parts(plain, **projections()), (ROWS,), SEPARATE),
    "attention by hand, causal": Net(lambda: Parts(causal_by_hand, **projections()), (ROWS,), SEPARATE),
    "attention, queries and keys and values fused": Net(
        lambda: Parts(fused, inp=L(5, 12), qkv=L(12, 36), o=L(12, 12), out=L(12, 2)),
        (ROWS,),
        """
        inp.*: s .
        qkv.*: (h:3 qk[h])+(h qk[h])+(h v[h]) s
        o.*: s (h v[h])
        out.*: . s
        """,
    ),
    "attention, fused head by head": Net(
        lambda: Parts(fused_by_heads, inp=L(5, 12), qkv=L(12, 36), o=L(12, 12), out=L(12, 2)),
        (ROWS,),
        "inp.*: s .\nqkv.*: (h:3 (qk[h]+qk[h]+v[h])) s\no.*: s (h v[h])\nout.*: . s",
    ),
    "torch's attention": Net(
        lambda: Parts(
            lambda m, x: m.out((y := m.inp(x)) + m.heads(y, y, y)[0]),
            inp=L(5, 12),
            heads=nn.MultiheadAttention(12, 3, batch_first=True),
            out=L(12, 2),
        ),
        (ROWS,),
        """
        inp.*: s .
        heads.in_proj_*: (h:3 qk[h])+(h qk[h])+(h v[h]) s
        heads.out_proj.*: s (h v[h])
        out.*: . s
        """,
    ),
    "torch's attention between other widths": Net(
        lambda: Parts(
            lambda m, x, y: m.out(m.heads(m.inp(x), y, y, need_weights=False)[0]),
            inp=L(5, 12),
            heads=nn.MultiheadAttention(12, 3, kdim=3, vdim=3, add_bias_kv=True, batch_first=True),
            out=L(12, 2),
        ),
        (ROWS, OTHERS),
        """
        inp.*: s .
        heads.q_proj_weight: (h:3 qk[h]) s
        heads.k_proj_weight: (h qk[h])
        heads.v_proj_weight: (h v[h])
        heads.in_proj_bias: (h qk[h])+(h qk[h])+(h v[h])
        heads.bias_k: . . (h qk[h])
        heads.bias_v: . . (h v[h])
        heads.out_proj.*: e (h v[h])
        out.*: . e
        """,
    ),
    "grouped queries": Net(
        lambda: Parts(grouped, inp=L(5, 12), q=L(12, 16), k=L(12, 8), v=L(12, 8), o=L(16, 12), out=L(12, 2)),
        (ROWS,),
        """
        inp.*: s .
        q.*: (kv:2 g[kv]:2 qk[kv]) s
        k.*: (kv qk[kv]) s
        v.*: (kv v[kv]) s
        o.*: s (kv g[kv] v[kv])
        out.*: . s
        """,
    ),
    "one key and value for all queries": Net(
        lambda: Parts(one_key, **projections(kv=SIZE)),
        (ROWS,),
        "inp.*: s .\nq.*: (h:3 qk) s\nk.*: qk s\nv.*: v s\no.*: s (h v)\nout.*: . s",
    ),
    "one key and value, broadcast": Net(
        lambda: Parts(one_key_for_every_sample, **projections(kv=SIZE)),
        (ROWS,),
        "inp.*: s .\nq.*: (h:3 qk) s\nk.*: qk s\nv.*: v s\no.*: s (h v)\nout.*: . s",
    ),
    "slopes tell heads apart": Net(
        lambda: Parts(slopes, **projections()),
        (ROWS,),
        """
        inp.*: s .
        q.* k.*: a:4+b:4+c:4 s
        v.*: d:4+e:4+f:4 s
        o.*: s d+e+f
        out.*: . s
        """,
    ),
    "rotary positions": Net(
        lambda: Parts(rotary, **projections()),
        (ROWS,),
        "inp.*: s .\nq.* k.*: (h:3 4) s\nv.*: (h v[h]) s\no.*: s (h v[h])\nout.*: . s",
    ),
    "rotary positions in a part, norms of queries and keys": Net(
        lambda: Parts(partly_rotary, **projections(), q_norm=nn.RMSNorm(6), k_norm=nn.RMSNorm(6)),
        (ROWS,),
        """
        inp.*: s .
        q.* k.*: (h:2 (2+qk)) s
        q_norm.* k_norm.*: 2+qk
        v.*: (h v[h]) s
        o.*: s (h v[h])
        out.*: . s
        """,
    ),
    "a bias for each distance": Net(
        lambda: Parts(relative, **projections(), bias=nn.Embedding(9, HEADS)),
        (ROWS,),
        SEPARATE + "bias.weight: . h",
    ),
    "a bias for each distance in all layers": Net(
        lambda: Parts(
            shared_bias,
            words=nn.Embedding(11, 12),
            bias=nn.Embedding(7, HEADS),
            layers=nn.ModuleList(
                nn.ModuleDict({"norm": nn.RMSNorm(12), **{n: L(12, 12, bias=False) for n in "qkvo"}}) for _ in range(2)
            ),
        ),
        (IDS,),
        """
        words.*: . s
        bias.*: . h
        layers.*.norm.*: s
        layers.{i}.q.* layers.{i}.k.*: (h qk{i}[h]) s
        layers.{i}.v.*: (h v{i}[h]) s
        layers.{i}.o.*: s (h v{i}[h])
        """,
    ),
    "attention to another sequence": Net(
        lambda: Parts(cross, **projections(), other=L(3, 12)),
        (ROWS, OTHERS),
        """
        inp.*: s .
        other.*: t .
        q.*: (h:3 qk[h]) s
        k.*: (h qk[h]) t
        v.*: (h v[h]) t
        o.*: s (h v[h])
        out.*: . s
        """,
    ),
    "attention without softmax": Net(lambda: Parts(linear_attention, **projections()), (ROWS,), SEPARATE),
    "heads that talk": Net(
        lambda: Parts(
            talking, **{**projections(), "v": L(12, 16), "o": L(16, 12)}, before=parameter(5, 3), after=parameter(4, 5)
        ),
        (ROWS,),
        """
        inp.*: s .
        q.* k.*: (h:3 qk[h]) s
        before: m h
        after: g m
        v.*: (g v[g]) s
        o.*: s (g v[g])
        out.*: . s
        """,
    ),
    "keys and values from a narrow state": Net(
        lambda: Parts(
            latent,
            inp=L(5, 12),
            low=L(12, 5),
            norm=nn.RMSNorm(5),
            kv=L(5, 24),
            q=L(12, 18),
            place=L(12, 2),
            o=L(12, 12),
            out=L(12, 2),
        ),
        (ROWS,),
        """
        inp.*: s .
        low.*: c s
        norm.*: c
        kv.*: (h:3 (qk[h]:4+v[h]:4)) c
        q.*: (h (qk[h]+2)) s
        place.*: . s
        o.*: s (h v[h])
        out.*: . s
        """,
    ),
    "a common part of the keys, in a product of its own": Net(
        lambda: Parts(
            common_part, inp=L(5, 12), q=L(12, 18), k=L(12, 12), place=L(12, 2), v=L(12, 12), o=L(12, 12), out=L(12, 2)
        ),
        (ROWS,),
        """
        inp.*: s .
        q.*: (h:3 (qk[h]+p)) s
        k.*: (h qk[h]) s
        place.*: p s
        v.*: (h v[h]) s
        o.*: s (h v[h])
        out.*: . s
        """,
    ),
    "gated pooling": Net(
        lambda: Parts(pooled, inp=L(5, 8), a=L(8, 6), b=L(8, 6), score=L(6, 1), out=L(8, 2)),
        (ROWS,),
        "inp.*: s .\na.* b.*: g s\nscore.*: . g\nout.*: . s",
    ),
    "learned memory": Net(
        lambda: Parts(memory, inp=L(5, 8), q=L(8, 4), keys=parameter(7, 4), values=parameter(7, 8), out=L(8, 2)),
        (ROWS,),
        "inp.*: s .\nq.*: k s\nkeys: m k\nvalues: m s\nout.*: . s",
    ),
    "latent queries": Net(
        lambda: Parts(
            perceiver, inp=L(5, 8), latents=parameter(6, 10), q=L(10, 4), k=L(8, 4), v=L(8, 7), o=L(7, 10), out=L(10, 2)
        ),
        (ROWS,),
        "inp.*: s .\nlatents: l z\nq.*: k z\nk.*: k s\nv.*: v s\no.*: z v\nout.*: . z",
    ),
}
