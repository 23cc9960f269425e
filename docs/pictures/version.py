"""Write the version of alignkit below every page of the site, and link the repository where it has an address."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import alignkit

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the line at the foot of all pages, and the link that the metadata of the package have."""
    config.copyright = f"alignkit {alignkit.__version__}. MIT license."
    config.repo_url = config.repo_url or repository(PROJECT.read_text(encoding="utf-8"))
    config.repo_name = "Repository" if config.repo_url else None
    return config


def repository(project: str) -> str:
    """Return the address of the repository in a ``pyproject.toml``; empty where it names none."""
    urls = tomllib.loads(project)["project"].get("urls", {})
    named = {name.lower(): address for name, address in urls.items()}
    return next((named[name] for name in ("repository", "source", "source code", "homepage") if name in named), "")
