"""From a name or a folder to a model and an example call, one file a library."""

from alignkit.models.sources import load_model

__all__ = ["load_model"]
