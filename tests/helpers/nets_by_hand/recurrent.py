"""Recurrent layers of torch and by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers.nets_by_hand.net import Net, parameter
from helpers.nets_by_hand.sequences import FRAMES, IDS, ROWS
from helpers.trace_models import Parts

L = nn.Linear
LSTM = "rnn.weight_ih_l0: h+h+h+h .\nrnn.bias_*_l0: h+h+h+h\n"


def every_state(m: nn.Module, x: Tensor) -> Tensor:
    return m.out(m.rnn(x)[0])


def recurrent(kind: type[nn.RNNBase], width: int = 8, **options: object) -> nn.Module:
    return Parts(every_state, rnn=kind(5, 8, batch_first=True, **options), out=L(width, 2))


def last_states(m: nn.Module, x: Tensor) -> Tensor:
    _, (h, _) = m.rnn(x)
    return m.out(torch.cat([h[-2], h[-1]], 1))


def translate(m: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    _, state = m.encoder(m.source(source))
    y, _ = m.decoder(m.target(target), state)
    return m.out(y)


def cells(m: nn.Module, x: Tensor) -> Tensor:
    h = c = torch.zeros(len(x), 8, dtype=x.dtype)
    top = torch.zeros(len(x), 6, dtype=x.dtype)
    for step in x.unbind(1):
        h, c = m.low(step, (h, c))
        top = m.high(h, top)
    return m.out(top)


def gru_by_hand(m: nn.Module, x: Tensor) -> Tensor:
    h = m.start.expand(len(x), -1)
    for step in x.unbind(1):
        reset, update = (m.gates(step) + m.back(h)).sigmoid().chunk(2, -1)
        h = (1 - update) * (m.new(step) + m.old(reset * h)).tanh() + update * h
    return m.out(h)


def letters(m: nn.Module, ids: Tensor) -> Tensor:
    h = torch.zeros(len(ids), 8, dtype=m.inp.weight.dtype)
    for step in m.words(ids).unbind(1):
        h = m.inp(torch.cat((step, h), 1)).tanh()
    return m.out(h)


def conv_lstm(m: nn.Module, x: Tensor) -> Tensor:
    h = c = torch.zeros(len(x), 6, *x.shape[-2:], dtype=x.dtype)
    for frame in x.unbind(1):
        i, f, g, o = m.gates(torch.cat([frame, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return m.out(h)


def quasi_recurrent(m: nn.Module, x: Tensor) -> Tensor:
    z, f = m.gates(F.pad(x.mT, (1, 0))).chunk(2, 1)
    state, states = torch.zeros_like(z[..., 0]), []
    for t in range(z.shape[-1]):
        share = f[..., t].sigmoid()
        state = share * state + (1 - share) * z[..., t].tanh()
        states.append(state)
    return m.out(torch.stack(states, 1))


NETS: dict[str, Net] = {
    "rnn": Net(
        lambda: recurrent(nn.RNN),
        (ROWS,),
        "rnn.weight_ih_l0: h .\nrnn.weight_hh_l0: h h\nrnn.bias_*: h\nout.*: . h",
    ),
    "lstm": Net(
        lambda: recurrent(nn.LSTM),
        (ROWS,),
        LSTM + "rnn.weight_hh_l0: h+h+h+h h\nout.*: . h",
    ),
    "gru, two layers": Net(
        lambda: recurrent(nn.GRU, num_layers=2),
        (ROWS,),
        """
        rnn.weight_ih_l0: a+a+a .
        rnn.weight_hh_l0: a+a+a a
        rnn.bias_*_l0: a+a+a
        rnn.weight_ih_l1: b+b+b a
        rnn.weight_hh_l1: b+b+b b
        rnn.bias_*_l1: b+b+b
        out.*: . b
        """,
    ),
    "lstm, two directions, two layers, last states": Net(
        lambda: Parts(last_states, rnn=nn.LSTM(5, 8, 2, batch_first=True, bidirectional=True), out=L(16, 2)),
        (ROWS,),
        """
        rnn.weight_ih_l0: a+a+a+a .
        rnn.weight_hh_l0: a+a+a+a a
        rnn.bias_ih_l0 rnn.bias_hh_l0: a+a+a+a
        rnn.weight_ih_l0_reverse: b+b+b+b .
        rnn.weight_hh_l0_reverse: b+b+b+b b
        rnn.bias_ih_l0_reverse rnn.bias_hh_l0_reverse: b+b+b+b
        rnn.weight_ih_l1: c+c+c+c a+b
        rnn.weight_hh_l1: c+c+c+c c
        rnn.bias_ih_l1 rnn.bias_hh_l1: c+c+c+c
        rnn.weight_ih_l1_reverse: d+d+d+d a+b
        rnn.weight_hh_l1_reverse: d+d+d+d d
        rnn.bias_ih_l1_reverse rnn.bias_hh_l1_reverse: d+d+d+d
        out.*: . c+d
        """,
    ),
    "lstm with a projection": Net(
        lambda: recurrent(nn.LSTM, 4, proj_size=4),
        (ROWS,),
        LSTM + "rnn.weight_hh_l0: h+h+h+h p\nrnn.weight_hr_l0: p h\nout.*: . p",
    ),
    "encoder and decoder": Net(
        lambda: Parts(
            translate,
            source=nn.Embedding(11, 5),
            target=nn.Embedding(12, 6),
            encoder=nn.LSTM(5, 8, batch_first=True),
            decoder=nn.LSTM(6, 8, batch_first=True),
            out=L(8, 12),
        ),
        (IDS, IDS[:, :4]),
        """
        source.*: . a
        target.*: . b
        encoder.weight_ih_l0: h+h+h+h a
        decoder.weight_ih_l0: h+h+h+h b
        encoder.weight_hh_l0 decoder.weight_hh_l0: h+h+h+h h
        encoder.bias_* decoder.bias_*: h+h+h+h
        out.*: . h
        """,
    ),
    "cells of two kinds": Net(
        lambda: Parts(cells, low=nn.LSTMCell(5, 8), high=nn.GRUCell(8, 6), out=L(6, 2)),
        (ROWS,),
        """
        low.weight_ih: a+a+a+a .
        low.weight_hh: a+a+a+a a
        low.bias_*: a+a+a+a
        high.weight_ih: b+b+b a
        high.weight_hh: b+b+b b
        high.bias_*: b+b+b
        out.*: . b
        """,
    ),
    "gru by hand, from a learned state": Net(
        lambda: Parts(
            gru_by_hand,
            start=parameter(8),
            gates=L(5, 16),
            back=L(8, 16, bias=False),
            new=L(5, 8),
            old=L(8, 8),
            out=L(8, 2),
        ),
        (ROWS,),
        "start: h\ngates.*: h+h .\nback.*: h+h h\nnew.*: h .\nold.*: h h\nout.*: . h",
    ),
    "letters": Net(
        lambda: Parts(letters, words=nn.Embedding(11, 6), inp=L(14, 8), out=L(8, 11)),
        (IDS,),
        "words.*: . e\ninp.*: h e+h\nout.*: . h",
    ),
    "convolutional lstm": Net(
        lambda: Parts(conv_lstm, gates=nn.Conv2d(9, 24, 3, padding=1), out=nn.Conv2d(6, 2, 1)),
        (FRAMES,),
        "gates.*: h+h+h+h 3+h\nout.*: . h",
    ),
    "quasi-recurrent": Net(
        lambda: Parts(quasi_recurrent, gates=nn.Conv1d(5, 16, 2), out=L(8, 2)),
        (ROWS,),
        "gates.*: h+h .\nout.*: . h",
    ),
}
