"""Model cards of networks that jobs make: what they were made from, how, and the numbers that were reached. No more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import alignkit
from alignkit.arguments import check_arguments
from alignkit.checkpoints import Checkpoint, is_hub_id
from alignkit.checkpoints.folder import CARD, CONFIG, RUN_RECORD
from alignkit.checkpoints.opening import read_file
from alignkit.errors import UsageError
from alignkit.jobs.network_files import NetworkFiles
from alignkit.jobs.yaml_text import MAX_YAML, YamlText

FENCE = "---"
LICENCE = ("license", "license_name", "license_link")
"""Fields of a card that say what its licence is."""


@check_arguments
def model_card(
    files: NetworkFiles,
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
        files: The networks.
        output: The folder, whose name is the title.
        about: A sentence on what it is.
        roles: What each network was in the job, such as its weight.
        ways: How the job was done, by what is said.
        came_out: The numbers that were reached, as ``result.explain()`` says them.
        tags: More tags for the hub; it always has ``alignkit``.
        recipe: What repeats the job, as YAML takes it.
    """
    said = [read_front_matter(checkpoint) for checkpoint in files.checkpoints]
    names = [str(path) for path in files.paths]
    licences = [{field: card[field] for field in LICENCE if field in card} for card in said]
    agree = bool(licences[0]) and all(licence == licences[0] for licence in licences)
    library = said[0].get("library_name") or (files.model or "").partition(":")[0]
    front: dict[str, Any] = {"base_model": [name.partition("@")[0] for name in names if is_hub_id(name)]}
    if library in ("transformers", "diffusers", "timm") or said[0].get("library_name"):
        front["library_name"] = library
    front |= licences[0] if agree else {}
    front["tags"] = ["alignkit", *tags]
    again = "" if recipe is None else f"\n## Recipe\n\n```yaml\n{_yaml(recipe)}\n```\n"
    rows = []
    for name, role, read in zip(names, roles, files.inputs, strict=True):
        digests = ", ".join(f"`{file.sha256}`" for file in read.files if file.name != CONFIG)
        rows.append("| `{}` | {} | {} |".format(name.replace("|", "\\|"), role, digests))
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


def read_front_matter(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the texts in the YAML header of a network's card; nothing where there is none that can be read."""
    if checkpoint.folder is None:
        return {}
    try:
        text = read_file(checkpoint.folder / CARD, MAX_YAML).decode()
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
