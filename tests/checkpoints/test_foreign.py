"""What people have in place of a checkpoint: each message says what it is, and what to give."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alignkit.checkpoints import open_checkpoint
from alignkit.errors import WeightsError
from helpers.command_line import run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(2)}, "net.pt")


CONTENTS = {
    "a page": (b"<!DOCTYPE html><html>404</html>", "is a web page or other markup"),
    "a page after a mark": (b"\xef\xbb\xbf\n<html>", "is a web page or other markup"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(64), "is a GGUF file, whatever its name says"),
    "packed": (gzip.compress(b"x" * 99), "is packed by gzip. Unpack it first"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "Keras keeps weights in another form"),
}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin", "w.ckpt", "model/model.safetensors"])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_is_something_else_than_its_name_says(content: str, name: str) -> None:
    inside, said = CONTENTS[content]
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(inside)
    with pytest.raises(WeightsError) as error:
        open_checkpoint(str(Path(name).parent) if "/" in name else name)
    assert str(error.value).startswith(name) and said in str(error.value)


@pytest.mark.parametrize("size", [0x3C, 0x8B1F, 0x88B1F])
def test_the_length_of_a_header_may_look_like_anything(size: int) -> None:
    save_file({"w": torch.zeros(2)}, "w.safetensors")
    content = Path("w.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip().ljust(size)
    Path("w.safetensors").write_bytes(size.to_bytes(8, "little") + header + content[8 + length :])
    assert list(open_checkpoint("w.safetensors")) == ["w"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m.gguf", "made from"),
        ("m.onnx", "that was exported"),
        ("m.h5", "Keras"),
        ("m.keras", "Keras"),
        ("m.msgpack", "JAX"),
        ("m.tar.gz", "unpack it"),
        ("m.zip", "unpack it"),
        ("config.json", "A folder is given by its own name"),
        ("nets.py", "--model MODULE:FUNCTION"),
        ("merge.yml", "--recipe"),
        ("m.dat", "rename it"),
    ],
)
def test_a_file_of_another_suffix(name: str, said: str) -> None:
    Path(name).write_bytes(b"something")
    with pytest.raises(WeightsError, match=said):
        open_checkpoint(name)


ADDRESSES = ["https://host.example/a/b/model.safetensors", "s3://bucket/a.pt", "hf://a/b", "file:///tmp/a.pt"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_not_a_path(address: str) -> None:
    with pytest.raises(WeightsError, match="is an address, and networks are read from this machine"):
        open_checkpoint(address)
    assert "is an address" in run("distance", address, "net.pt", "--spec", "x.json", code=1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("net", "Did you mean 'net.pt'?"),
        ("net.pth", "Did you mean 'net.pt'?"),
        ("gpt2", "named OWNER/NAME"),
        ("~/net.pt", "A shell puts the home folder"),
        ("nowhere/at/all.pt", "does not exist."),
    ],
)
def test_a_path_that_leads_nowhere(name: str, said: str) -> None:
    with pytest.raises(WeightsError, match="does not exist") as error:
        open_checkpoint(name)
    assert said in str(error.value)


def test_one_tensor_is_not_a_state_dict() -> None:
    torch.save(torch.zeros(3), "tensor.pt")
    with pytest.raises(WeightsError, match="holds one tensor, not a state dict"):
        open_checkpoint("tensor.pt")


@pytest.mark.parametrize("first", ["https://host.example/owner/model", "gpt2", "./nowhere", "net"])
def test_a_missing_input_is_told_before_the_name_of_the_output(first: str) -> None:
    for job in (["merge", first, "net.pt"], ["transport", "net.pt", "net.pt", first], ["solve", "net.pt", first]):
        said = run(*job, "-o", "out", "--spec", "x.json", code=1)
        assert "is an address" in said or "does not exist" in said
