"""Model cards of networks that jobs make: what they were made from, how, and the numbers that were reached. No more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import alignkit
from alignkit.arguments import check_arguments
from alignkit.checkpoints import is_hub_id
from alignkit.checkpoints.folder import CARD, CONFIG, RUN_RECORD
from alignkit.checkpoints.opening import read_file
from alignkit.errors import UsageError
from alignkit.jobs import adapters
from alignkit.jobs.network_files import NetworkFiles
from alignkit.jobs.record import RecordedInput, input_of_path
from alignkit.jobs.yaml_text import MAX_YAML, YamlText

FENCE = "---"
LIBRARIES = ("transformers", "diffusers", "timm")
NAME_FIELDS = ("_name_or_path", "name_or_path")
"""Fields of a configuration in which libraries keep what a network was loaded from."""
LICENCE = ("license", "license_name", "license_link")
"""Fields of a card that say what its licence is."""


@dataclass(frozen=True)
class CardSource:
    """What a card says of a network, or of an adapter, that was read.

    Attributes:
        name: Path or id, as the user gave it.
        read: Its files with their check sums.
        said: The texts in the header of its own card.
        library: The library that loads it, if it is known.
        origin: The id on the hub of what it was made from, if it is known: itself, or what its configuration names.
    """

    name: str
    read: RecordedInput
    said: Mapping[str, str]
    library: str | None
    origin: str | None


@check_arguments
def card_sources(files: NetworkFiles) -> list[CardSource]:
    """Return what a card says of networks."""
    sources = []
    for path, checkpoint, read in zip(map(str, files.paths), files.checkpoints, files.inputs, strict=True):
        said = read_front_matter(checkpoint.folder)
        library = said.get("library_name") or (files.model or "").partition(":")[0]
        known = library in LIBRARIES or "library_name" in said
        origin = path.partition("@")[0] if is_hub_id(path) else _origin(checkpoint.config, NAME_FIELDS)
        sources.append(CardSource(path, read, said, library if known else None, origin))
    return sources


@check_arguments
def adapter_source(folder: Path) -> CardSource:
    """Return what a card says of an adapter."""
    said, origin = read_front_matter(folder), _origin(folder / adapters.CONFIG, (adapters.BASE_NAME,))
    return CardSource(str(folder), input_of_path(folder), said, "peft", origin)


def _origin(config: Path | None, fields: Sequence[str]) -> str | None:
    """Return the id on the hub that a field of a configuration names."""
    try:
        values = {} if config is None else json.loads(read_file(config, MAX_YAML))
    except (OSError, ValueError, RecursionError):
        return None
    named = [values.get(field) for field in fields] if isinstance(values, dict) else []
    return next((name for name in named if isinstance(name, str) and is_hub_id(name)), None)


@check_arguments
def model_card(
    sources: Sequence[CardSource],
    output: Path,
    about: str,
    roles: Sequence[str],
    ways: Mapping[str, str],
    came_out: str,
    tags: Sequence[str] = (),
    recipe: Mapping[str, Any] | None = None,
) -> str:
    """Write the ``README.md`` of a folder that a job made of several networks.

    Args:
        sources: What was read; see `card_sources`.
        output: The folder, whose name is the title.
        about: A sentence on what it is.
        roles: What each of them was in the job, such as its weight.
        ways: How the job was done, by what is said.
        came_out: The numbers that were reached, as ``result.explain()`` says them.
        tags: More tags for the hub; it always has ``alignkit``.
        recipe: What repeats the job, as YAML takes it.
    """
    names, said = [source.name for source in sources], [source.said for source in sources]
    licences = [{field: card[field] for field in LICENCE if field in card} for card in said]
    agree = bool(licences[0]) and all(licence == licences[0] for licence in licences)
    origins = [source.origin for source in sources if source.origin is not None]
    front: dict[str, Any] = {"base_model": list(dict.fromkeys(origins))}
    if sources[0].library is not None:
        front["library_name"] = sources[0].library
    front |= licences[0] if agree else {}
    front["tags"] = ["alignkit", *tags]
    again = "" if recipe is None else f"\n## Recipe\n\n```yaml\n{_yaml(recipe)}\n```\n"
    rows = []
    for source, role in zip(sources, roles, strict=True):
        configurations = (CONFIG, adapters.CONFIG)
        digests = ", ".join(f"`{file.sha256}`" for file in source.read.files if file.name not in configurations)
        rows.append("| `{}` | {} | {} |".format(source.name.replace("|", "\\|"), role, digests))
    lines = [
        FENCE,
        _yaml(front),
        FENCE,
        f"\n# {output.name}\n",
        f"{about} Made by alignkit {alignkit.__version__}. All that is said here comes from that run.\n",
        "| Network | Part | SHA-256 of its weights |\n|---|---|---|",
        *rows,
        "",
        *(f"- {what}: {how}" for what, how in ways.items()),
        f"- Licence: {_licence(names, licences, agree)}",
        again,
        f"## What came out\n\n```text\n{came_out}\n```\n",
        f"`{RUN_RECORD}` beside this file has all numbers, the check sums of all inputs and the versions.",
    ]
    return "\n".join(lines) + "\n"


def read_front_matter(folder: Path | None) -> dict[str, str]:
    """Return the texts in the YAML header of the card in a folder; nothing where there is none that can be read."""
    if folder is None:
        return {}
    try:
        text = read_file(folder / CARD, MAX_YAML).decode()
        opening, _, rest = text.partition("\n")
        header, closing, _ = rest.partition(f"\n{FENCE}")
        if opening.strip() != FENCE or not closing:
            return {}
        values = YamlText.read(header, CARD).values
    except (OSError, UnicodeDecodeError, UsageError):
        return {}
    return {name: value for name, value in values.items() if isinstance(value, str)} if isinstance(values, dict) else {}


def _yaml(values: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None)
    return text.rstrip()


def _licence(names: Sequence[str], licences: Sequence[Mapping[str, Any]], agree: bool) -> str:
    """Say which licence the networks have, or that they do not all say the same."""
    told = ["says nothing" if not said else f"says {said.get('license', said)}" for said in licences]
    if agree:
        return f"all networks have `{licences[0].get('license')}`"
    every = ", ".join(f"`{name}` {says}" for name, says in zip(names, told, strict=True))
    return f"none is given here, because the networks do not agree: {every}"
