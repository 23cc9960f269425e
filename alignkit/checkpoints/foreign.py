"""What is not a checkpoint, told by its name or its first bytes: what it is, and what to give instead."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from alignkit.arguments import check_arguments
from alignkit.checkpoints.hub import is_hub_id
from alignkit.checkpoints.opening import open_file
from alignkit.errors import WeightsError
from alignkit.text import did_you_mean

_UNPACK = "This looks like an archive: unpack it, and give the file or the folder in it"
_OTHER = "{} keeps weights in another form. Load the model there, and save its tensors as .safetensors"
_CONVERTED = "It holds weights that were converted for llama.cpp. Give the checkpoint that it was made from"
SUFFIXES = {
    **dict.fromkeys((".gguf", ".ggml"), _CONVERTED),
    ".onnx": "ONNX files hold an exported graph. Give the checkpoint of the model that was exported",
    **dict.fromkeys((".h5", ".hdf5", ".keras"), _OTHER.format("Keras")),
    **dict.fromkeys((".pb", ".tflite"), _OTHER.format("TensorFlow")),
    **dict.fromkeys((".msgpack", ".orbax"), _OTHER.format("JAX")),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".zst", ".7z"), _UNPACK),
    **dict.fromkeys((".yaml", ".yml"), "A recipe of a merge is given by --recipe"),
    ".json": "A folder is given by its own name, with its config.json in it",
    ".py": "A model is given by --model MODULE:FUNCTION",
}
"""What to do about files of other suffixes."""
BEGINNINGS = {
    b"version https://git-lfs": "is a pointer of Git LFS, and the file itself was not fetched. Run git lfs pull",
    b"<": "is a web page or other markup, as of a download that failed. Download the file itself",
    b"GGUF": "is a GGUF file, whatever its name says. " + _CONVERTED,
    b"\x1f\x8b": "is packed by gzip. Unpack it first",
    b"\x89HDF": "is a file of HDF5, whatever its name says. " + _OTHER.format("Keras"),
}
"""What files are that begin with some bytes, as the end of a sentence."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@check_arguments
def check_is_there(path: str | Path) -> None:
    """Raise a `WeightsError` for a path that leads nowhere, and for an address, which is not a path.

    Ids of models on the Hugging Face hub pass.
    """
    refuse_address(path)
    if not os.path.lexists(path) and not is_hub_id(path):
        raise WeightsError(f"{path} does not exist.{missing_advice(Path(path))}")


def refuse_address(path: str | Path) -> None:
    """Raise a `WeightsError` for an address of the web or of a store of objects, which is not a path."""
    if _ADDRESS.match(str(path)):
        raise WeightsError(
            f"{path} is an address, and networks are read from this machine: download it first. Models of the Hugging "
            "Face hub are named OWNER/NAME, and --allow-download fetches them."
        )


def advice_for_suffix(path: Path) -> str:
    """Say what to do about a file whose suffix is not that of weights."""
    return SUFFIXES.get(path.suffix.lower(), "Convert the file, or rename it if it is one of these")


def refuse_content(path: Path) -> None:
    """Raise a `WeightsError` for a file that begins like something else than weights."""
    with suppress(OSError):
        with open_file(path) as stream:
            head = stream.read(64)
        if head[8:9] == b"{":  # a length and JSON: safetensors, whose length may be any bytes
            return
        for beginning, what in BEGINNINGS.items():
            if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(beginning):
                raise WeightsError(f"{path} {what}.")


def missing_advice(path: Path) -> str:
    """Say what may have been meant by a path that leads nowhere, in sentences that begin with a blank."""
    if str(path).startswith("~"):
        return " A shell puts the home folder in place of ~ only where it is not quoted."
    with suppress(OSError):
        if near := did_you_mean(path.name, os.listdir(path.parent)):
            return near
    is_name = path.suffix == "" and len(path.parts) == 1
    return " Models of the Hugging Face hub are named OWNER/NAME." if is_name else ""
