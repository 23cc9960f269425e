"""Tiny networks with every kind of fold and balance, each with a graph that was written by hand, and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from alignkit import SymmetryGraph
from alignkit.graph import AxisOf, Balance, Fold, Gain, Mean, OutputScale, Phase, Shift, Through, Untie, Zero

WORDS, LENGTH, WIDTH = 11, 5, 8


class Net(NamedTuple):
    """A network with random weights in float64, its graph, and the inputs of its function."""

    model: nn.Module
    graph: SymmetryGraph
    inputs: tuple[Tensor, ...]


def tokens() -> tuple[Tensor]:
    return (torch.randint(WORDS, (3, LENGTH), generator=torch.Generator().manual_seed(5)),)


def floats(*shape: int) -> tuple[Tensor]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64),)


def finished(
    model: nn.Module,
    spec: dict[str, str],
    inputs: tuple[Tensor, ...],
    folds: list[Fold],
    balances: Sequence[Balance | Phase],
    seed: int = 0,
    **sizes: int,
) -> Net:
    """Draw all weights, and build the graph; tensors that the spec leaves out are fixed."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.data.copy_(drawn.abs() + 0.1 if name.endswith("running_var") else drawn * 0.6)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    full = {name: spec.get(name, " ".join("." * len(shape))) for name, shape in shapes.items()}
    return Net(model, SymmetryGraph.from_spec(full, shapes, sizes=sizes, folds=folds, balances=balances), inputs)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


# ------------------------------------------------------------------ GPT-2: LayerNorm, GELU, fused weights, tied head
class Conv1D(nn.Module):
    """The layer of GPT-2, whose weight is transposed."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(wide, out)), nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GPTBlock(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = Conv1D(WIDTH, 3 * WIDTH), Conv1D(WIDTH, WIDTH)
        self.c_fc, self.c_out, self.heads = Conv1D(WIDTH, 10), Conv1D(10, WIDTH), heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(self.ln_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.c_proj(attend(q, k, v))
        return x + self.c_out(functional.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, layers: int = 2, heads: int = 2, tied: bool = True) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.h = nn.ModuleList(GPTBlock(heads) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.h:
            h = block(h)
        return self.lm_head(self.ln_f(h))


def gpt(seed: int = 0) -> Net:
    spec = dict.fromkeys(("wte.weight", "wpe.weight", "lm_head.weight"), ". ^model") | {"ln_f.bias": "^model"}
    folds: list[Fold] = [
        Untie("lm_head.weight", "wte.weight"),
        Gain("ln_f.weight", (AxisOf("lm_head.weight", 1),), shift="ln_f.bias"),
    ]
    writers, readers, balances = [AxisOf("wte.weight", 1), AxisOf("wpe.weight", 1)], [], []
    for layer in range(2):
        h, heads = f"h.{layer}.", f"heads{layer}"
        qk, vo = f"({heads} ~qk{layer}[{heads}])", f"({heads} ~vo{layer}[{heads}])"
        spec |= {
            f"{h}c_attn.weight": f"^model {qk}+{qk}+{vo}",
            f"{h}c_attn.bias": f"{qk}+{qk}+{vo}",
            f"{h}c_proj.weight": f"{vo} ^model",
            f"{h}c_fc.weight": f"^model u{layer}",
            f"{h}c_fc.bias": f"u{layer}",
            f"{h}c_out.weight": f"u{layer} ^model",
            **dict.fromkeys((f"{h}c_proj.bias", f"{h}c_out.bias", f"{h}ln_1.bias", f"{h}ln_2.bias"), "^model"),
        }
        attn, fc = AxisOf(f"{h}c_attn.weight", 0), AxisOf(f"{h}c_fc.weight", 0)
        folds += [
            Gain(f"{h}ln_1.weight", (attn,)),
            Gain(f"{h}ln_2.weight", (fc,)),
            Shift(f"{h}ln_1.bias", ((attn, f"{h}c_attn.bias"),)),
            Shift(f"{h}ln_2.bias", ((fc, f"{h}c_fc.bias"),)),
            Zero(AxisOf(f"{h}c_attn.bias", 0, WIDTH, WIDTH)),
            Through(AxisOf(f"{h}c_attn.bias", 0, 2 * WIDTH), AxisOf(f"{h}c_proj.weight", 0), f"{h}c_proj.bias"),
        ]
        readers += [attn, fc]
        for name in ("c_proj", "c_out"):
            writers += [AxisOf(f"{h}{name}.weight", 1), AxisOf(f"{h}{name}.bias", 0)]

        def part(number: int, h: str = h) -> tuple[AxisOf, ...]:
            start = number * WIDTH
            return AxisOf(f"{h}c_attn.weight", 1, start, WIDTH), AxisOf(f"{h}c_attn.bias", 0, start, WIDTH)

        balances.append(Balance(f"qk{layer}", part(0), part(1), "invertible"))
        balances.append(Balance(f"vo{layer}", part(2), (AxisOf(f"{h}c_proj.weight", 0),), "invertible"))
    folds.append(Mean(tuple(writers), tuple(readers)))
    return finished(GPT(), spec, tokens(), folds, balances, seed, heads0=2, heads1=2)


# ------------------------------------------------------------------ Llama, Gemma: RMSNorm, RoPE, SwiGLU
class RMSNorm(nn.Module):
    def __init__(self, size: int, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.empty(size)), offset

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (self.offset + self.weight)


def rotate(x: Tensor) -> Tensor:
    """Turn the planes ``(i, i + n/2)`` of ``[..., time, n]``."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[-2]), 10.0 ** -torch.arange(half)).to(x)
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], -1)


class LlamaBlock(nn.Module):
    def __init__(self, kv: int, queries: int, size: int, offset: float) -> None:
        super().__init__()
        self.n1, self.n2 = RMSNorm(WIDTH, offset), RMSNorm(WIDTH, offset)
        self.kv, self.queries, self.size = kv, queries, size
        self.q, self.k = (nn.Linear(WIDTH, n * size, bias=False) for n in (kv * queries, kv))
        self.v, self.o = nn.Linear(WIDTH, kv * size, bias=False), nn.Linear(kv * queries * size, WIDTH, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, 10, bias=False), nn.Linear(WIDTH, 10, bias=False)
        self.down = nn.Linear(10, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.n1(x)
        q, k, v = (layer(z).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.queries, 1) for t in (rotate(k), v))
        x = x + self.o(attend(rotate(q), k, v))
        z = self.n2(x)
        return x + self.down(functional.silu(self.gate(z)) * self.up(z))


class Llama(nn.Module):
    def __init__(self, kv: int = 2, queries: int = 2, size: int = 4, tied: bool = False, gemma: bool = False) -> None:
        super().__init__()
        offset = 1.0 if gemma else 0.0
        self.embed, self.scale = nn.Embedding(WORDS, WIDTH), WIDTH**0.5 if gemma else 1.0
        self.layers = nn.ModuleList(LlamaBlock(kv, queries, size, offset) for _ in range(2))
        self.norm, self.head = RMSNorm(WIDTH, offset), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) * self.scale
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h))


def llama(seed: int = 0, *, kv: int = 2, tied: bool = False, gemma: bool = False) -> Net:
    offset = 1.0 if gemma else 0.0
    folds: list[Fold] = [Untie("head.weight", "embed.weight")] if tied else []
    folds.append(Gain("norm.weight", (AxisOf("head.weight", 1),), offset))
    spec = dict.fromkeys(("embed.weight", "head.weight"), ". ~model")
    balances = []
    for layer in range(2):
        n = f"layers.{layer}."
        heads = f"kv{layer}"
        spec |= {
            f"{n}q.weight": f"({heads} q{layer}[{heads}] %rot{layer}[{heads}]) ~model",
            f"{n}k.weight": f"({heads} %rot{layer}[{heads}]) ~model",
            f"{n}v.weight": f"({heads} ~vo{layer}[{heads}]) ~model",
            f"{n}o.weight": f"~model ({heads} q{layer}[{heads}] ~vo{layer}[{heads}])",
            f"{n}gate.weight": f"u{layer} ~model",
            f"{n}up.weight": f"u{layer} ~model",
            f"{n}down.weight": f"~model u{layer}",
        }

        def axis(name: str, number: int, n: str = n) -> tuple[AxisOf]:
            return (AxisOf(f"{n}{name}.weight", number),)

        folds.append(Gain(f"{n}n1.weight", (*axis("q", 1), *axis("k", 1), *axis("v", 1)), offset))
        folds.append(Gain(f"{n}n2.weight", (*axis("gate", 1), *axis("up", 1)), offset))
        balances += [
            Balance(f"rot{layer}", axis("q", 0), axis("k", 0), "complex_planes"),
            Balance(f"vo{layer}", axis("v", 0), axis("o", 1), "invertible"),
            Balance(f"u{layer}", axis("up", 0), axis("down", 1), "monomial"),
        ]
    sizes = {f"{name}{layer}": size for layer in range(2) for name, size in (("kv", kv), ("q", 2), ("rot", 4))}
    return finished(Llama(kv, tied=tied, gemma=gemma), spec, tokens(), folds, balances, seed, **sizes)


# ------------------------------------------------------------------ ViT: class token, LayerScale, biases everywhere
class ViTBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.f1, self.f2 = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)
        self.s1, self.s2 = nn.Parameter(torch.empty(WIDTH)), nn.Parameter(torch.empty(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        # Heads outermost, then query, key and value: the fused axis of GPT-NeoX and BLOOM.
        q, k, v = self.qkv(self.n1(x)).unflatten(-1, (2, 3, -1)).permute(3, 0, 2, 1, 4)
        x = x + self.s1 * self.proj(attend(q, k, v, causal=False))
        return x + self.s2 * self.f2(functional.gelu(self.f1(self.n2(x))))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, WIDTH, 2, 2), nn.Parameter(torch.empty(1, 1, WIDTH))
        self.pos, self.blocks = nn.Parameter(torch.empty(1, 5, WIDTH)), nn.ModuleList(ViTBlock() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls.expand(len(h), -1, -1), h], 1) + self.pos
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, 0])


def vit(seed: int = 0) -> Net:
    head = AxisOf("head.weight", 1)
    folds: list[Fold] = [Shift("norm.bias", ((head, "head.bias"),)), Gain("norm.weight", (head,))]
    writers = [AxisOf("patch.weight", 0), AxisOf("patch.bias", 0), AxisOf("cls", 2), AxisOf("pos", 2)]
    readers, balances = [head], []
    spec = {"patch.weight": "^model . . .", "patch.bias": "^model", "cls": ". . ^model", "pos": ". . ^model"}
    spec |= {"head.weight": ". ^model", "norm.bias": "^model"}
    for layer in range(2):
        b, heads = f"blocks.{layer}.", f"heads{layer}"
        fused = f"({heads} (~qk{layer}[{heads}]+~qk{layer}[{heads}]+~vo{layer}[{heads}]))"
        spec |= {
            f"{b}qkv.weight": f"{fused} ^model",
            f"{b}qkv.bias": fused,
            f"{b}proj.weight": f"^model ({heads} ~vo{layer}[{heads}])",
            f"{b}f1.weight": f"u{layer} ^model",
            f"{b}f1.bias": f"u{layer}",
            f"{b}f2.weight": f"^model u{layer}",
            **dict.fromkeys((f"{b}{n}.bias" for n in ("n1", "n2", "proj", "f2")), "^model"),
        }
        for norm, reader, bias in (("n1", "qkv.weight", "qkv.bias"), ("n2", "f1.weight", "f1.bias")):
            place = AxisOf(f"{b}{reader}", 1)
            folds += [Shift(f"{b}{norm}.bias", ((place, f"{b}{bias}"),)), Gain(f"{b}{norm}.weight", (place,))]
            readers.append(place)
        for scale, writer in (("s1", "proj"), ("s2", "f2")):
            both = AxisOf(f"{b}{writer}.weight", 0), AxisOf(f"{b}{writer}.bias", 0)
            folds.append(OutputScale(f"{b}{scale}", both))
            writers += both

        def part(number: int, b: str = b) -> tuple[AxisOf, ...]:
            return tuple(AxisOf(f"{b}qkv.{name}", 0, 4 * number, 4, 12) for name in ("weight", "bias"))

        folds += [Zero(part(1)[1]), Through(part(2)[1], AxisOf(f"{b}proj.weight", 1), f"{b}proj.bias")]
        balances.append(Balance(f"qk{layer}", part(0), part(1), "invertible"))
        balances.append(Balance(f"vo{layer}", part(2), (AxisOf(f"{b}proj.weight", 1),), "invertible"))
    folds.append(Mean(tuple(writers), tuple(readers)))
    return finished(ViT(), spec, floats(3, 3, 4, 4), folds, balances, seed, heads0=2, heads1=2, qk0=4, qk1=4)


# ------------------------------------------------------------------ grouped queries with biases, gates of one number
class GroupedQueries(nn.Module):
    """Attention without positions: 2 key/value heads, each read by 3 query heads; a ReZero gate."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)
        self.o, self.gate = nn.Linear(12, WIDTH), nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.gate * self.o(attend(q, *(t.repeat_interleave(3, 1) for t in (k, v))))


def grouped(seed: int = 0) -> Net:
    spec = {"o.weight": ". (kv queries[kv] ~vo[kv])"}
    for name, layout in (("q", "(kv queries[kv] ~qk[kv])"), ("k", "(kv ~qk[kv])"), ("v", "(kv ~vo[kv])")):
        spec |= {f"{name}.weight": f"{layout} .", f"{name}.bias": layout}

    def rows(name: str) -> tuple[AxisOf, AxisOf]:
        return AxisOf(f"{name}.weight", 0), AxisOf(f"{name}.bias", 0)

    o = AxisOf("o.weight", 1)
    folds: list[Fold] = [
        Zero(AxisOf("k.bias", 0)),
        Through(AxisOf("v.bias", 0), o, "o.bias", heads=2),
        OutputScale("gate", rows("o")),
    ]
    balances = [
        Balance("qk", rows("k"), rows("q"), "invertible"),
        Balance("vo", rows("v"), (o,), "invertible"),
    ]
    return finished(GroupedQueries(), spec, floats(2, 4, WIDTH), folds, balances, seed, kv=2, queries=3, qk=2)


# ------------------------------------------------------------------ norms before convolutions
class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def downsampling(seed: int = 0) -> Net:
    """ConvNeXt's way down: a norm over channels, and a convolution without padding that reads it."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), ChannelNorm(6), nn.Conv2d(6, 4, 2, 2), nn.Tanh())
    reader = AxisOf("2.weight", 1)
    folds: list[Fold] = [
        Shift("1.bias", ((reader, "2.bias"),)),
        Gain("1.weight", (reader,)),
        Mean((AxisOf("0.weight", 0), AxisOf("0.bias", 0)), (reader,)),
    ]
    return finished(model, {}, floats(2, 3, 4, 4), folds, [], seed)


# ------------------------------------------------------------------ layers whose units have scales
class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "prelu": nn.PReLU,
    "squared": SquaredReLU,
}


def mlp(activation: str = "relu", seed: int = 0, depth: int = 3) -> Net:
    layers: list[nn.Module] = [nn.Linear(5, 6)]
    for _ in range(depth):
        layers += [ACTIVATIONS[activation](), nn.Linear(6, 6)]
    spec, balances = {"0.weight": "u0 .", "0.bias": "u0", f"{2 * depth}.weight": f". u{depth - 1}"}, []
    for number in range(depth):
        at = 2 * number
        if number:
            spec |= {f"{at}.weight": f"u{number} u{number - 1}", f"{at}.bias": f"u{number}"}
        rows = AxisOf(f"{at}.weight", 0), AxisOf(f"{at}.bias", 0)
        degree = 2 if activation == "squared" else 1
        balances.append(Balance(f"u{number}", rows, (AxisOf(f"{at + 2}.weight", 1),), "scaled", degree))
    return finished(nn.Sequential(*layers), spec, floats(7, 5), [], balances, seed)


class Sines(nn.Module):
    """Two layers of sines, of which the second keeps its frequency in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)
        self.register_buffer("frequency", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(9 * self.first(x))
        return self.last(torch.sin(self.frequency * self.second(x)))


def sines(seed: int = 0) -> Net:
    spec = {"first.weight": "-u0 .", "first.bias": "-u0", "second.weight": "-u1 -u0", "second.bias": "-u1"}
    spec["last.weight"] = ". -u1"
    phases = [
        Phase("u0", AxisOf("first.bias", 0), (AxisOf("second.weight", 1),), 9.0),
        Phase("u1", AxisOf("second.bias", 0), (AxisOf("last.weight", 1),), 1.0, ("frequency",)),
    ]
    return finished(Sines(), spec, floats(7, 5), [], phases, seed)


def batchnorm(seed: int = 0) -> Net:
    """Convolutions with BatchNorm: scales stand in gamma and beta."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    spec = {"0.weight": "a . . .", "3.weight": "b a . .", "8.weight": ". (b 4)"}
    for norm, group in (("1", "a"), ("4", "b")):
        spec |= {f"{norm}.{name}": group for name in ("weight", "bias", "running_mean", "running_var")}
    balances = [
        Balance("a", (AxisOf("1.weight", 0), AxisOf("1.bias", 0)), (AxisOf("3.weight", 1),), "scaled"),
        Balance("b", (AxisOf("4.weight", 0), AxisOf("4.bias", 0)), (AxisOf("8.weight", 1),), "scaled"),
    ]
    return finished(model, spec, floats(2, 3, 4, 4), [], balances, seed)


class LoRA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(6, 7), nn.Linear(6, 3, bias=False), nn.Linear(3, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


def lora(seed: int = 0) -> Net:
    spec = {"down.weight": "~rank .", "up.weight": ". ~rank"}
    balances = [Balance("rank", (AxisOf("down.weight", 0),), (AxisOf("up.weight", 1),), "invertible")]
    return finished(LoRA(), spec, floats(4, 6), [], balances, seed)


class Router(nn.Module):
    """The best two of four experts, stacked SwiGLUs, by a softmax over logits."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.gate, self.up = nn.Parameter(torch.empty(4, WIDTH, 6)), nn.Parameter(torch.empty(4, WIDTH, 6))
        self.down = nn.Parameter(torch.empty(4, 6, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        values, chosen = self.router(x).softmax(-1).topk(2, -1)
        share = torch.zeros(len(x), 4).to(x).scatter(-1, chosen, values)
        hidden = functional.silu(torch.einsum("bd,edh->beh", x, self.gate)) * torch.einsum("bd,edh->beh", x, self.up)
        return torch.einsum("be,beh,ehd->bd", share, hidden, self.down)


def router(seed: int = 0) -> Net:
    spec = {"gate": "=e . u[e]", "up": "=e . u[e]", "down": "=e u[e] ."}
    folds: list[Fold] = [Mean((AxisOf("router.weight", 0), AxisOf("router.bias", 0)))]
    balances = [Balance(f"u.{e}", (AxisOf("up", 2),), (AxisOf("down", 1),), "monomial") for e in range(4)]
    return finished(Router(), spec, floats(9, WIDTH), folds, balances, seed)


NETS: dict[str, Callable[..., Net]] = {
    "gpt": gpt,
    "llama": llama,
    "llama, tied": lambda seed=0: llama(seed, tied=True),
    "llama, one kv head": lambda seed=0: llama(seed, kv=1),
    "gemma": lambda seed=0: llama(seed, tied=True, gemma=True),
    "vit": vit,
    "grouped queries": grouped,
    "downsampling": downsampling,
    **{f"mlp, {name}": lambda seed=0, name=name: mlp(name, seed) for name in ACTIVATIONS},
    "deep mlp": lambda seed=0: mlp("relu", seed, depth=6),
    "batchnorm": batchnorm,
    "sines": sines,
    "lora": lora,
    "router": router,
}


def outputs(model: nn.Module, weights: dict[str, Any], inputs: tuple[Tensor, ...]) -> Tensor:
    """Run a model with other weights; tied names may differ."""
    with torch.no_grad():
        return torch.func.functional_call(model, weights, inputs, tie_weights=False)
