"""Files of ``torch.save``: what is read is what torch reads, and the rest is refused before it takes memory or time."""

from __future__ import annotations

import contextlib
import io
import random
import tracemalloc
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alignkit import read_weights
from alignkit.checkpoints import open_checkpoint, write_checkpoint
from alignkit.checkpoints.dense import DTYPES
from alignkit.checkpoints.pickle_file import load_pickle
from alignkit.checkpoints.shard import memory_of
from alignkit.errors import WeightsError
from helpers.torch_files import (
    directory,
    loaded,
    local_header,
    name,
    number,
    repacked,
    saved,
    storage,
    tensor,
    text,
    write_pickle,
)

WEIGHTS = {"0.weight": torch.arange(12.0).reshape(3, 4), "0.bias": torch.tensor([1.5, -2.0, 0.25])}
WHOLE = saved(WEIGHTS)


def bits(value: Tensor) -> bytes:
    return memory_of(value).tobytes()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether names, dtypes, shapes and every bit agree."""
    if list(left) != list(right):
        return False
    pairs = [(left[key], right[key]) for key in left]
    return all(a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b) for a, b in pairs)


# ---------------------------------------------------------------------- read right

DTYPE = st.sampled_from(sorted(DTYPES, key=str))


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """Draw a tensor of any dtype: whole, transposed, stepped, narrowed, expanded, of no dimension or no entry."""
    dtype = draw(DTYPE)
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    base = torch.randint(0, 2, [*shape], generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(dtype)
    for change in draw(st.lists(st.sampled_from(["turn", "step", "narrow", "expand"]), max_size=3)):
        if change == "turn" and base.ndim > 1:
            base = base.transpose(0, base.ndim - 1)
        if change == "step" and base.ndim:
            base = base[::2]
        if change == "narrow" and base.ndim and base.shape[-1] > 1:
            base = base[..., 1:]
        if change == "expand":
            base = base.expand(3, *base.shape)
    return base


@settings(max_examples=60)
@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), views(), max_size=4), st.booleans()
)
def test_every_state_dict_is_read_to_the_last_bit(
    tmp_path_factory: Any, state: dict[str, Tensor], legacy: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "state.pt"
    state = {key: value for key, value in state.items() if key != "state_dict"}
    path.write_bytes(saved(state, legacy=legacy))
    assert same(read_weights(path), state)
    checkpoint = open_checkpoint(path)
    for key, value in state.items():
        if value.ndim and value.shape[0]:
            last = value.shape[0] - 1
            assert bits(checkpoint.rows(key, last, last + 1)) == bits(value[last:])
            index = torch.tensor([last, 0, last])
            assert bits(checkpoint.take(key, index)) == b"".join(bits(value[i]) for i in index.tolist())


@pytest.mark.parametrize("legacy", [False, True])
def test_what_modules_and_optimizers_save_is_read(tmp_path: Path, legacy: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LSTM(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    with_attribute = nn.Parameter(torch.ones(2))
    with_attribute.note = "kept by torch"  # type: ignore[attr-defined]
    state = OrderedDict({**model.state_dict(), "parameter": nn.Parameter(torch.ones(3)), "noted": with_attribute})
    more = {
        "optimizer": optimizer.state_dict(),
        "seen": {1, 2},
        "counts": Counter("ab"),
        "size": torch.Size([2]),
        5: b"x",
    }
    (tmp_path / "w.pt").write_bytes(saved({"state_dict": state, **more}, legacy=legacy))
    read = read_weights(tmp_path / "w.pt")
    assert same(read, {key: value.detach() for key, value in state.items()})
    assert not any(value.requires_grad for value in read.values())


def test_ties_stay_ties_and_take_memory_once(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    torch.save({f"{i}.weight": shared for i in range(100)}, tmp_path / "w.pt")
    read = read_weights(tmp_path / "w.pt")
    assert len({value.data_ptr() for value in read.values()}) == 1
    checkpoint = open_checkpoint(tmp_path / "w.pt")
    write_checkpoint(tmp_path / "out.pt", checkpoint, checkpoint.__getitem__)
    assert (tmp_path / "out.pt").stat().st_size < 1.1 * (tmp_path / "w.pt").stat().st_size


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickle_comes_back_as_it_was(tmp_path: Path, legacy: bool) -> None:
    content = {
        "run": "{}",
        "step": 3,
        "optimizer": {"state": {0: {"m": torch.ones(2)}}, "betas": (0.9, 0.99)},
        "none": [None],
    }
    (tmp_path / "w.pt").write_bytes(saved(content, legacy=legacy))
    read = load_pickle(tmp_path / "w.pt")
    assert torch.equal(read["optimizer"]["state"][0].pop("m"), content["optimizer"]["state"][0].pop("m"))  # type: ignore[index]
    assert read == content


# ---------------------------------------------------------------------- never other numbers

PACKED = [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def zip_of(entry: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(entry, "hello")
    return stream.getvalue()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    **{f"all of kind {kind}": lambda kind=kind: repacked(WHOLE, kind) for kind in PACKED},
    **{
        f"{entry} of kind {kind}": lambda kind=kind, entry=entry: repacked(WHOLE, kind, lambda n: n.endswith(entry))
        for kind in PACKED
        for entry in ("data/0", "data/1", "data.pkl")
    },
    "a bomb": lambda: repacked(saved({"w": torch.zeros(1 << 20)}), zipfile.ZIP_DEFLATED),
    "a method in the local header": lambda: local_header(WHOLE, "data/0", 8, lambda _: 8),
    "flags in the local header": lambda: local_header(WHOLE, "data/0", 6, lambda flags: flags | 1),
    "encrypted": lambda: directory(local_header(WHOLE, "data/0", 6, lambda f: f | 1), "data/0", 8, lambda f: f | 1),
    "a name in the local header": lambda: local_header(WHOLE, "data/0", 31, lambda letters: letters ^ 1),
    "a length in the local header": lambda: local_header(repacked(WHOLE), "data/0", 22, lambda size: size + 1),
    "a signature": lambda: local_header(WHOLE, "data/0", 0, lambda _: 0),
    "a size": lambda: directory(repacked(WHOLE), "data/0", 24, lambda size: size - 4),
    "both sizes": lambda: directory(
        directory(repacked(WHOLE), "data/0", 24, lambda s: s - 4), "data/0", 20, lambda s: s - 4
    ),
    "an offset": lambda: directory(repacked(WHOLE), "data/1", 42, lambda _: 0),
    "an entry twice": lambda: repacked(WHOLE, extra=[("archive/data/0", bytes(48))]),
    "an entry twice in other letters": lambda: repacked(WHOLE, extra=[("archive/DATA/0", bytes(48))]),
    "something before": lambda: b"PK\x03\x04 and more" + WHOLE,
    "big-endian": lambda: repacked(WHOLE, replace={"byteorder": b"big"}),
    "a storage that is cut short": lambda: repacked(WHOLE, replace={"data/0": bytes(44)}),
    "a storage with too much": lambda: repacked(WHOLE, replace={"data/0": bytes(52)}),
    "TorchScript": lambda: repacked(WHOLE, extra=[("archive/constants.pkl", b"")]),
    "another archive": lambda: zip_of("notes/readme.txt"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_torch_does_not_write_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(ARCHIVES[kind]())
    with pytest.raises(WeightsError, match=r"w\.pt (has|is|holds|cannot be read)"):
        read_weights(path)


def test_archives_that_others_wrote_plainly_are_read(tmp_path: Path) -> None:
    for whole in (
        repacked(WHOLE),
        repacked(WHOLE, comment=b"packed again"),
        repacked(WHOLE, extra=[("archive/more", b"")]),
    ):
        (tmp_path / "w.pt").write_bytes(whole)
        assert same(read_weights(tmp_path / "w.pt"), WEIGHTS)


def damaged(whole: bytes, trial: int, generator: random.Random) -> bytes:
    """Cut a file, or flip some of its bits."""
    changed = bytearray(whole)
    if trial % 5 == 0:
        del changed[generator.randrange(1, len(changed)) :]
    for _ in range(1 + trial % 3):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("legacy", [False, True])
def test_damage_never_gives_other_numbers_than_torch_reads(legacy: bool, tmp_path: Path) -> None:
    whole, path, generator = saved(WEIGHTS, legacy=legacy), tmp_path / "w.pt", random.Random(0)
    accepted = 0
    for trial in range(300):
        path.write_bytes(damaged(whole, trial, generator))
        with contextlib.suppress(WeightsError), warnings.catch_warnings():
            read = read_weights(path)
            warnings.simplefilter("ignore")
            with contextlib.suppress(RuntimeError):  # torch reads less of what is damaged
                expected = loaded(path)
                accepted += 1
                assert same(read, expected)
    assert accepted > 30


def test_check_sums_find_flipped_bits_of_a_whole_pickle(tmp_path: Path) -> None:
    content = {"step": 3, "m": torch.randn(50)}
    whole, path, generator = saved(content), tmp_path / "w.pt", random.Random(0)
    refused = 0
    for trial in range(150):
        path.write_bytes(damaged(whole, trial, generator))
        try:
            read = load_pickle(path)
        except WeightsError:
            refused += 1
        else:
            assert read["step"] == 3
            assert torch.equal(read["m"], content["m"])
    assert refused > 80


# ---------------------------------------------------------------------- no memory, no time, no code

GIVEN = name("collections", "OrderedDict") + b")R"
NEST = b"(t" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
"""A tuple of twice a tuple of twice a tuple ...: 2^60 parts to hash or to print."""
PICKLES: dict[str, bytes] = {
    "an expanded number": b"}" + text("w") + tensor(600_000_000, strides=[0]) + b"s",
    "an expanded number in many dimensions": b"}" + text("w") + tensor(*[2] * 40, strides=[0] * 40) + b"s",
    "overlapping windows": b"}" + text("w") + tensor(1 << 30, 2, strides=[0, 1]) + b"s",
    "many views": b"}("
    + b"".join(text(f"w{i}") + tensor(1 << 20, 1, strides=[0, i], count=4) for i in range(40))
    + b"u",
    "beyond its storage": b"}" + text("w") + tensor(5, strides=[1]) + b"s",
    "beyond its storage by an offset": b"}" + text("w") + tensor(2, strides=[1], offset=3) + b"s",
    "a negative stride": b"}" + text("w") + tensor(2, strides=[-1], offset=3) + b"s",
    "a negative offset": b"}" + text("w") + tensor(2, strides=[1], offset=-1) + b"s",
    "an impossible shape": b"}" + text("w") + tensor(0, 1 << 62, 1 << 62, strides=[1, 1, 1]) + b"s",
    "an impossible size": b"}" + text("w") + tensor(0, 1 << 63, strides=[1, 1]) + b"s",
    "65 dimensions": b"}" + text("w") + tensor(*[1] * 65, strides=[1] * 65) + b"s",
    "more numbers than the storage has": b"}" + text("w") + tensor(5, strides=[1], count=5) + b"s",
    "fewer numbers than the storage has": b"}" + text("w") + tensor(3, strides=[1], count=3) + b"s",
    "a storage that is not there": b"}" + text("w") + storage(key="9") + b"s",
    "a storage as a tensor": b"}" + text("w") + storage() + b"s",
    "another type of the same storage": b"}"
    + text("w")
    + tensor(4, strides=[1])
    + b"s"
    + text("v")
    + storage(1, kind="LongStorage")
    + b"s",
    "a bytearray of a size": b"}" + text("w") + name("builtins", "bytearray") + b"(" + number(10**13) + b"tRs",
    "a tensor of a size": b"}" + text("w") + name("torch", "Tensor") + b"(" + number(10**13) + b"tRs",
    "a memo of a size": b"}r\xff\xff\xff\xffj\xff\xff\xff\xfe",
    "a long text": b"X\xff\xff\xff\xffw",
    "bytes of a size": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00",
    "a bytearray of a length": b"\x96\xff\xff\xff\xff\xff\x00\x00\x00",
    "a frame of a size": b"\x95\xff\xff\xff\xff\xff\x00\x00\x00",
    "a key that takes for ever": b"}" + NEST + text("w") + b"s",
    "a value that takes for ever": b"}" + text("w") + NEST + b"s",
    "a dict that takes for ever": b"}" + text("state_dict") + NEST + b"s",
    "bytes again and again": b"]"
    + text("x" * 10**5)
    + b"q\x010("
    + (name("_codecs", "encode") + b"h\x01" + text("latin1") + b"\x86R") * 2000
    + b"e",
    "pairs again and again": b"]("
    + (text("k") + b"N\x86") * 10**4
    + b"eq\x01]("
    + (name("collections", "OrderedDict") + b"h\x01\x85R") * 2000
    + b"e",
    "a list in itself": b"}" + text("w") + b"]q\x01h\x01as",
    "a changed function": b"}" + name("torch._utils", "_rebuild_parameter") + b"}" + text("x") + b"Nsbs",
    "code": b"}" + text("w") + name("os", "system") + b"(" + text("touch ran") + b"tRs",
    "code by another name": b"}" + text("w") + name("builtins", "eval") + b"(" + text("1") + b"tRs",
    "code through attributes": b"}"
    + text("w")
    + name("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + GIVEN
    + b"N(tNtRs",
    "an instance": b"}" + text("w") + b"(ios\nsystem\ns",
    "a new object": b"}" + text("w") + name("torch", "Tensor") + b")\x81s",
    "a module": b"}" + text("w") + name("torch", "onnx") + b"s",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_made_by_hand_are_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    write_pickle(path, PICKLES[kind])
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=r"w\.pt"):
            open_checkpoint(path)  # before a number is read
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_small_tensors_may_be_expanded(tmp_path: Path) -> None:
    state = {
        "mask": torch.ones(1).expand(64),
        "wide": torch.arange(3).expand(50, 3),
        "twice": torch.arange(4.0).unfold(0, 2, 1),
    }
    torch.save(state, tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"), state)


@pytest.mark.parametrize("legacy", [False, True])
def test_expanded_tensors_that_their_file_does_not_justify_are_refused(legacy: bool, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(saved({"w": torch.zeros(1).expand(600_000_000)}, legacy=legacy))
    with pytest.raises(WeightsError, match=r"would take 2\.4 GB: the largest is 'w' of shape \[600000000\]"):
        read_weights(tmp_path / "w.pt")


# ---------------------------------------------------------------------- names and kinds of tensors


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", [5, 2.5, True, None, b"5", ("a", 1), (), "\ud800"], ids=repr)
def test_a_key_that_is_not_a_name_is_refused_with_the_key(key: object, legacy: bool, tmp_path: Path) -> None:
    for content in (
        {key: torch.ones(2), "5": torch.zeros(2)},
        {"state_dict": {"5": torch.zeros(2), key: torch.ones(2)}},
    ):
        (tmp_path / "w.pt").write_bytes(saved(content, legacy=legacy))
        with pytest.raises(WeightsError) as caught:
            read_weights(tmp_path / "w.pt")
        assert repr(key) in str(caught.value)


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


KINDS: dict[str, tuple[Callable[[], object], str]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), "a sparse tensor"),
    "quantised": (quantised, "a quantised tensor"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "a nested tensor"),
    "meta": (lambda: torch.ones(2, device="meta"), "without values"),
    "conjugated": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "a conjugated"),
    "negated": (lambda: torch.ones(2, dtype=torch.complex64).conj().imag, "a conjugated or negated view"),
    "half complex": (lambda: torch.zeros(2, dtype=torch.complex32), "complex32"),
    "a number": (lambda: 3, "int"),
    "a list": (lambda: [torch.ones(2)], "list"),
    "a text": (lambda: "x", "str"),
    "nothing": (lambda: None, "NoneType"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_tensors_are_refused_with_what_they_are(kind: str, tmp_path: Path) -> None:
    make, message = KINDS[kind]
    torch.save({"w": torch.ones(2), "odd": make()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "w.pt")
