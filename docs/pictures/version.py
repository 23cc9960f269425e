"""Write the version of alignkit below every page of the site."""

from __future__ import annotations

from importlib.metadata import version

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the line at the foot of all pages."""
    config.copyright = f"alignkit {version('alignkit')}. MIT license."
    return config
