"""Which state dict of a training checkpoint is the network: files of training scripts hold more than one thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from alignkit.checkpoints.outline import StoredTensor
from alignkit.errors import WeightsError
from alignkit.text import did_you_mean, list_some, show_type

Path: TypeAlias = tuple[str, ...]
"""Keys from the outside in."""

USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "module", "model_state", "weights", "params")
"""Keys under which training scripts keep the network. The first that is there is taken."""
_DEEPEST = 3
"""Number of dicts in each other that are searched."""


@dataclass(frozen=True)
class StateDict:
    """The state dict that was chosen.

    Attributes:
        state: What it holds, by name.
        keys: Where it is in the file; empty where it is all of the file.
        others: Where other state dicts are, such as averages over the training.
    """

    state: Mapping[Any, Any]
    keys: Path = ()
    others: tuple[Path, ...] = ()

    @property
    def note(self) -> str:
        """Say what was read, as a part of a sentence; "" where the file holds one state dict and nothing else."""
        if not self.keys:
            return ""
        others = f"; it also holds {_listed(self.others)}, which key= (--key) chooses" if self.others else ""
        return f"the network was read from {write_key(self.keys)!r}{others}"

    def wrap(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Put a state dict where this one was."""
        for key in reversed(self.keys):
            state = {key: state}
        return state


def choose_state_dict(content: Mapping[Any, Any], key: str | None = None) -> StateDict:
    """Choose the state dict of a network in what a file holds.

    What holds tensors at once is a state dict itself. Otherwise it is the only one inside, or the first of `USUAL`.

    Args:
        content: What the file holds, with a `StoredTensor` for each tensor.
        key: Where the state dict is; of a nested one the keys with points between them, ``"ema.state_dict"``.

    Raises:
        WeightsError: There is nothing under the key, or several state dicts and none under a usual key. The message is
            a sentence without the name of the file.
    """
    inside = list(_state_dicts(content, ()))
    if key is not None:
        return _named(content, key, [keys for keys, _ in inside])
    if not inside or any(isinstance(value, StoredTensor) for value in content.values()):
        return StateDict(content)
    rank = {name: number for number, name in enumerate(USUAL)}
    usual = [(keys, state) for keys, state in inside if keys[0] in rank]
    if not usual and len(inside) > 1:
        raise WeightsError(
            f"holds {len(inside)} state dicts: {_listed([k for k, _ in inside])}. Choose with key= (--key)."
        )
    keys, state = min(usual or inside, key=lambda item: (rank.get(item[0][0], 0), len(item[0])))
    return StateDict(state, keys, tuple(other for other, _ in inside if other != keys))


def write_key(keys: Path) -> str:
    """Write where a state dict is, as ``key`` takes it."""
    return ".".join(keys)


def _listed(paths: tuple[Path, ...] | list[Path]) -> str:
    return list_some([repr(write_key(keys)) for keys in paths], 5)


def _state_dicts(content: Mapping[Any, Any], place: Path) -> Iterator[tuple[Path, Mapping[Any, Any]]]:
    """Yield the dicts that hold tensors, outermost first.

    Under a usual key of the file that is every dict with a tensor, so that what is wrong with the rest is told;
    elsewhere one that holds tensors under names and nothing else.
    """
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Mapping):
            continue
        held = [isinstance(part, StoredTensor) for part in value.values()]
        if (any(held) or name == USUAL[0]) if name in USUAL and not place else held and all(held):
            yield (*place, name), value
        elif len(place) + 1 < _DEEPEST:
            yield from _state_dicts(value, (*place, name))


def _named(content: Mapping[Any, Any], key: str, known: list[Path]) -> StateDict:
    """Return what is under a key."""
    value: Any = content
    keys: list[str] = []
    rest = key
    while rest:
        if not isinstance(value, Mapping):
            break
        parts = rest.split(".")
        # Keys may hold points themselves: the longest that is there is meant.
        length = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in value), None)
        if length is None:
            break
        keys.append(".".join(parts[:length]))
        value, rest = value[keys[-1]], ".".join(parts[length:])
    if rest or not isinstance(value, Mapping):
        what = "nothing" if rest else show_type(value)
        names = [write_key(path) for path in known]
        there = f"Its state dicts are {list_some(list(map(repr, names)), 5)}." if names else "It holds no state dict."
        raise WeightsError(f"has {what} under key={key!r}. {there}{did_you_mean(key, names)}")
    return StateDict(value, tuple(keys), tuple(path for path in known if path != tuple(keys)))
