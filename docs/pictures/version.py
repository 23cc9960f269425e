"""Write the version of alignkit below every page of the site."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig

import alignkit


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the line at the foot of all pages."""
    config.copyright = f"alignkit {alignkit.__version__}. MIT license."
    return config
