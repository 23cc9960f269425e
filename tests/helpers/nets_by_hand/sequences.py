"""State spaces, mixers, and other ways along a sequence without attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers.nets_by_hand.net import Net, parameter
from helpers.trace_models import Parts

ROWS = torch.linspace(-1, 1, 60).reshape(2, 6, 5).sin()
IDS = torch.arange(14).reshape(2, 7) % 11
FRAMES = torch.linspace(-1, 1, 288).reshape(2, 3, 3, 4, 4).sin()
L = nn.Linear


def diagonal_states(m: nn.Module, x: Tensor) -> Tensor:
    u = m.inp(x)
    decay = torch.exp(-torch.exp(m.rate))
    state, ys = torch.zeros(len(x), *m.rate.shape, dtype=x.dtype), []
    for t in range(x.shape[1]):
        state = decay * state + m.write * u[:, t, :, None]
        ys.append((state * m.read).sum(-1) + m.skip * u[:, t])
    return m.out(F.gelu(torch.stack(ys, 1)))


def long_convolution(m: nn.Module, x: Tensor) -> Tensor:
    u, n = m.inp(x).mT, x.shape[1]
    times = torch.arange(n, dtype=x.dtype)
    kernel = (m.read[..., None] * torch.exp(-m.rate.exp()[..., None] * times)).sum(1)
    y = torch.fft.irfft(torch.fft.rfft(u, 2 * n) * torch.fft.rfft(kernel, 2 * n), 2 * n)[..., :n]
    return m.out(F.gelu(y + m.skip[:, None] * u).mT)


def mamba(m: nn.Module, ids: Tensor) -> Tensor:
    x = m.words(ids)
    u, gate = m.inp(m.norm(x)).chunk(2, -1)
    u = F.silu(m.conv(F.pad(u.mT, (2, 0))).mT)
    step, write, read = m.select(u).split([3, 4, 4], -1)
    step = F.softplus(m.step(step))
    state, ys = torch.zeros(len(x), 12, 4, dtype=x.dtype), []
    for t in range(x.shape[1]):
        decay = torch.exp(-step[:, t, :, None] * m.rate.exp())
        state = decay * state + (step[:, t] * u[:, t])[..., None] * write[:, t, None]
        ys.append((state * read[:, t, None]).sum(-1))
    y = torch.stack(ys, 1) + m.skip * u
    return m.head(m.last(x + m.leave(y * F.silu(gate))))


def rwkv(m: nn.Module, ids: Tensor) -> Tensor:
    def shifted(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, -1))

    x = m.words(ids)
    y = m.norm1(x)
    k, v, r = (y * mix + shifted(y) * (1 - mix) for mix in (m.mix_k, m.mix_v, m.mix_r))
    k, v, r = m.key(k), m.value(v), m.receive(r).sigmoid()
    top = bottom = torch.zeros_like(k[:, 0])
    outs = []
    for t in range(k.shape[1]):
        now = torch.exp(m.bonus + k[:, t])
        outs.append((top + now * v[:, t]) / (bottom + now))
        top = torch.exp(-m.decay.exp()) * top + k[:, t].exp() * v[:, t]
        bottom = torch.exp(-m.decay.exp()) * bottom + k[:, t].exp()
    x = x + m.leave(r * torch.stack(outs, 1))
    y = m.norm2(x)
    k, r = (y * mix + shifted(y) * (1 - mix) for mix in (m.mix_kk, m.mix_rr))
    return m.head(x + m.receive2(r).sigmoid() * m.value2(m.key2(k).relu().square()))


def mixer(m: nn.Module, x: Tensor) -> Tensor:
    x = m.patch(x).flatten(2).mT
    for block in m.blocks:
        x = x + block["places2"](F.gelu(block["places1"](block["norm1"](x).mT))).mT
        x = x + block["units2"](F.gelu(block["units1"](block["norm2"](x))))
    return m.out(x.mean(1))


def mixer_of_convolutions(m: nn.Module, x: Tensor) -> Tensor:
    x = m.patch(x).flatten(2).mT
    x = x + m.places2(F.gelu(m.places1(m.norm(x))))
    return m.out((x + m.units2(F.gelu(m.units1(x.mT))).mT).mean(1))


def stages_together(m: nn.Module, x: Tensor) -> Tensor:
    one = m.one(x)
    both = torch.stack([one.mean((2, 3)), m.two(one.relu()).mean((2, 3))], 1)
    return m.out(m.join(both)[:, 0])


def spatial_gate(m: nn.Module, x: Tensor) -> Tensor:
    x = m.inp(x)
    u, v = F.gelu(m.up(m.norm(x))).chunk(2, -1)
    v = m.places(m.inner(v).mT).mT
    return m.out((x + m.down(u * v)).mean(1))


def fourier_operator(m: nn.Module, x: Tensor) -> Tensor:
    x = m.lift(x)
    waves = torch.fft.rfft(x, dim=-1)[..., :4]
    mixed = torch.einsum("bik,iok->bok", waves, torch.view_as_complex(m.spectrum))
    return m.out(F.gelu(torch.fft.irfft(mixed, x.shape[-1], dim=-1) + m.local(x)))


def global_filter(m: nn.Module, x: Tensor) -> Tensor:
    x = m.patch(x).permute(0, 2, 3, 1)
    waves = torch.fft.rfft2(m.norm(x), dim=(1, 2), norm="ortho") * torch.view_as_complex(m.filters)
    x = x + torch.fft.irfft2(waves, s=x.shape[1:3], dim=(1, 2), norm="ortho")
    return m.out(x.mean((1, 2)))


def flow_in_time(m: nn.Module, x: Tensor) -> Tensor:
    h = m.inp(x)
    for _ in range(3):
        h = h + 0.3 * m.two(m.one(h).tanh())
    return m.out(h)


NETS: dict[str, Net] = {
    "diagonal states": Net(
        lambda: Parts(
            diagonal_states,
            inp=L(5, 6),
            rate=parameter(6, 4),
            write=parameter(6, 4),
            read=parameter(6, 4),
            skip=parameter(6),
            out=L(6, 2),
        ),
        (ROWS,),
        "inp.*: c .\nrate write read: c n[c]\nskip: c\nout.*: . c",
    ),
    "long convolution by Fourier transforms": Net(
        lambda: Parts(
            long_convolution, inp=L(5, 6), rate=parameter(6, 4), read=parameter(6, 4), skip=parameter(6), out=L(6, 2)
        ),
        (ROWS,),
        "inp.*: c .\nrate read: c n[c]\nskip: c\nout.*: . c",
    ),
    "mamba": Net(
        lambda: Parts(
            mamba,
            words=nn.Embedding(11, 6),
            norm=nn.RMSNorm(6),
            inp=L(6, 24, bias=False),
            conv=nn.Conv1d(12, 12, 3, groups=12),
            select=L(12, 11, bias=False),
            step=L(3, 12),
            rate=parameter(12, 4),
            skip=parameter(12),
            leave=L(12, 6, bias=False),
            last=nn.RMSNorm(6),
            head=L(6, 11, bias=False),
        ),
        (IDS,),
        """
        words.* head.*: . s
        norm.* last.*: s
        inp.*: i+i s
        conv.*: i .
        select.*: r:3+n+n i
        step.*: i r
        rate: i n
        skip: i
        leave.*: s i
        """,
    ),
    "rwkv": Net(
        lambda: Parts(
            rwkv,
            words=nn.Embedding(11, 6),
            norm1=nn.LayerNorm(6),
            norm2=nn.LayerNorm(6),
            **{f"mix_{n}": parameter(6) for n in ("k", "v", "r", "kk", "rr")},
            key=L(6, 8, bias=False),
            value=L(6, 8, bias=False),
            receive=L(6, 8, bias=False),
            bonus=parameter(8),
            decay=parameter(8),
            leave=L(8, 6, bias=False),
            key2=L(6, 10, bias=False),
            receive2=L(6, 6, bias=False),
            value2=L(10, 6, bias=False),
            head=L(6, 11),
        ),
        (IDS,),
        """
        words.* head.*: . s
        norm1.* norm2.* mix_*: s
        key.* value.* receive.*: a s
        bonus decay: a
        leave.*: s a
        key2.*: h s
        receive2.*: s s
        value2.*: s h
        """,
    ),
    "mixer of places and units": Net(
        lambda: Parts(
            mixer,
            patch=nn.Conv2d(3, 6, 2, 2),
            blocks=nn.ModuleList(
                nn.ModuleDict(
                    {
                        "norm1": nn.LayerNorm(6),
                        "places1": L(4, 5),
                        "places2": L(5, 4),
                        "norm2": nn.LayerNorm(6),
                        "units1": L(6, 8),
                        "units2": L(8, 6),
                    }
                )
                for _ in range(2)
            ),
            out=L(6, 2),
        ),
        (FRAMES[:, 0],),
        """
        patch.*: s .
        blocks.*.norm1.* blocks.*.norm2.*: s
        blocks.{i}.places1.*: p{i} .
        blocks.{i}.places2.weight: . p{i}
        blocks.{i}.units1.*: h{i} s
        blocks.{i}.units2.*: s h{i}
        out.*: . s
        """,
    ),
    "mixer made of convolutions": Net(
        lambda: Parts(
            mixer_of_convolutions,
            patch=nn.Conv2d(3, 6, 2, 2),
            norm=nn.LayerNorm(6),
            places1=nn.Conv1d(4, 5, 1),
            places2=nn.Conv1d(5, 4, 1),
            units1=nn.Conv1d(6, 8, 1),
            units2=nn.Conv1d(8, 6, 1),
            out=L(6, 2),
        ),
        (FRAMES[:, 0],),
        """
        patch.*: s .
        norm.*: s
        places1.*: p .
        places2.weight: . p
        units1.*: h s
        units2.*: s h
        out.*: . s
        """,
    ),
    "a convolution over two stages": Net(
        lambda: Parts(
            stages_together,
            one=nn.Conv2d(3, 6, 1),
            two=nn.Conv2d(6, 6, 3),
            join=nn.Conv1d(2, 1, 1),
            out=L(6, 2),
        ),
        (FRAMES[:, 0],),
        "one.*: s .\ntwo.*: s s\nout.*: . s",
    ),
    "gate of places": Net(
        lambda: Parts(
            spatial_gate,
            inp=L(5, 6),
            norm=nn.LayerNorm(6),
            up=L(6, 16),
            inner=nn.LayerNorm(8),
            places=L(6, 6),
            down=L(8, 6),
            out=L(6, 2),
        ),
        (ROWS,),
        "inp.*: s .\nnorm.*: s\nup.*: h+h s\ninner.*: h\ndown.*: s h\nout.*: . s",
    ),
    "Fourier operator": Net(
        lambda: Parts(
            fourier_operator,
            lift=nn.Conv1d(3, 6, 1),
            spectrum=parameter(6, 5, 4, 2),
            local=nn.Conv1d(6, 5, 1),
            out=nn.Conv1d(5, 1, 1),
        ),
        (torch.linspace(-1, 1, 96).reshape(2, 3, 16).sin(),),
        "lift.*: a .\nspectrum: a b . .\nlocal.*: b a\nout.*: . b",
    ),
    "global filters": Net(
        lambda: Parts(
            global_filter,
            patch=nn.Conv2d(3, 6, 1),
            norm=nn.LayerNorm(6),
            filters=parameter(4, 3, 6, 2),
            out=L(6, 2),
        ),
        (FRAMES[:, 0],),
        "patch.*: s .\nnorm.*: s\nfilters: . . s .\nout.*: . s",
    ),
    "differential equation": Net(
        lambda: Parts(flow_in_time, inp=L(5, 6), one=L(6, 8), two=L(8, 6), out=L(6, 2)),
        (ROWS,),
        "inp.*: s .\none.*: h s\ntwo.*: s h\nout.*: . s",
    ),
}
