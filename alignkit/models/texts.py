"""Texts as the tokens that a language model reads, by the tokenizer in its folder."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.errors import MissingExtraError, ModelSourceError
from alignkit.text import describe_error, install_extra


@check_arguments
def token_blocks(folder: Path, text: str, length: int) -> Int[Tensor, "blocks length"]:
    """Return a text as blocks of tokens; what does not fill the last block is left out.

    Args:
        folder: Folder of transformers with a tokenizer. Nothing is downloaded, and no code from it is run.
        text: The text.
        length: Number of tokens of a block.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelSourceError: The folder has no tokenizer that transformers reads, or the text fills no block.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"texts need transformers: {install_extra('zoo')}.") from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokens = tokenizer(text, verbose=False)["input_ids"]
    except Exception as error:  # whatever the library says about a folder
        raise ModelSourceError(
            f"the tokenizer of {folder} cannot be used: {describe_error(error)} Give a table of tokens instead."
        ) from error
    if len(tokens) < length:
        raise ModelSourceError(f"the text has {len(tokens)} tokens, and one block takes {length}: give a longer text.")
    count = len(tokens) // length
    return torch.tensor(tokens[: count * length]).reshape(count, length)
