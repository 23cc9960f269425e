"""Models of the Hugging Face hub by their ids: from the cache on this machine, or downloaded where that is allowed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from alignkit.arguments import check_arguments
from alignkit.checkpoints.shard import file_kind
from alignkit.errors import MissingExtraError, WeightsError

_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.][\w./-]*))?")
_WEIGHTS = (["*.safetensors", "*.safetensors.index.json"], ["*.bin", "*.bin.index.json"])
"""Files of weights that are downloaded; the second only where there are none of the first."""
_BESIDE = ["*.json", "*.txt", "*.model", "*.md"]
"""Files that go along: configuration, tokenizer, card."""


@check_arguments
def is_hub_id(name: str | Path) -> bool:
    """Whether a name can only be the id of a model on the hub, ``owner/name`` or ``owner/name@revision``."""
    path = Path(name)
    is_file = file_kind(path) is not None or path.name.endswith(".index.json")
    return bool(_ID.fullmatch(str(name))) and not is_file and not os.path.exists(path)


def locate(name: str | Path, *, download: bool = False) -> Path:
    """Return where a model is on this machine.

    Args:
        name: A path, which is returned as it is; or the id of a model on the hub, if nothing has that path.
        download: Whether what the cache does not hold may be downloaded.

    Returns:
        The path, or the folder of the model's snapshot in the cache.

    Raises:
        WeightsError: The cache does not hold the model, or it cannot be downloaded.
        MissingExtraError: ``huggingface_hub`` is not installed.
    """
    if not is_hub_id(name):
        return Path(name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        problem = f"{name} does not exist. If it is the id of a model on the Hugging Face hub"
        raise MissingExtraError(f"{problem}, install what reads it: pip install huggingface_hub") from error
    match = _ID.fullmatch(str(name))
    assert match is not None
    try:
        for weights in _WEIGHTS:
            wanted = [*weights, *_BESIDE] if download else None
            folder = Path(
                snapshot_download(
                    match["id"], revision=match["revision"], local_files_only=not download, allow_patterns=wanted
                )
            )
            if not download or any(folder.glob(weights[0])):
                break
    except LocalEntryNotFoundError as error:
        problem = f"{name} does not exist, and the cache of the Hugging Face hub holds no model of this id"
        advice = "Its connection failed" if download else "Allow its download (--allow-download), or check the name"
        raise WeightsError(f"{problem}. {advice}.") from error
    except (HfHubHTTPError, OSError) as error:
        raise WeightsError(f"{name} cannot be downloaded: {str(error).splitlines()[0]}") from error
    return folder
