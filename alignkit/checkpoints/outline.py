"""The outline of a pickle of ``torch.save``: its containers, and where its tensors lie, without one number of them.

The unpickler knows the opcodes and names that ``torch.save`` writes for containers, plain values and tensors. It
imports nothing, calls nothing but functions of this module, and allocates nothing by a number that it reads.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from alignkit.checkpoints.dense import check_shape
from alignkit.text import show_value


@dataclass
class Storage:
    """Numbers that lie one after the other in a file: how many bytes, and where they begin, once that is known."""

    key: str
    dtype: torch.dtype
    nbytes: int
    begin: int = -1


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a storage, as torch counts it: offset and strides in elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def begin(self) -> int:
        """Where its first element is in the file."""
        return self.storage.begin + self.offset * self.dtype.itemsize

    @property
    def identity(self) -> object:
        """A key that is equal for names of one tensor: the same elements of the same storage."""
        return self.storage.key, self.dtype, self.offset, self.shape, self.stride


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value that is not read, with what it is."""

    kind: str


class UnknownName(pickle.UnpicklingError):
    """A pickle needs something by a name that no state dict needs."""


def read_outline(stream: BinaryIO, storages: dict[str, Storage], *, whatever_else: bool = False) -> Any:
    """Read the next pickle of a stream; put the storages that it names into ``storages``, by key.

    Args:
        stream: The stream.
        storages: Is filled.
        whatever_else: Whether objects of any class may stand beside the tensors; each is `Opaque`.

    Raises:
        UnknownName: It needs more than containers, plain values, tensors, and data of some known libraries.
        Exception: Of any class, where the pickle is damaged.
    """
    return _Unpickler(stream, storages, whatever_else).load()


_CODE_NAMES = """
    PROTO STOP FRAME MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST EMPTY_DICT
    GLOBAL STACK_GLOBAL BINPERSID BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
"""
"""Opcodes that are read as Python's unpickler written in Python reads them. The one written in C takes memory by the
numbers in memo codes."""
_CODES = [getattr(pickle, name)[0] for name in _CODE_NAMES.split()]
_MAX_PAIRS, _MAX_BYTES = 1_000_000, 1000
"""Maximum number of pairs that are copied into dicts, and of characters that become bytes: pickles repeat by reference
what would take memory each time."""
_PLAIN = (str, int, float, bool, bytes, type(None))


class _Codes(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise pickle.UnpicklingError(f"torch.save does not write the code 0x{code:02x}")


class _Unpickler(pickle._Unpickler):
    dispatch = _Codes({code: pickle._Unpickler.dispatch[code] for code in _CODES})

    def __init__(self, stream: BinaryIO, storages: dict[str, Storage], whatever_else: bool) -> None:
        super().__init__(stream, encoding="utf-8")
        self._storages, self._whatever_else, self._pairs = storages, whatever_else, 0

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what stands for a name in an outline."""
        place = f"{module}.{name}"
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(value := vars(torch).get(name), torch.dtype | torch.layout | torch.qscheme):
            return value
        if place == "collections.OrderedDict":
            return self._ordered_dict
        if place in _NAMES:
            return _NAMES[place]
        if self._whatever_else or module.partition(".")[0] in _LIBRARIES or place in _DATA:
            return _opaque(f"a {place}")
        raise UnknownName(f"it needs {place}")

    def _ordered_dict(self, pairs: Sequence[Sequence[Any]] = ()) -> OrderedDict[Any, Any]:
        """Make an empty dict, or one of pairs, as Python 2 wrote it; the same list again and again adds up."""
        self._pairs += len(pairs)
        if self._pairs > _MAX_PAIRS:
            raise ValueError(f"its dicts are made of more than {_MAX_PAIRS} pairs")
        return OrderedDict((_key(key), value) for key, value in pairs)

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage: ``("storage", type, key, location, elements)``, and None for no view of it."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or view not in ([], [None]):
            raise UnknownName("it refers to something else than a storage")
        if isinstance(dtype, Opaque):
            return dtype
        if type(key) not in (str, int) or not isinstance(dtype, torch.dtype):
            raise TypeError("a storage has no key or no dtype")
        storage = Storage(str(key), dtype, _natural(count) * dtype.itemsize)
        if storage.key in self._storages and self._storages[storage.key] != storage:
            raise ValueError(f"storage {show_value(key)} has two sizes or types")
        return self._storages.setdefault(storage.key, storage)

    def _set_items(self, pairs: Sequence[Any]) -> None:
        target = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(target, Opaque):
            return
        if type(target) not in (dict, OrderedDict):
            raise TypeError("items are set of something that is not a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_key(key)] = value

    def _set_item(self) -> None:
        pair = self.stack[-2:]  # type: ignore[attr-defined]
        del self.stack[-2:]  # type: ignore[attr-defined]
        self._set_items(pair)

    def _build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) is OrderedDict and type(state) is dict:
            target._metadata = _versions(state.get("_metadata"))  # type: ignore[attr-defined]
        elif not isinstance(target, Opaque):
            raise TypeError("a state is set of something that has none")

    def _append(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise TypeError("something is appended to what is not a list")

    def _append_one(self) -> None:
        item = self.stack.pop()  # type: ignore[attr-defined]
        self._append([item])

    def _make_object(self) -> None:
        arguments = self.stack.pop()  # type: ignore[attr-defined]
        made_by = self.stack.pop()  # type: ignore[attr-defined]
        self.append(made_by if isinstance(made_by, Opaque) else made_by(*arguments))  # type: ignore[attr-defined]

    dispatch[pickle.APPEND[0]] = _append_one
    dispatch[pickle.APPENDS[0]] = lambda self: self._append(self.pop_mark())
    dispatch[pickle.NEWOBJ[0]] = _make_object
    dispatch[pickle.REDUCE[0]] = _make_object
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = lambda self: self._set_items(self.pop_mark())
    dispatch[pickle.BUILD[0]] = _build


def _key(key: Any) -> Any:
    """Return a key that is hashed and shown at once; a tuple of tuples of tuples can take for ever."""
    parts = key if type(key) is tuple else (key,)
    if not all(type(part) in _PLAIN for part in parts):
        raise TypeError("a key of a dict is neither plain nor a tuple of plain values")
    return key


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("something else stands where a size should")
    return value


def _versions(metadata: Any) -> Any:
    """Check what `nn.Module.state_dict` notes beside its tensors: plain values for each module."""
    for notes in () if metadata is None else metadata.values():
        for key, value in notes.items():
            if not isinstance(key, str) or type(value) not in _PLAIN:
                raise TypeError("its _metadata are not those of nn.Module.state_dict")
    return metadata


def _tensor(
    storage: Any,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: bool = False,
    _hooks: Any = None,
    metadata: Any = None,
    *,
    dtype: torch.dtype | None = None,
) -> StoredTensor | Opaque:
    if metadata:
        return Opaque("a conjugated or negated view of another tensor")
    if isinstance(storage, Opaque):
        return storage
    dtype = dtype or storage.dtype
    tensor = StoredTensor(storage, dtype, _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, stride)))
    check_shape(tensor.shape, dtype)
    steps = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    if 0 not in tensor.shape and (offset + steps + 1) * dtype.itemsize > storage.nbytes:
        raise ValueError(f"a tensor of shape {[*tensor.shape]} reaches beyond its storage of {storage.nbytes} bytes")
    return tensor


def _tensor_with_dtype(
    storage: Any, offset: int, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> StoredTensor | Opaque:
    if not isinstance(dtype, torch.dtype):
        raise TypeError("a tensor has no dtype")
    return _tensor(storage, offset, shape, stride, grad, hooks, metadata, dtype=dtype)


def _with_attributes(rebuild: Any, _kind: Any, parts: Any, _attributes: Any) -> Any:
    if rebuild not in _NAMES.values():
        raise UnknownName("it calls something that is not a function")
    return rebuild(*parts)


def _opaque(kind: str) -> Callable[..., Opaque]:
    return lambda *_: Opaque(kind)


_LIBRARIES = {"numpy", "omegaconf", "lightning", "lightning_fabric", "pytorch_lightning", "datetime"}
_DATA = {"argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "collections.deque"}
_DATA |= {f"pathlib.{kind}Path" for kind in ("Posix", "Windows", "PurePosix", "PureWindows")}
"""Libraries and classes whose objects stand beside the tensors of training scripts: settings, metrics, times."""

_STORAGES: Mapping[str, torch.dtype | Opaque] = {
    "UntypedStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    **dict.fromkeys(
        ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage"),
        Opaque("a quantised storage"),
    ),
}
_NAMES: Mapping[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch._utils._rebuild_sparse_tensor": _opaque("a sparse tensor"),
    "torch._utils._rebuild_qtensor": _opaque("a quantised tensor"),
    "torch._utils._rebuild_nested_tensor": _opaque("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _opaque("a tensor on the meta device, without values"),
    "torch._utils._rebuild_wrapper_subclass": _opaque("a tensor of a class of its own"),
    "torch._utils._rebuild_device_tensor_from_numpy": _opaque("a tensor of another kind of device"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _opaque("a tensor of another kind of device"),
    "torch.Size": lambda sizes=(): sizes if type(sizes) is tuple else Opaque("a size"),
    "torch.Tensor": Opaque("a class"),
    "torch.nn.parameter.Parameter": Opaque("a class"),
    "torch.device": _opaque("a device"),
    "torch.serialization._get_layout": _opaque("a layout"),
    "_codecs.encode": lambda text, _: text.encode("latin-1") if len(text) <= _MAX_BYTES else Opaque("bytes"),
    **{
        f"{module}.{name}": function
        for module in ("builtins", "__builtin__")
        for name, function in {
            "bytes": lambda: b"",
            "bytearray": _opaque("a bytearray"),
            "set": _opaque("a set"),
            "complex": _opaque("a complex number"),
            **dict.fromkeys(("list", "dict", "int", "float", "str", "tuple", "bool"), Opaque("a class")),
        }.items()
    },
    "collections.Counter": _opaque("a Counter"),
}
"""What stands for the names that pickles of ``torch.save`` may refer to."""
