"""Training checkpoints: the state dict inside is found, told and written back where it was; nothing else is read."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignkit.checkpoints import open_checkpoint, read_weights, write_checkpoint
from alignkit.errors import WeightsError

MODEL = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
STATE = MODEL.state_dict()
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def optimizer() -> dict[str, Any]:
    adam = torch.optim.Adam(MODEL.parameters())
    MODEL(torch.randn(5, 4)).sum().backward()
    adam.step()
    return adam.state_dict()


BESIDE: dict[str, Callable[[], Any]] = {
    "a number": lambda: 3,
    "a text": lambda: "resnet18",
    "an optimizer": optimizer,
    "settings": lambda: argparse.Namespace(lr=0.1, layers=[1, 2], out=pathlib.Path("x")),
    "a number of numpy": lambda: np.float64(0.5),
    "an array": lambda: np.arange(6).reshape(2, 3),
    "a queue": lambda: collections.deque([1.0, 2.0], maxlen=5),
    "a table of lists": lambda: collections.defaultdict(list, {"loss": [0.1, 0.2]}),
    "a time": lambda: datetime.datetime(2026, 1, 2),
    "random states": lambda: {"torch": torch.get_rng_state(), "numpy": np.random.get_state()},
    "a tensor": lambda: {"loss": torch.tensor(0.5), "epoch": 3},
}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "network", "generator"])
def test_the_state_dict_is_found_beside_anything(key: str, suffix: str, beside: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save({"beside": BESIDE[beside](), key: STATE, "epoch": 3}, path)
    checkpoint = open_checkpoint(path)
    assert same(checkpoint.read_all(), STATE)
    assert repr(key) in checkpoint.notes[0]
    write_checkpoint(tmp_path / f"new{suffix}", checkpoint, checkpoint.__getitem__)
    written = torch.load(tmp_path / f"new{suffix}", weights_only=True)
    assert list(written) == [key]
    assert same(written[key], STATE)


@pytest.mark.parametrize("key", ["state_dict_ema", "ema.model", "a.b", "callbacks.ema.state_dict"])
def test_another_state_dict_is_chosen_by_its_key(key: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": STATE}
    place, *rest = [key] if key == "a.b" else key.split(".")  # a key may hold a point itself
    inside: Any = OTHER
    for name in reversed(rest):
        inside = {name: inside}
    torch.save({**content, place: inside}, tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"), STATE)
    assert repr(key) in open_checkpoint(tmp_path / "w.pt").notes[0]
    assert same(read_weights(tmp_path / "w.pt", key=key), OTHER)
    checkpoint = open_checkpoint(tmp_path / "w.pt", key=key)
    write_checkpoint(tmp_path / "new.pt", checkpoint, checkpoint.__getitem__)
    assert same(read_weights(tmp_path / "new.pt", key=key), OTHER)


def test_several_state_dicts_without_a_usual_key_are_listed(tmp_path: Path) -> None:
    torch.save({"generator": STATE, "discriminator": OTHER}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"2 state dicts: 'generator', 'discriminator'. Choose with key= \(--key\)"):
        read_weights(tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt", key="discriminator"), OTHER)


@pytest.mark.parametrize("key", ["sate_dict", "state_dict.x", "epoch", "epoch.x", ""])
def test_a_key_with_nothing_is_refused_with_those_there_are(key: str, tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="state_dict"):
        read_weights(tmp_path / "w.pt", key=key)


def test_a_safetensors_file_has_no_keys(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="leave key='state_dict'"):
        open_checkpoint(tmp_path / "w.safetensors", key="state_dict")


class Runs:
    """Says so when it is made anew."""

    made = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Runs.count, ()

    @staticmethod
    def count() -> int:
        Runs.made += 1
        return Runs.made


def test_objects_of_any_class_are_beside_it_only_where_the_key_is_said(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "trainer": Runs()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"could run code.*--key state_dict"):
        read_weights(tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt", key="state_dict"), STATE)
    assert Runs.made == 0


def test_a_state_dict_alone_says_nothing(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    assert open_checkpoint(tmp_path / "w.pt").notes == ()
    torch.save({**STATE, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="'epoch' is"):
        read_weights(tmp_path / "w.pt")
