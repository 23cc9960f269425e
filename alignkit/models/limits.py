"""Bounds on what a configuration asks for, told before it takes memory or time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from alignkit.errors import ModelSourceError
from alignkit.text import show_value

MAX_NESTING = 30
"""Configurations inside configurations; real ones have four or five."""
MAX_ENTRIES = 10_000
"""Entries of one list."""
MAX_LAYERS = 2_000
"""Layers, blocks or stages that one field asks for. The deepest known networks have about 1,000."""
MAX_LABELS = 100_000
"""Classes: libraries make a name for each, of which a million takes them half a minute."""
MAX_NUMBER = 20_000_000
"""Any other whole number, such as a width or a vocabulary. The longest known contexts have 10 million positions."""
MAX_MODULES = 200_000
"""Modules of one model. Mixtures of hundreds of experts have 100,000 where every expert is a module of its own."""

LAYERS = re.compile(r"(^|_)(layers?|depths?|blocks|stages)(_per_block)?$")
LABELS = re.compile(r"(^|_)(labels|classes)$")
SIZES = re.compile(
    r"(^|_)(num|n)_|(^|_)(size|channels|chans|embd)$"
    r"|(^|_)(hidden|embed|head|model|attention|inner|ffn)_dim$"
    r"|^(d_model|depths?|layers_per_block|(en|de)coder_(layers|attention_heads))$"
)
"""Fields that are always whole numbers of 0 or more."""
SENTINELS = re.compile(r"chunk|window|^fixed_|num_images|drop_|use_|_n_(blocks|layers)$")
"""Fields of such names that hold -1 for "none", or say whether."""
ESSENTIAL = re.compile(
    r"^((num|n)_(hidden_)?(layers?|heads?|attention_heads)|(hidden|vocab)_size|embed_dim|n_embd|d_model|depths?)$"
)
"""Fields without which there is no model: they are 1 or more."""
NO_SIZES = re.compile(r"theta|base|seed|token|max_length|(label2id|id2label)\.")
"""Whole numbers that nothing is made of: bases of rotary embeddings, seeds, ids of tokens and labels."""


def check_sizes(content: Mapping[str, Any], label: str) -> None:
    """Refuse a configuration with a number that no model has, before anything is built from it.

    Args:
        content: What the file holds.
        label: What messages call it.

    Raises:
        ModelSourceError: It names the field, its value and the bound.
    """
    for field, value in fields_of(content, label):
        name = field.rpartition(".")[2]
        numbers = value if isinstance(value, list) else [value]
        problem = next((text for number in numbers if (text := _problem(field, name, number))), "")
        if isinstance(value, list) and not problem:
            total = sum(number for number in value if _is_whole(number))
            if len(value) > MAX_ENTRIES:
                problem = f"has {len(value)} entries, more than {MAX_ENTRIES}"
            elif LAYERS.search(name) and total > MAX_LAYERS:
                problem = f"adds up to {total}, more than {MAX_LAYERS}"
        if problem:
            raise ModelSourceError(f"{label}: {field} {problem}. No known model has that: mend the file.")


def fields_of(content: Mapping[str, Any], label: str, whole: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every field of a configuration with its dotted name; lists are values, mappings in them are gone into.

    Mappings under the names in ``whole`` are values, too.

    Raises:
        ModelSourceError: It is nested more deeply than `MAX_NESTING`.
    """
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    while waiting:
        field, value, depth = waiting.pop()
        if depth > MAX_NESTING:
            raise ModelSourceError(f"{label}: {field[:40]}... is nested more than {MAX_NESTING} deep: mend the file.")
        as_value = not isinstance(value, Mapping) or field.rpartition(".")[2] in whole
        if field and as_value:
            yield field, value
        inner = value if isinstance(value, Mapping) else dict(enumerate(value)) if isinstance(value, list) else {}
        parts = [(f"{field}.{key}" if field else str(key), part, depth + 1) for key, part in inner.items()]
        waiting += [
            part for part in reversed(parts) if isinstance(value, Mapping) or isinstance(part[1], Mapping | list)
        ]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _problem(field: str, name: str, value: object) -> str:
    """Say what is wrong with one number of a field; "" where nothing is."""
    if isinstance(value, float) and value != value:
        return "is NaN"
    is_size = SIZES.search(name) is not None and not SENTINELS.search(name)
    if is_size and isinstance(value, bool | float | str):
        return f"is {show_value(value)}, not a whole number"
    if not isinstance(value, int) or isinstance(value, bool):
        return ""
    if (is_size and value < 0) or (ESSENTIAL.search(name) and value < 1):
        return f"is {value}, not a positive number"
    most = MAX_LAYERS if LAYERS.search(name) else MAX_LABELS if LABELS.search(name) else MAX_NUMBER
    return f"is {value}, more than {most}" if abs(value) > most and not NO_SIZES.search(field) else ""


@contextmanager
def counted_modules() -> Iterator[None]:
    """Refuse, inside the block, to build more than `MAX_MODULES` modules.

    Raises:
        ModelSourceError: There are more.
    """
    count = 0

    def count_one(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODULES:
            raise ModelSourceError(
                f"it has more than {MAX_MODULES} modules, which is more than any known model has. Look for a number "
                "of layers, blocks or experts that is too large."
            )

    handle = register_module_module_registration_hook(count_one)
    try:
        yield
    finally:
        handle.remove()
